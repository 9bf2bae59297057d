"""The training loop: one compiled update a step; validation, early stopping and a checkpoint an epoch."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from clu import parameter_overview

from infofeat_jax.data.batches import batch_indices
from infofeat_jax.evaluation import accuracy
from infofeat_jax.experiment import Run, State, create_state, describe_state
from infofeat_jax.runtime import console, devices, files, memory, processes, signals
from infofeat_jax.training import checkpoint, health, records
from infofeat_jax.training.step import update
from infofeat_jax.types import Stopped

LESS_MEMORY = "lower config.batch_size, or set config.accumulate_steps, config.remat or config.dtype=bfloat16"
AHEAD = 4  # steps that may wait for the device, so that a request to stop is heeded soon
VALIDATION_STREAM = 2**32 - 1  # apart from the steps, which fold their number into the same key


class Loop(NamedTuple):
    """What the steps of a run share: compiled functions, the root key, and where to report."""

    run: Run
    step: Callable  # (state, batch, key) -> (state, {loss, accuracy, parameter_norm})
    validations: dict[str, Callable]  # name -> compiled attack
    key: jax.Array
    skipped: frozenset[int]  # steps whose batches are left out
    checkpoints: checkpoint.Checkpoints
    write: records.Write
    show: Callable


def train(run: Run) -> State:
    """Trains the run to its end, from its newest checkpoint if it has one; returns the final state.

    Raises Stopped when asked to stop, RunFailed when the loss is no number or too large, or the disk is full.
    """
    while True:
        try:
            return train_on(run)
        except health.BadNumbers as bad:
            health.skip(run, bad)


def train_on(run: Run) -> State:
    """Trains from the newest checkpoint to the end."""
    config, active = run.config, processes.is_writer()
    total = config.num_epochs * run.steps_per_epoch
    with checkpoint.opened(run.workdir, config.checkpoint.keep) as checkpoints:
        state = checkpoint.restore_newest(checkpoints, describe_state(run))
        state = create_state(run) if state is None else state
        start = int(state.step)
        if active:
            records.rewind(run.workdir / "metrics.jsonl", start)
            describe(run, state, start, total)
        with (
            records.records(run.workdir, active=active, tensorboard=config.tensorboard) as write,
            console.progress(total, start, active=active and start < total) as show,
        ):
            loop = create_loop(run, checkpoints, write, show)
            if start and start % run.steps_per_epoch == 0 and start not in checkpoints.epochs.all_steps():
                finish_epoch(loop, state, start, 0.0)  # stopped in the validation
            while start < total:
                state = train_epoch(loop, state, start)
                start = int(state.step)
    return state


def create_loop(run: Run, checkpoints: checkpoint.Checkpoints, write: records.Write, show: Callable) -> Loop:
    """Compiles (at first use) what a run's steps and validations need."""
    step = devices.parallelize_update(partial(update, run), run.mesh, run.config.parallel)
    step = memory.checked(step, LESS_MEMORY)
    attack = accuracy.create_attack(run.config.eval.validation_attack, **accuracy.budget(run.config))
    validations = {
        "clean": accuracy.compile_attack(run.module, None, run.mesh),
        "robust": accuracy.compile_attack(run.module, attack, run.mesh),
    }
    key, skipped = jax.random.key(run.config.seed), frozenset(health.skipped(run.workdir))
    return Loop(run, step, validations, key, skipped, checkpoints, write, show)


def train_epoch(loop: Loop, state: State, start: int) -> State:
    """The steps from `start` to the end of their epoch, then validation and a checkpoint."""
    run, config = loop.run, loop.run.config
    end = (start // run.steps_per_epoch + 1) * run.steps_per_epoch
    began, due, recent = time.perf_counter(), [], []  # (step, metrics): due for reporting, and since then
    for step in range(start, end):
        if signals.requested():
            report_steps(loop, due, start, began)
            health.check(run, jax.device_get(recent))
            interrupt(loop, state, time.perf_counter() - began)
        if step in loop.skipped:
            state = state._replace(step=state.step + 1)
            continue
        rows = batch_indices(config.seed, step, len(run.data.train.labels), config.batch_size)
        batch = devices.shard(run.mesh, (run.data.train.images[rows], run.data.train.labels[rows]))
        state, values = loop.step(state, batch, loop.key)
        recent.append((step + 1, values))
        if (step + 1) % config.log_every == 0:
            report_steps(loop, due, start, began)  # of the time before: the device is not left without work meanwhile
            due, recent = recent, []
        if len(recent) >= AHEAD:
            jax.block_until_ready(recent[-AHEAD])
    for steps in (due, recent):
        report_steps(loop, steps, start, began)
    finish_epoch(loop, state, end, time.perf_counter() - began)
    return state


def report_steps(loop: Loop, recent: list[tuple[int, dict]], start: int, began: float) -> None:
    """Waits for the steps' metrics, checks them, logs the last and moves the bar; the rate counts from `start`.

    Raises BadNumbers: what is checkpointed afterwards is sound.
    """
    if not recent:
        return
    recent = jax.device_get(recent)
    health.check(loop.run, recent)
    step, values = recent[-1]
    values = {name: float(value) for name, value in values.items()}
    rate = (step - start) * loop.run.config.batch_size / (time.perf_counter() - began)
    learning_rate = float(loop.run.schedule(step - 1))
    loop.write(step, {**values, "images_per_second": round(rate, 2), "learning_rate": learning_rate})
    epoch = -(-step // loop.run.steps_per_epoch)
    loop.show(step, f"epoch {epoch}/{loop.run.config.num_epochs}  {rate:.0f} images/s  loss {values['loss']:.3f}")


def interrupt(loop: Loop, state: State, seconds: float) -> None:
    """Saves the state where it is, and raises Stopped."""
    step = int(state.step)
    if step and step not in {*loop.checkpoints.epochs.all_steps(), *loop.checkpoints.interrupted.all_steps()}:
        checkpoint.save(loop.checkpoints.interrupted, step, state)
        loop.write(step, {"interrupted": True, "epoch_seconds": round(seconds, 2)})
    for manager in loop.checkpoints:
        checkpoint.finish(manager)
    total = loop.run.config.num_epochs * loop.run.steps_per_epoch
    raise Stopped(f"stopped at step {step} of {total}; the state is saved: the same command goes on from there")


def finish_epoch(loop: Loop, state: State, step: int, seconds: float) -> None:
    """Validates, logs, and starts saving a checkpoint."""
    try:
        rates = {name: validate(loop, one_batch, state) for name, one_batch in loop.validations.items()}
    except Stopped:
        interrupt(loop, state, seconds)
    trained_on = "clean" if loop.run.method.attack is None else "robust"
    epoch, config = step // loop.run.steps_per_epoch, loop.run.config
    text = (
        f"epoch {epoch}/{config.num_epochs}  validation: clean {rates['clean']:.1%},"
        f" {config.eval.validation_attack} {rates['robust']:.1%}"
    )
    values = {f"validation_{name}_accuracy": rate for name, rate in rates.items()}
    if health.has_collapsed(loop.run, rates):
        values["catastrophic_overfitting"] = True
        text += "  CATASTROPHIC OVERFITTING: robust accuracy has collapsed"
    loop.write(step, {"epoch": epoch, **values, "epoch_seconds": round(seconds, 2)})
    checkpoint.save(loop.checkpoints.epochs, step, state, rates[trained_on])  # early stopping judges by this
    note = f"{config.eval.validation_attack} {rates['robust']:.1%}"
    loop.show(step, f"epoch {epoch}/{config.num_epochs}", f"{text}  ({seconds:.0f} s)", note)


def validate(loop: Loop, one_batch: Callable, state: State) -> float:
    """Accuracy on the validation images; the same random starts each epoch."""
    key = jax.random.fold_in(loop.key, VALIDATION_STREAM)
    size = loop.run.config.eval.batch_size
    parts = accuracy.correct(one_batch, loop.run.mesh, state.variables, key, loop.run.data.validation, size)
    return float(np.concatenate(list(parts)).mean())


def describe(run: Run, state: State, start: int, total: int) -> None:
    """Says what is about to run, and writes the table of parameters."""
    overview = parameter_overview.get_parameter_overview(state.params)
    files.write_atomically(run.workdir / "parameters.txt", overview + "\n")
    count = parameter_overview.count_parameters(state.params)
    what = f"continuing at step {start} of" if start else "training for"
    done = "finished already;" if start >= total else f"{what} {total} steps of {run.config.batch_size} images;"
    print(
        f"{run.config.method.name}, {run.config.model.name} ({count:,} parameters), {run.data.name}: {done}"
        f" {jax.device_count()} {jax.devices()[0].device_kind} device(s); everything goes to {run.workdir}"
    )
