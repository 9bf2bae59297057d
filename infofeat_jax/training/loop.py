"""The training loop: compiled steps, then validation, early stopping and a checkpoint after each epoch."""

import hashlib
import pathlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple, NoReturn

import jax
import optax
from jax.sharding import Mesh

from infofeat_jax.data import Split
from infofeat_jax.data.batches import batch_indices, steps_per_epoch
from infofeat_jax.runtime import console, devices, files, processes, signals
from infofeat_jax.training import checkpoint, health, records
from infofeat_jax.training.state import State
from infofeat_jax.types import PRNGKey, Stopped

AHEAD = 4  # steps that may be queued on the device: few, so that an interrupted run stops soon

Step = Callable[..., tuple[State, dict]]  # compiled: (state, batch, key) -> (state, metrics)
Validation = Callable[[State], float]  # accuracy on the validation images; may raise Stopped


class Settings(NamedTuple):
    """The settings of the loop, from a configuration."""

    batch_size: int
    num_epochs: int
    seed: int = 0  # of the order of the examples
    log_every: int = 20  # steps
    max_loss: float = 1e4
    skip_batches: int = 0
    keep: int = 2  # newest checkpoints, besides the best
    tensorboard: bool = False


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

    checkpoints: checkpoint.Checkpoints
    write: records.Write
    show: Callable
    skipped: frozenset[int]  # steps whose batches are skipped


def train(training: Training) -> State:
    """Trains to completion, from the newest checkpoint if there is one; returns the final state.

    Raises Stopped when interrupted, RunFailed when the loss is non-finite or too large, or the disk is full.
    """
    while True:
        try:
            return train_on(training)
        except health.UnsoundStep as unsound:
            skip(training, unsound)


def train_on(training: Training) -> State:
    """Trains from the newest checkpoint to completion."""
    workdir, settings, active = training.workdir, training.settings, processes.is_writer()
    total = training.total
    with checkpoint.opened(workdir, settings.keep) as checkpoints:
        state = checkpoint.restore_newest(checkpoints, training.like)
        state = training.initial() if state is None else state
        start = int(state.step)
        if active:
            records.rewind(workdir / "metrics.jsonl", start)
            describe(training, state, start)
        with (
            records.records(workdir, active=active, tensorboard=settings.tensorboard) as write,
            console.progress(total, start, active=active and start < total) as show,
        ):
            reporting = Reporting(checkpoints, write, show, health.skipped(workdir))
            if start and start % training.steps_per_epoch == 0 and start not in checkpoints.epochs.all_steps():
                finish_epoch(training, reporting, state, start, 0.0)  # interrupted during validation
            while start < total:
                state = train_epoch(training, reporting, state, start)
                start = int(state.step)
    return state


def train_epoch(training: Training, reporting: Reporting, state: State, start: int) -> State:
    """Takes the steps from `start` to the end of the epoch, then validates and saves a checkpoint."""
    settings = training.settings
    end = (start // training.steps_per_epoch + 1) * training.steps_per_epoch
    began, due, recent = time.perf_counter(), [], []  # (step, metrics): due for reporting, and newer ones
    for step in range(start, end):
        if signals.requested():
            report_steps(training, reporting, due, start, began)
            health.check(jax.device_get(recent), settings.max_loss)
            interrupt(training, reporting, state, time.perf_counter() - began)
        if step in reporting.skipped:
            state = state._replace(step=state.step + 1)
            continue
        state, values = training.step(state, load_batch(training, step), training.key)
        recent.append((step + 1, values))
        if (step + 1) % settings.log_every == 0:
            report_steps(training, reporting, due, start, began)  # earlier steps: the device stays busy meanwhile
            due, recent = recent, []
        if len(recent) >= AHEAD:
            jax.block_until_ready(recent[-AHEAD])
    for steps in (due, recent):
        report_steps(training, reporting, steps, start, began)
    finish_epoch(training, reporting, state, end, time.perf_counter() - began)
    return state


def load_batch(training: Training, step: int):
    """(images, labels) of a step, placed on the devices."""
    rows = batch_rows(training, step)
    return devices.shard(training.mesh, (training.data.images[rows], training.data.labels[rows]))


def batch_rows(training: Training, step: int):
    """The indices of a step's examples."""
    settings = training.settings
    return batch_indices(settings.seed, step, len(training.data.labels), settings.batch_size)


def report_steps(
    training: Training, reporting: Reporting, recent: list[tuple[int, dict]], start: int, began: float
) -> None:
    """Waits for the steps' metrics, checks them, logs the last and updates the progress bar; `start`: of the rate.

    Raises UnsoundStep, so that no unsound state is checkpointed.
    """
    if not recent:
        return
    settings = training.settings
    recent = jax.device_get(recent)
    health.check(recent, settings.max_loss)
    step, values = recent[-1]
    values = {name: float(value) for name, value in values.items()}
    rate = (step - start) * settings.batch_size / (time.perf_counter() - began)
    learning_rate = float(training.schedule(step - 1))
    reporting.write(step, {**values, "images_per_second": round(rate, 2), "learning_rate": learning_rate})
    epoch = -(-step // training.steps_per_epoch)
    reporting.show(step, f"epoch {epoch}/{settings.num_epochs}  {rate:.0f} images/s  loss {values['loss']:.3f}")


def interrupt(training: Training, reporting: Reporting, state: State, seconds: float) -> NoReturn:
    """Saves the current state, and raises Stopped."""
    step, checkpoints = int(state.step), reporting.checkpoints
    if step and step not in {*checkpoints.epochs.all_steps(), *checkpoints.interrupted.all_steps()}:
        checkpoint.save(checkpoints.interrupted, step, state)
        reporting.write(step, {"interrupted": True, "epoch_seconds": round(seconds, 2)})
    for manager in checkpoints:
        checkpoint.finish(manager)
    total = training.total
    raise Stopped(f"stopped at step {step} of {total}; the state is saved: the same command resumes from there")


def finish_epoch(training: Training, reporting: Reporting, state: State, step: int, seconds: float) -> None:
    """Validates, logs, and starts saving a checkpoint."""
    try:
        rates = {name: validate(state) for name, validate in training.validations.items()}
    except Stopped:
        interrupt(training, reporting, state, seconds)
    epoch, of = step // training.steps_per_epoch, training.settings.num_epochs
    note = f"{training.robust_name} {rates['robust']:.1%}"
    text = f"epoch {epoch}/{of}  validation: clean {rates['clean']:.1%}, {note}"
    values = {f"validation_{name}_accuracy": rate for name, rate in rates.items()}
    if training.judge == "robust" and health.has_collapsed(rates, earlier_records(training), training.num_classes):
        values["catastrophic_overfitting"] = True
        text += "  CATASTROPHIC OVERFITTING: robust accuracy has collapsed"
    reporting.write(step, {"epoch": epoch, **values, "epoch_seconds": round(seconds, 2)})
    checkpoint.save(reporting.checkpoints.epochs, step, state, rates[training.judge])
    reporting.show(step, f"epoch {epoch}/{of}", f"{text}  ({seconds:.0f} s)", note)


def earlier_records(training: Training) -> list[dict]:
    """The records in metrics.jsonl so far."""
    return records.read(training.workdir / "metrics.jsonl")


def skip(training: Training, unsound: health.UnsoundStep) -> None:
    """Records the batch of the unsound step as one to skip. Raises RunFailed if no (further) batch may be skipped."""
    rows = batch_rows(training, unsound.step - 1)
    batch = {
        "step": unsound.step,
        "epoch": (unsound.step - 1) // training.steps_per_epoch + 1,
        "images": hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12],
    }
    last, settings = checkpoint.latest_step(training.workdir), training.settings
    limits = {"max_loss": settings.max_loss, "skip_batches": settings.skip_batches}
    health.skip(training.workdir, unsound, batch, last=last, **limits)


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
