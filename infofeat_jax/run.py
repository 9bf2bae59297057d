"""A run of an experiment: training, evaluation, and the results that it writes."""

import json
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import jax
from jax.tree_util import Partial
from jaxtyping import PyTree
from ml_collections import ConfigDict

from infofeat_jax import checks, streams, weights
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.data import Split
from infofeat_jax.evaluation import aside, attack_names, evaluate
from infofeat_jax.evaluation.subject import Source, Subject, digest
from infofeat_jax.experiment import Experiment
from infofeat_jax.report import collect, terminal
from infofeat_jax.runtime import devices, files, lock, memory, processes
from infofeat_jax.training import checkpoint, loop, records, validation
from infofeat_jax.training.state import State
from infofeat_jax.types import InUse, InvalidInput

SUFFIXES = {"best": "", "latest": "_latest"}  # of a checkpoint's result files


def train(experiment: Experiment) -> State:
    """Trains to completion, from the newest checkpoint if there is one. The caller owns the directory.

    Raises InvalidInput, RunFailed, Stopped.
    """
    checks.check_same_data(experiment.workdir, experiment.data, experiment.extra, to_train=True)
    if processes.is_writer():
        files.write_atomically(experiment.workdir / "config.json", configs.to_json(experiment.config))
    return loop.train(create_training(experiment))


def evaluate_run(experiment: Experiment) -> dict[str, Any]:
    """Evaluates the checkpoints as config.eval says; writes results.json and prints the table.

    Measurements of an earlier evaluation in the same setting are reused, not repeated. The caller owns the directory.
    Raises InvalidInput, Stopped.
    """
    options, workdir = experiment.config.eval, experiment.workdir
    checks.check_same_data(workdir, experiment.data, to_train=False)
    which = "best" if options.checkpoint == "both" else options.checkpoint
    state = experiments.restore(experiment, which)
    results = evaluate_state(experiment, state, which)
    if options.checkpoint == "both":
        latest = experiments.restore(experiment, "latest")
        results["latest"] = evaluate_state(experiment, latest, "latest", with_cam_images=False)
    if options.live_weights:
        results["live"] = evaluate_state(experiment, state, which, live=True, with_cam_images=False)
    results["training_seconds"] = records.training_seconds(workdir / "metrics.jsonl")
    results["finished"] = is_trained(experiment)
    if options.torch_checkpoint:
        results["checkpoint"] = options.torch_checkpoint
    results |= {**experiments.facts(experiment), "config": experiment.config.to_dict()}
    if processes.is_writer():
        files.write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
        terminal.show(collect.collect_run(workdir))
    return results


@contextmanager
def own_directory(workdir: pathlib.Path) -> Iterator[None]:
    """Creates a directory, and keeps other runs out of it. All processes of a run call this, and get the same answer.

    Raises InUse, InvalidInput.
    """
    if processes.is_writer():
        workdir.mkdir(parents=True, exist_ok=True)
    with processes.held_by_writer(lock.lock(workdir), workdir, InUse(workdir, "another process")):
        yield


# Training.


def create_training(experiment: Experiment) -> loop.Training:
    """Assembles the parts of the training loop."""
    config = experiment.config
    settings = loop.Settings(
        config.batch_size, config.num_epochs, config.seed, config.log_every, config.max_loss, config.skip_batches,
        config.checkpoint.keep, config.checkpoint.every_minutes, config.eval.validate_every, config.tensorboard,
        extra=experiments.extra_in_batch(config),
    )  # fmt: skip
    return loop.Training(
        experiment.workdir, settings, experiment.data.train, experiment.data.num_classes, experiment.mesh,
        memory.checked(experiments.compile_step(experiment), experiments.LESS_MEMORY),
        streams.key(config.seed, "training"), jax.jit(experiment.schedule),
        partial(experiments.create_state, experiment), experiments.describe_state(experiment),
        create_validations(experiment),
        judge="clean" if experiment.method.attack is None else "robust",
        robust_name=config.eval.validation_attack,
        title=f"{config.method.name}, {config.model.name}, {experiment.data.name}",
        extra=experiment.extra,
    )  # fmt: skip


def create_validations(experiment: Experiment) -> dict[str, loop.Validation]:
    """The functions that classify the held-out images, clean and under config.eval.validation_attack."""
    config = experiment.config
    spec = attack_names.parse(config.eval.validation_attack)
    return validation.create(
        experiment.module, attack_names.create(spec, experiments.create_budget(config)), experiment.data.validation,
        experiment.mesh, seed=config.seed, batch_size=config.eval.batch_size,
    )  # fmt: skip


def is_trained(experiment: Experiment) -> bool:
    """Whether training has been completed."""
    return checkpoint.latest_step(experiment.workdir) == experiment.total_steps


# Evaluation.


def evaluate_state(
    experiment: Experiment, state: State, which: str, *, live: bool = False, with_cam_images: bool = True
) -> dict[str, Any]:
    """The results of `state`, the "best" or "latest" checkpoint; each has result files of its own.

    `live`: of the weights that training updates, where there is an average of them.
    """
    options = experiment.config.eval
    variables, suffix = (state.variables, "_live") if live else (state.evaluated, "")
    subject = create_subject(experiment, variables, SUFFIXES[which] + suffix)
    if not with_cam_images:
        subject = subject._replace(cam_images=0)
    aside.switch(subject)
    results = evaluate.evaluate(subject, options.attacks, options.distances, options.evaluators)
    return results | {"checkpoint": which, "checkpoint_step": int(state.step)}


def create_subject(experiment: Experiment, variables: PyTree, suffix: str = "") -> Subject:
    """The subject of an evaluation: these weights, with the settings of config.eval."""
    config, options = experiment.config, experiment.config.eval
    split = Split(*(array[: options.num_examples or None] for array in experiment.data.test))
    return Subject(
        Partial(experiment.module.apply, variables), split, experiment.data.num_classes, experiment.mesh,
        experiments.create_budget(config), experiment.workdir,
        describe_setting(experiment, variables, len(split.labels)),
        source=cache(partial(load_source, experiment)),
        seed=config.seed, batch_size=options.batch_size, autoattack_examples=options.autoattack_examples,
        probe_examples=options.probe_examples, cam_images=options.cam_images,
        class_names=experiment.data.class_names, suffix=suffix,
    )  # fmt: skip


def describe_setting(experiment: Experiment, variables: PyTree, count: int) -> str:
    """Everything that an outcome depends on except the attack: outcomes of the same setting are comparable."""
    config = experiment.config
    fields = {"weights": digest(variables), **experiments.create_budget(config)._asdict()}
    model = {name: value for name, value in config.model.to_dict().items() if name != "activation" or value}
    if any(model.get(name) for name in ("activation", "mean", "std", "options")):
        fields["model"] = configs.to_json(ConfigDict(model))
    fields |= {"seed": config.seed, "num_examples": count, "batch_size": config.eval.batch_size}
    if config.data.image_size:
        fields["image_size"] = config.data.image_size
    return json.dumps(fields | {"dtype": config.dtype, "data": experiment.data.name})


def load_source(experiment: Experiment, name: str) -> Source:
    """The source model of transfer attacks on `experiment`: the best checkpoint of its sibling run `name`.

    Raises InvalidInput unless that run has been trained to completion, on the same data.
    """
    config = check_source(experiment.workdir, name)
    if config.data.name != experiment.config.data.name:
        raise InvalidInput(
            f"attacks crafted on {name!r}: it was trained on {config.data.name}, not on {experiment.config.data.name}"
        )
    module, variables = weights.load(
        source_directory(experiment.workdir, name),
        images=(experiment.image_shape, experiment.data.num_classes),
    )
    forward = Partial(module.apply, devices.replicate(experiment.mesh, variables))
    return Source(forward, digest(variables))


def check_source(workdir: pathlib.Path, name: str) -> ConfigDict:
    """The configuration of the run that transfer attacks are crafted on.

    Raises InvalidInput unless that run exists and has been trained to completion.
    """
    directory = source_directory(workdir, name)
    stored = weights.read_config(directory)
    if stored is None:
        raise InvalidInput(f"attacks crafted on {name!r}: no run in {directory}: train it first")
    config = ConfigDict(stored)
    if not weights.is_converted(stored) and not has_ended(directory, config.num_epochs):
        raise InvalidInput(
            f"attacks crafted on {name!r}: the run in {directory} has not been trained to completion"
            f" ({config.num_epochs} epochs): train it first"
        )
    return config


def has_ended(directory: pathlib.Path, num_epochs: int) -> bool:
    """Whether the run in `directory` has been trained for `num_epochs`. Raises InvalidInput for damaged checkpoints."""
    ended = {r["step"] for r in records.read(directory / "metrics.jsonl") if r.get("epoch") == num_epochs}
    return bool(ended) and checkpoint.latest_step(directory) in ended


def source_directory(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """The directory of the run `name`, a path relative to the parent of `workdir`."""
    return workdir.absolute().parent / name


# Runs that are already finished.


def is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether `workdir` holds a trained run with the results of `config`, from the current weights of its sources."""
    try:
        results = files.read_json(workdir / "results.json") or {}
        stored, wanted = configs.complete(results.get("config")), config.to_dict()
    except InvalidInput:  # damaged: counts as absent
        return False
    if json.dumps(stored, sort_keys=True) != json.dumps(wanted, sort_keys=True) or not results.get("finished"):
        return False
    sources = results.get("sources") or {}
    specs = map(attack_names.parse, config.eval.attacks)
    return all(is_current(workdir, spec.name, sources.get(spec.name)) for spec in specs)


def is_current(workdir: pathlib.Path, attack: str, source: str | None) -> bool:
    """Whether a transfer attack was crafted on the current weights of its source; True for other attacks."""
    spec = attack_names.parse(attack)
    if not spec.source:
        return True
    try:
        return source == digest(weights.read_variables(source_directory(workdir, spec.source), "best"))
    except InvalidInput:
        return False
