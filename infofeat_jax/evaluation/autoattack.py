"""AutoAttack, or one of its stages, on a trained model: an interrupted evaluation resumes where it stopped."""

import json
import pathlib
import time
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from infofeat_jax import streams, threat
from infofeat_jax.attacks.autoattack import ROBUST, VERSIONS, Plan, ResumeState, plan, steps
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.attack_names import AttackSpec
from infofeat_jax.evaluation.subject import SAVE_EVERY, Subject, Tell
from infofeat_jax.runtime import devices, files, processes, signals
from infofeat_jax.types import Stopped


class Saved(NamedTuple):
    """Where the resume state of an attack is stored, and the setting that it must match."""

    path: pathlib.Path
    setting: str
    count: int  # of images


def measure(subject: Subject, name: str, tell: Tell) -> Bool[np.ndarray, " n"]:
    """Which of the first `autoattack_examples` (0: all) images remain correctly classified under the attack.

    The resume state, with the adversarial images found, is stored in autoattack.npz (for a stage: apgd-t.npz), and is
    used only by an evaluation with the same setting and number of examples. With several processes, each computes
    everything on its own devices and obtains the same result.
    """
    spec = attack_names.parse(name)
    count = subject.autoattack_examples or None
    images, labels = np.asarray(to_unit(subject.split.images[:count])), subject.split.labels[:count]
    stages = create_plan(subject, spec, images.shape[1:3])
    saved, last = where(subject, spec), time.monotonic()
    state = load(saved)
    processes.barrier(f"{name}: resume state read")  # before one process saves the next
    mesh, forward = devices.own_part(subject.mesh, subject.forward)  # the loop over survivors runs on the host
    batches = steps(
        stages, forward, streams.key(subject.seed, "autoattack"), images, labels,
        batch_size=subject.batch_size, state=state, place=partial(devices.place, mesh),
    )  # fmt: skip
    for progress, state in batches:
        tell(f"{progress.stage}, {progress.survivors} of {progress.examples} left", progress.done)
        stop = signals.requested()
        if processes.is_writer() and (stop or time.monotonic() - last > SAVE_EVERY):
            save(saved, state)
            last = time.monotonic()
        if stop:
            raise Stopped(f"stopped during {name}; its progress is saved: the same command resumes from there")
    if processes.is_writer():
        save(saved, state)
    return state.broken_by == ROBUST


def create_plan(subject: Subject, spec: AttackSpec, image_size: tuple[int, int]) -> Plan:
    """The stages that a name stands for, in the evaluation's threat model or with the name's own epsilon."""
    options = attack_names.in_images_units(spec)
    model = threat.threat(subject.budget.norm, options.pop("epsilon", subject.budget.epsilon))
    if spec.attack == "autoattack":
        return plan(model, subject.num_classes, image_size, version=options.pop("version", "standard"))
    return plan(model, subject.num_classes, image_size, attacks=(spec.attack,), options=options)


def after_stages(subject: Subject) -> dict[str, Bool[np.ndarray, " n"]]:
    """{stage: which examples were still correct after it} of standard AutoAttack, if it was measured."""
    spec = AttackSpec("autoattack")
    state = load(where(subject, spec)) or load(where(subject._replace(suffix=""), spec))  # best and latest may be one
    stages = enumerate(VERSIONS["standard"] if state else (), 1)
    return {name: (state.broken_by == ROBUST) | (state.broken_by > stage) for stage, name in stages}


def where(subject: Subject, spec: AttackSpec) -> Saved:
    """Where and under which setting an attack's resume state is stored."""
    count = len(subject.split.labels[: subject.autoattack_examples or None])
    name = [] if spec.name == "autoattack" else [spec.name]
    return Saved(subject.file(spec.file_name), json.dumps([subject.setting, count, *name]), count)


def save(saved: Saved, state: ResumeState) -> None:
    """Writes the resume state, atomically."""
    files.write_arrays_atomically(saved.path, {"setting": saved.setting, **state._asdict()})


def load(saved: Saved) -> ResumeState | None:
    """The resume state saved for the same setting, if any that is whole."""
    arrays = files.read_arrays(saved.path, saved.setting)
    if arrays is None or arrays.keys() != set(ResumeState._fields):
        return None
    kinds = {name: (arrays[name].dtype.kind, np.shape(arrays[name])[:1]) for name in ResumeState._fields}
    numbers = [kinds[name] == ("i", ()) for name in ("stage", "cursor", "queries")]
    if not all(numbers) or (kinds["broken_by"], kinds["adversarial"]) != (("i", (saved.count,)), ("f", (saved.count,))):
        return None
    return ResumeState(**{name: value if value.ndim else int(value) for name, value in arrays.items()})
