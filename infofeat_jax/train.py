"""The training loop: one compiled update a step; validation, early stopping and a checkpoint an epoch."""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview

from infofeat_jax import accuracy, checkpoint, metrics, parallel
from infofeat_jax.data.batches import batch_indices
from infofeat_jax.run import Run, State, create_state
from infofeat_jax.update import update

VALIDATION_STREAM = 2**32 - 1  # apart from the steps, which fold their number into the same key


class Loop(NamedTuple):
    """What the steps of a run share: compiled functions, the root key, and where to report."""

    run: Run
    step: Callable  # (state, batch, key) -> (state, {loss, accuracy})
    validations: dict[str, Callable]  # name -> compiled attack
    key: jax.Array
    checkpoints: ocp.CheckpointManager
    write: metrics.Write
    show: Callable


def train(run: Run) -> State:
    """Trains the run to its end, from its newest checkpoint if it has one; returns the final state."""
    config, active = run.config, parallel.is_writer()
    total = config.num_epochs * run.steps_per_epoch
    with checkpoint.manager(run.workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
        state = create_state(run)
        if (latest := checkpoints.latest_step()) is not None:
            state = checkpoint.restore(checkpoints, latest, state)
        start = int(state.step)
        if active:
            metrics.rewind(run.workdir / "metrics.jsonl", start)
            describe(run, state, start, total)
        with (
            metrics.records(run.workdir, active=active, tensorboard=config.tensorboard) as write,
            metrics.progress(total, start, active=active and start < total) as show,
        ):
            loop = create_loop(run, checkpoints, write, show)
            while start < total:
                state = train_epoch(loop, state, start)
                start = int(state.step)
    return state


def create_loop(run: Run, checkpoints: ocp.CheckpointManager, write: metrics.Write, show: Callable) -> Loop:
    """Compiles (at first use) what a run's steps and validations need."""
    step = parallel.parallelize_update(partial(update, run), run.mesh, run.config.parallel)
    attack = accuracy.create_attack(run.config.eval.validation_attack, **accuracy.budget(run.config))
    validations = {
        "clean": accuracy.compile_attack(run.module, None, run.mesh),
        "robust": accuracy.compile_attack(run.module, attack, run.mesh),
    }
    return Loop(run, step, validations, jax.random.key(run.config.seed), checkpoints, write, show)


def train_epoch(loop: Loop, state: State, start: int) -> State:
    """The steps from `start` to the end of their epoch, then validation and a checkpoint."""
    run, config = loop.run, loop.run.config
    end = (start // run.steps_per_epoch + 1) * run.steps_per_epoch
    began, pending = time.perf_counter(), None
    for step in range(start, end):
        rows = batch_indices(config.seed, step, len(run.data.train.labels), config.batch_size)
        batch = parallel.shard(run.mesh, (run.data.train.images[rows], run.data.train.labels[rows]))
        state, values = loop.step(state, batch, loop.key)
        if (step + 1) % config.log_every == 0 or step + 1 == end:
            if pending is not None:  # of the time before: the device is not left without work meanwhile
                report_step(loop, *pending, start, began)
            pending = step + 1, values
    report_step(loop, *pending, start, began)
    finish_epoch(loop, state, end, time.perf_counter() - began)
    return state


def report_step(loop: Loop, step: int, values: dict, start: int, began: float) -> None:
    """Waits for one step's metrics, logs them and moves the bar; the rate counts from step `start` at `began`."""
    values = {name: float(value) for name, value in values.items()}
    rate = (step - start) * loop.run.config.batch_size / (time.perf_counter() - began)
    learning_rate = float(loop.run.schedule(step - 1))
    loop.write(step, {**values, "images_per_second": round(rate, 2), "learning_rate": learning_rate})
    epoch = -(-step // loop.run.steps_per_epoch)
    loop.show(step, f"epoch {epoch}/{loop.run.config.num_epochs}  {rate:.0f} images/s  loss {values['loss']:.3f}")


def finish_epoch(loop: Loop, state: State, step: int, seconds: float) -> None:
    """Validates, logs, and starts saving a checkpoint."""
    accuracies = {name: validate(loop, one_batch, state) for name, one_batch in loop.validations.items()}
    score = accuracies["clean" if loop.run.method.attack is None else "robust"]  # what early stopping judges by
    checkpoint.save(loop.checkpoints, step, state, score)
    epoch, config = step // loop.run.steps_per_epoch, loop.run.config
    values = {f"validation_{name}_accuracy": value for name, value in accuracies.items()}
    loop.write(step, {"epoch": epoch, **values, "epoch_seconds": round(seconds, 2)})
    text = (
        f"epoch {epoch}/{config.num_epochs}  validation: clean {accuracies['clean']:.1%},"
        f" {config.eval.validation_attack} {accuracies['robust']:.1%}"
    )
    loop.show(step, text, f"{text}  ({seconds:.0f} s)")


def validate(loop: Loop, one_batch: Callable, state: State) -> float:
    """Accuracy on the validation images; the same random starts each epoch."""
    key = jax.random.fold_in(loop.key, VALIDATION_STREAM)
    size = loop.run.config.eval.batch_size
    parts = accuracy.correct(one_batch, loop.run.mesh, state.variables, key, loop.run.data.validation, size)
    return float(np.concatenate(list(parts)).mean())


def describe(run: Run, state: State, start: int, total: int) -> None:
    """Says what is about to run, and writes the table of parameters."""
    overview = parameter_overview.get_parameter_overview(state.params)
    metrics.write_atomically(run.workdir / "parameters.txt", overview + "\n")
    count = parameter_overview.count_parameters(state.params)
    what = f"continuing at step {start} of" if start else "training for"
    done = "finished already;" if start >= total else f"{what} {total} steps of {run.config.batch_size} images;"
    print(
        f"{run.config.method.name}, {run.config.model.name} ({count:,} parameters), {run.data.name}: {done}"
        f" {jax.device_count()} {jax.devices()[0].device_kind} device(s); everything goes to {run.workdir}"
    )
