"""AutoAttack on a trained model, its standing saved on the way: a stopped evaluation goes on where it was."""

import json
import pathlib
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Bool

from infofeat_jax import config as configs
from infofeat_jax import threat
from infofeat_jax.attacks.autoattack import ROBUST, VERSIONS, Progress, Standing, plan, steps
from infofeat_jax.data import Split
from infofeat_jax.experiment import Run
from infofeat_jax.runtime import devices, files, processes, signals
from infofeat_jax.types import Stopped

FILE = "autoattack.npz"
SAVE_EVERY = 30.0  # seconds


def attack(
    run: Run, variables, split: Split, evaluation: str, on_progress: Callable[[Progress], None]
) -> Bool[np.ndarray, " n"]:
    """Which of the first config.eval.autoattack_examples (0: all) of `split` standard AutoAttack leaves correct.

    The standing lies in autoattack.npz beside the results, with the adversarial images found. It is taken up
    again by the same `evaluation` (a text that tells it from others) of as many examples only. Each of several
    processes computes all of it on its own devices, and finds the same.
    """
    config = run.config
    images, labels = (array[: config.eval.autoattack_examples or None] for array in split)
    images = images.astype(np.float32) / 255
    model = threat.threat(config.attack.norm, config.attack.epsilon / configs.LEVELS)
    stages = plan(model, run.data.num_classes, images.shape[1:3])
    setting = describe_setting(evaluation, len(labels))
    path, saved = run.workdir / FILE, time.monotonic()
    standing = load(path, setting)
    processes.barrier("AutoAttack's standing read")  # before one process saves the next
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    mesh, variables = devices.own_part(run.mesh, variables)  # the loop over survivors runs on the host
    batches = steps(
        stages, Partial(run.module.apply, variables), key, images, labels,
        batch_size=config.eval.batch_size, standing=standing, place=partial(devices.place, mesh),
    )  # fmt: skip
    for progress, standing in batches:
        on_progress(progress)
        stop = signals.requested()
        if processes.is_writer() and (stop or time.monotonic() - saved > SAVE_EVERY):
            save(path, setting, standing)
            saved = time.monotonic()
        if stop:
            raise Stopped("stopped in AutoAttack; its standing is saved: the same command goes on from there")
    if processes.is_writer():
        save(path, setting, standing)
    return standing.broken_by == ROBUST


def after_stages(workdir: pathlib.Path, evaluation: str, count: int) -> dict[str, Bool[np.ndarray, " n"]]:
    """{stage: which of `count` examples were still correct after it} of a finished evaluation.

    Empty where autoattack.npz holds another evaluation's standing.
    """
    standing = load(workdir / FILE, describe_setting(evaluation, count))
    names = VERSIONS["standard"] if standing else ()
    stages = enumerate(names, 1)
    return {name: (standing.broken_by == ROBUST) | (standing.broken_by > stage) for stage, name in stages}


def describe_setting(evaluation: str, count: int) -> str:
    """What a standing has to agree in."""
    return json.dumps([evaluation, count])


def save(path: pathlib.Path, setting: str, standing: Standing) -> None:
    """Replaces the file as a whole."""
    files.write_arrays_atomically(path, {"setting": setting, **standing._asdict()})


def load(path: pathlib.Path, setting: str) -> Standing | None:
    """The standing saved for the same setting, if any."""
    saved = files.read_arrays(path, setting)
    if saved is None or saved.keys() != set(Standing._fields):
        return None
    return Standing(**{name: value if value.ndim else int(value) for name, value in saved.items()})
