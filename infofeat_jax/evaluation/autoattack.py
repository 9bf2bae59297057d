"""AutoAttack, or one of its stages, on a trained model: an interrupted evaluation resumes where it stopped."""

import json
import pathlib
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from infofeat_jax import streams, threat
from infofeat_jax.attacks.autoattack import ROBUST, ResumeState, steps
from infofeat_jax.attacks.stages import VERSIONS, Plan, plan
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import aside, attack_names
from infofeat_jax.evaluation.attack_names import AttackSpec
from infofeat_jax.evaluation.subject import SAVE_EVERY, Subject, Tell
from infofeat_jax.runtime import files, processes, signals
from infofeat_jax.types import Stopped


class Saved(NamedTuple):
    """Where the resume state of an attack is stored, and the setting that it must match."""

    path: pathlib.Path
    setting: str
    count: int  # of images


def measure(subject: Subject, name: str, tell: Tell) -> Bool[np.ndarray, " n"]:
    """Which of the first `autoattack_examples` (0: all) images remain correctly classified under the attack.

    The resume state, with the adversarial images found, is stored in autoattack.npz (for a stage: apgd-t.npz), and is
    used only by an evaluation with the same setting and number of examples. Several processes split each batch over all
    their devices, hold the same state, and one of them writes it: any number of them may resume.
    """
    spec = attack_names.parse(name)
    count = subject.autoattack_examples or None
    images, labels = to_unit(np.asarray(subject.split.images[:count])), subject.split.labels[:count]
    stages = create_plan(subject, spec, images.shape[1:3])
    saved, due, start = where(subject, spec), 0.0, time.monotonic()
    if processes.is_writer():
        switch(subject, spec)
    processes.barrier(f"{name}: resume state in its place")  # before any process reads it
    state, before = load(saved), seconds(saved)
    tell("reading the resume state", seconds_before=before)
    processes.barrier(f"{name}: resume state read")  # before one process saves the next
    key = streams.key(subject.seed, "autoattack")
    options = {"batch_size": subject.batch_size, "state": state, "mesh": subject.mesh}
    options["say"] = lambda line, size: tell(line, batch_size=size)
    for progress, state in steps(stages, subject.forward, key, images, labels, **options):
        note = ", compiling" if progress.compiling else ""
        tell(f"{progress.stage}, {progress.survivors} of {progress.examples} left{note}", progress.done)
        stop = signals.requested()
        if processes.is_writer() and (stop or time.monotonic() >= due):
            save(saved, state, before + time.monotonic() - start)
            due = time.monotonic() + SAVE_EVERY
        if stop:
            raise Stopped(f"stopped during {name}; its progress is saved: the same command resumes from there")
    if processes.is_writer():
        save(saved, state, before + time.monotonic() - start)
    processes.barrier(f"{name}: resume state stored")  # before any process reads what each stage has left
    return state.broken_by == ROBUST


def create_plan(subject: Subject, spec: AttackSpec, image_size: tuple[int, int]) -> Plan:
    """The stages that a name stands for, in the evaluation's threat model or with the name's own epsilon."""
    options = attack_names.in_images_units(spec)
    model = threat.threat(subject.budget.norm, options.pop("epsilon", subject.budget.epsilon))
    if spec.attack == "autoattack":
        return plan(model, subject.num_classes, image_size, version=options.pop("version", "standard"))
    return plan(model, subject.num_classes, image_size, attacks=(spec.attack,), options=options)


def after_stages(subject: Subject, names: Iterable[str]) -> dict[str, Bool[np.ndarray, " n"]]:
    """{stage: which examples were still correct after it} of the AutoAttack among the measured `names`, if any.

    The standard version if there are several; not the quick one, nor one of another budget.
    """
    specs = [attack_names.parse(name) for name in names]
    ours = [one for one in specs if one.attack == "autoattack" and not one.whole and not one.has_own_epsilon]
    for spec in sorted(ours):
        stages = VERSIONS[dict(spec.options).get("version", "standard")]
        for one in (subject, subject._replace(suffix="")):  # best and latest may be one
            saved = where(one, spec)
            found = files.read_arrays(saved.path, saved.setting, "broken_by") or {}
            broken_by = found.get("broken_by", np.empty(0))
            if _kind(broken_by) == ("i", (saved.count,)):
                return {name: (broken_by == ROBUST) | (broken_by > stage) for stage, name in enumerate(stages, 1)}
    return {}


def where(subject: Subject, spec: AttackSpec) -> Saved:
    """Where and under which setting an attack's resume state is stored."""
    count = len(subject.split.labels[: subject.autoattack_examples or None])
    name = [] if spec.name == "autoattack" else [spec.name]
    return Saved(subject.file(spec.file_name), json.dumps([subject.setting, count, *name]), count)


def switch(subject: Subject, spec: AttackSpec) -> None:
    """Moves the state of another number of images aside, which would be overwritten, and that of this number back."""
    saved, there = where(subject, spec), None
    with suppress(ValueError, TypeError, IndexError):  # of another version
        there = int(json.loads(aside.read_setting(saved.path) or "")[1])
    if there == saved.count:
        return
    if there is not None:
        saved.path.replace(subject.file(f"{spec.file_name}-{there}"))
    if (mine := subject.file(f"{spec.file_name}-{saved.count}")).exists():
        mine.replace(saved.path)


def save(saved: Saved, state: ResumeState, spent: float = 0.0) -> None:
    """Writes the resume state, atomically, with the seconds `spent` so far."""
    files.write_arrays_atomically(saved.path, {"setting": saved.setting, "seconds": spent, **state._asdict()})


def seconds(saved: Saved) -> float:
    """What a resume state took so far; 0 without one, or if an earlier version wrote it."""
    spent = (files.read_arrays(saved.path, saved.setting, "seconds") or {}).get("seconds", np.zeros(()))
    return float(spent) if _kind(spent) == ("f", ()) else 0.0


def load(saved: Saved) -> ResumeState | None:
    """The resume state saved for the same setting, if any that is whole and of this form.

    A state with another form is one with other random numbers: before they belonged to an example, it had a cursor.
    """
    arrays = files.read_arrays(saved.path, saved.setting)
    if arrays is None or arrays.keys() - {"seconds"} != set(ResumeState._fields):
        return None
    arrays.pop("seconds", None)
    each = (saved.count,)
    expected = dict.fromkeys(ResumeState._fields, ("i", ())) | dict.fromkeys(("attempts", "broken_by"), ("i", each))
    if {name: _kind(array) for name, array in arrays.items()} != expected | {"adversarial": ("f", each)}:
        return None
    return ResumeState(**{name: value if value.ndim else int(value) for name, value in arrays.items()})


def _kind(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    return array.dtype.kind, array.shape[:1]
