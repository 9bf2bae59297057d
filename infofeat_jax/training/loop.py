"""The training loop: compiled steps, after each epoch validation and early stopping, and checkpoints when they are due.

Steps and batches of the validation are handed to the devices ahead (`ahead.Ahead`), without waiting at the end of an
epoch: the next epoch's first steps are queued while the validation is computed, on a copy of the state.
"""

import hashlib
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from infofeat_jax.data import Split
from infofeat_jax.data.batches import Rows, pooled_indices, steps_per_epoch, take
from infofeat_jax.runtime import console, devices, files, processes, signals
from infofeat_jax.training import checkpoint, health, records
from infofeat_jax.training.ahead import Ahead
from infofeat_jax.training.checkpoint import Snapshot
from infofeat_jax.training.keeper import Keeper
from infofeat_jax.training.pace import Pace
from infofeat_jax.training.state import State, parameter_norm
from infofeat_jax.types import PRNGKey, Stopped

Step = Callable[..., tuple[State, dict]]  # compiled: (state, batch, key) -> (state, metrics)
# Hands batches to the devices; yields (which images are correct, which are no padding). May raise Stopped.
Validation = Callable[[State], Iterator[tuple[jax.Array, np.ndarray]]]


class Settings(NamedTuple):
    """The settings of the loop, from a configuration."""

    batch_size: int
    num_epochs: int
    seed: int = 0  # of the order of the examples
    log_every: int = 20  # steps
    max_loss: float = 1e4
    skip_batches: int = 0
    keep: int = 2  # newest checkpoints, besides the best
    every_minutes: float = 0.0  # between checkpoints, at ends of epochs; 0: after each
    validate_every: int = 1  # epochs
    tensorboard: bool = False
    extra: int = 0  # examples of a batch that are of the second pool


class Training(NamedTuple):
    """The parts of the loop, as plain values: what is trained, on what data, and how."""

    workdir: pathlib.Path
    settings: Settings
    data: Split
    num_classes: int
    mesh: Mesh
    step: Step
    key: PRNGKey  # of all steps
    schedule: optax.Schedule  # for logging
    initial: Callable[[], State]
    like: State  # shapes, types and places of the state's arrays
    validations: Mapping[str, Validation]  # "clean" and "robust"
    judge: str  # the validation whose accuracy decides early stopping
    robust_name: str = "robust"  # display name of the validation attack
    title: str = ""  # description of the run, for display
    extra: Split | None = None  # a second pool of training examples

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in an epoch."""
        return steps_per_epoch(len(self.data.labels), self.settings.batch_size)

    @property
    def total(self) -> int:
        """Total number of steps."""
        return self.settings.num_epochs * self.steps_per_epoch


class Reporting(NamedTuple):
    """Where one pass of the loop writes its output, and which batches it skips."""

    keeper: Keeper
    write: records.Write
    show: Callable
    skipped: frozenset[int]  # steps whose batches are skipped
    epochs: list[dict]  # records of the epochs so far
    pace: Pace


class Stretch:
    """The steps from one validation to the next, and the time that they take."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end, self.began, self.seconds = start, end, time.perf_counter(), 0.0

    def begin(self) -> None:
        """To be called when all work before is done."""
        self.began = time.perf_counter()

    def stop(self) -> None:
        """To be called when the steps are done."""
        self.seconds = time.perf_counter() - self.began


def train(training: Training) -> State:
    """Trains to completion, from the newest checkpoint if there is one; returns the final state.

    Raises Stopped when interrupted, RunFailed when the loss is non-finite or too large, or the disk is full.
    """
    skipped = health.skipped(training.workdir)
    processes.barrier("skipped batches read")  # before one process sets damaged checkpoints aside
    while True:
        try:
            return train_on(training, skipped)
        except health.UnsoundStep as unsound:
            skipped = skip(training, unsound, skipped)


def train_on(training: Training, skipped: frozenset[int]) -> State:
    """Trains from the newest checkpoint to completion, but for the batches of the steps `skipped`."""
    workdir, settings, active = training.workdir, training.settings, processes.is_writer()
    total = training.total
    with checkpoint.opened(workdir, settings.keep) as checkpoints:
        state = checkpoint.restore_newest(checkpoints, training.like)
        state = training.initial() if state is None else state
        start = int(state.step)
        earlier = [r for r in records.read(workdir / "metrics.jsonl") if "epoch" in r and r["step"] <= start]
        if active:
            records.rewind(workdir / "metrics.jsonl", start)
            describe(training, state, start)
        with (
            records.records(workdir, active=active, tensorboard=settings.tensorboard) as write,
            console.progress(total, start, active=active and start < total) as show,
        ):
            keeper = Keeper(checkpoints, settings.every_minutes)
            reporting = Reporting(keeper, write, show, skipped, earlier, Pace(total))
            ended = start in checkpoints.epochs.all_steps()
            return train_from(training, reporting, state, start, validated=ended)


def train_from(training: Training, reporting: Reporting, state: State, start: int, *, validated: bool) -> State:
    """Trains from step `start` to completion. `validated`: whether `start`, if it ends an epoch, has been."""
    ahead, round_steps = Ahead(), training.settings.validate_every * training.steps_per_epoch
    if start and not validated and (start % round_steps == 0 or start == training.total):
        validate(training, reporting, ahead, state, Stretch(start, start))
    while start < training.total:
        stretch = Stretch(start, min((start // round_steps + 1) * round_steps, training.total))
        ahead.then(stretch.begin)
        for step in range(start, stretch.end):
            state = take_step(training, reporting, ahead, state, step, stretch)
        ahead.then(stretch.stop)
        validate(training, reporting, ahead, state, stretch)
        start = stretch.end
    ahead.drain()
    return state


def take_step(
    training: Training, reporting: Reporting, ahead: Ahead, state: State, step: int, stretch: Stretch
) -> State:
    """Hands one step to the devices, unless its batch is skipped."""
    if signals.requested():
        interrupt(training, reporting, ahead, state, step, stretch)
    if step in reporting.skipped:
        return state._replace(step=state.step + 1)
    state, values = training.step(state, load_batch(training, step), training.key)
    if is_logged(training, step + 1):
        norm = parameter_norm(state.params)
        values = values | {"learning_rate": training.schedule(step), "parameter_norm": norm}
    ahead.push(values, partial(use_step, training, reporting, stretch, step + 1))
    return state


def is_logged(training: Training, step: int) -> bool:
    """Whether the metrics of a step (counted from 1) are logged: every few, and the last of each epoch."""
    return step % training.settings.log_every == 0 or step % training.steps_per_epoch == 0


def load_batch(training: Training, step: int):
    """(images, labels) of a step, placed on the devices."""
    return devices.shard(training.mesh, tuple(take(training.data, training.extra, batch_rows(training, step))))


def batch_rows(training: Training, step: int) -> Rows:
    """The indices of a step's examples."""
    settings, extra = training.settings, training.extra
    sizes = len(training.data.labels), 0 if extra is None else len(extra.labels)
    return pooled_indices(settings.seed, step, sizes, (settings.batch_size - settings.extra, settings.extra))


def use_step(training: Training, reporting: Reporting, stretch: Stretch, step: int, values: dict) -> None:
    """Checks the metrics of a step (counted from 1), logs some, and updates the progress bar.

    Raises UnsoundStep, so that no unsound state is checkpointed.
    """
    settings = training.settings
    health.check(step, values, settings.max_loss)
    if not is_logged(training, step):
        return
    values = {name: float(value) for name, value in values.items()}
    rate = (step - stretch.start) * settings.batch_size / (time.perf_counter() - stretch.began)
    learning_rate = values.pop("learning_rate")
    reporting.write(step, {**values, "images_per_second": round(rate, 2), "learning_rate": learning_rate})
    epoch = -(-step // training.steps_per_epoch)
    text = f"epoch {epoch}/{settings.num_epochs}  {rate:.0f} images/s  loss {values['loss']:.3f}"
    left, bound = reporting.pace.left(step, time.perf_counter())
    reporting.show(step, text, left=left, bound=bound)


def interrupt(
    training: Training, reporting: Reporting, ahead: Ahead, state: State, step: int, stretch: Stretch
) -> NoReturn:
    """Saves the current state, and raises Stopped."""
    ahead.drain()
    norm = float(parameter_norm(state.params))
    if not math.isfinite(norm):
        raise health.UnsoundStep(step, math.nan, norm)
    if reporting.keeper.interrupt(step, state):
        seconds = stretch.seconds or time.perf_counter() - stretch.began
        reporting.write(step, {"interrupted": True, "epoch_seconds": round(seconds, 2)})
    total = training.total
    raise Stopped(f"stopped at step {step} of {total}; the state is saved: the same command resumes from there")


def validate(training: Training, reporting: Reporting, ahead: Ahead, state: State, stretch: Stretch) -> None:
    """Hands the validation of a copy of the state to the devices; `finish_epoch` follows when it is done."""
    snapshot = copy(state)
    correct = {name: [] for name in training.validations}
    try:
        for name, batches in training.validations.items():
            for result, mask in batches(snapshot):
                ahead.push(result, lambda found, name=name, mask=mask: correct[name].append(found[mask]))
    except Stopped:
        interrupt(training, reporting, ahead, state, stretch.end, stretch)
    ahead.then(lambda: finish_epoch(training, reporting, snapshot, correct, stretch))


@jax.jit
def copy(state: State) -> State:
    """The same state in other memory, which the next step does not take over."""
    return jax.tree.map(jnp.copy, state)


def finish_epoch(
    training: Training, reporting: Reporting, state: State, correct: Mapping[str, list[np.ndarray]], stretch: Stretch
) -> None:
    """Logs the result of a validation, and keeps the state it is about."""
    step, rates = stretch.end, {name: float(np.concatenate(parts).mean()) for name, parts in correct.items()}
    epoch, of = step // training.steps_per_epoch, training.settings.num_epochs
    note = f"{training.robust_name} {rates['robust']:.1%}"
    text = f"epoch {epoch}/{of}  validation: clean {rates['clean']:.1%}, {note}"
    values = {"epoch": epoch} | {f"validation_{name}_accuracy": rate for name, rate in rates.items()}
    if training.judge == "robust" and health.has_collapsed(rates, reporting.epochs, training.num_classes):
        values["catastrophic_overfitting"] = True
        text += "  CATASTROPHIC OVERFITTING: robust accuracy has collapsed"
    reporting.epochs.append(values)
    reporting.write(step, {**values, "epoch_seconds": round(stretch.seconds, 2)})
    reporting.keeper.add(Snapshot(step, state, rates[training.judge]), last=step == training.total)
    reporting.pace.validate(step, time.perf_counter())
    left, bound = reporting.pace.left(step, time.perf_counter())
    reporting.show(step, f"epoch {epoch}/{of}", f"{text}  ({stretch.seconds:.0f} s)", note, left, bound)


def skip(training: Training, unsound: health.UnsoundStep, before: frozenset[int]) -> frozenset[int]:
    """Records the batch of the unsound step as one to skip; returns all of them.

    Raises RunFailed if no (further) batch may be skipped.
    """
    rows = batch_rows(training, unsound.step - 1)
    batch = {
        "step": unsound.step,
        "epoch": (unsound.step - 1) // training.steps_per_epoch + 1,
        "images": hashlib.sha256(np.concatenate([rows.own, rows.extra]).astype("<i8").tobytes()).hexdigest()[:12],
    }
    last, settings = checkpoint.latest_step(training.workdir), training.settings
    limits = {"max_loss": settings.max_loss, "skip_batches": settings.skip_batches}
    return health.skip(training.workdir, unsound, batch, before, last=last, **limits)


def describe(training: Training, state: State, start: int) -> None:
    """Prints what is about to run, and writes the table of parameters if clu is installed."""
    with suppress(ImportError):
        from clu import parameter_overview  # here: training itself does without

        overview = parameter_overview.get_parameter_overview(state.params)
        files.write_atomically(training.workdir / "parameters.txt", overview + "\n")
    parameters, total = sum(leaf.size for leaf in jax.tree.leaves(state.params)), training.total
    what = f"continuing at step {start} of" if start else "training for"
    size = training.settings.batch_size
    count = training.mesh.size
    used = f"{count}" if count == jax.device_count() else f"{count} (one for each image) of {jax.device_count()}"
    done = "already finished;" if start >= total else f"{what} {total} steps of {size} images;"
    print(
        f"{training.title} ({parameters:,} parameters): {done} {used} {jax.devices()[0].device_kind}"
        f" device(s); output goes to {training.workdir}"
    )
