"""A run: configuration, data, model and devices put together, and the state that training moves."""

import json
import os
import pathlib
import platform
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import data, methods, weights
from infofeat_jax.data.batches import steps_per_epoch
from infofeat_jax.runtime import devices
from infofeat_jax.training import checkpoint, optimizers
from infofeat_jax.types import InvalidInput


class State(NamedTuple):
    """All that training moves. With the configuration it determines the rest of the run."""

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the frozen model."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Run(NamedTuple):
    """What a configuration means on this machine."""

    config: ConfigDict
    workdir: pathlib.Path
    data: data.Dataset
    mesh: Mesh
    module: nn.Module
    method: methods.Method
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: int
    initial: weights.Variables | None = None  # of config.eval.torch_checkpoint or config.init_from

    def facts(self) -> dict:
        """What a reader needs to judge a figure."""
        device = jax.devices()[0]
        return {
            "data": self.data.name,
            "train_images": len(self.data.train.labels),
            "hardware": f"{jax.device_count()} x {device.device_kind}" + _processor(device.platform),
            "jax": jax.__version__,
        }


def create(config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset | None = None) -> Run:
    """Checks everything that can be checked without computing, then loads the data unless it is given.

    Raises InvalidInput.
    """
    devices.check_divisible("batch_size", config.batch_size, config.accumulate_steps)
    devices.check_divisible("eval.batch_size", config.eval.batch_size)
    make_method = partial(create_method, config)
    make_module = partial(weights.create, config.model.to_dict(), dtype=config.dtype, remat=config.remat)
    make_method(10), make_module(10)  # errors before the data is read
    path, initial = weights.named(config, workdir) or ("", None)
    dataset = dataset or data.load(
        config.data.name, data_dir=config.data.data_dir or None, validation_size=config.data.validation_size,
        train_size=config.data.train_size or None, test_size=config.data.test_size or None, seed=config.seed,
    )  # fmt: skip
    if initial is not None:
        weights.check_fits(path, initial, dataset.train.images.shape, dataset.num_classes, dataset.name)
    steps = steps_per_epoch(len(dataset.train.labels), config.batch_size)
    options = config.optimizer
    schedule = optimizers.step_schedule(options.learning_rate, options.milestones, options.decay, steps)
    return Run(
        config, workdir, dataset, devices.mesh(), make_module(dataset.num_classes),
        make_method(dataset.num_classes), optimizers.sgd(schedule, options.momentum, options.weight_decay), schedule,
        steps, initial,
    )  # fmt: skip


def create_method(config: ConfigDict, num_classes: int) -> methods.Method:
    """The training method of a resolved configuration, budgets converted to the images' units."""
    attack = {
        "norm": config.attack.norm,
        "epsilon": config.attack.epsilon / configs.LEVELS,
        "step_size": config.attack.step_size / configs.LEVELS,
        "num_steps": config.attack.num_steps,
    }
    options = {field: value for field, value in config.method.items() if field != "name"}
    return methods.create(config.method.name, methods.Options(num_classes, attack, **options))


def create_state(run: Run) -> State:
    """The initial state, a function of the seed alone or of the weights to start from, on all devices."""
    state = jax.jit(partial(_initial_state, run))(jax.random.key(run.config.seed))
    if run.initial is not None:
        state = state._replace(**run.initial)
    return devices.replicate(run.mesh, jax.tree.map(np.asarray, state))


def describe_state(run: Run) -> State:
    """Shapes, types and places of the state's arrays, without computing them."""
    return devices.replicated(run.mesh, jax.eval_shape(partial(_initial_state, run), jax.random.key(0)))


def _initial_state(run: Run, key) -> State:
    variables = run.module.init(key, jnp.zeros((1, *run.data.train.images.shape[1:])))
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables["batch_stats"], run.optimizer.init(params))


def restore(run: Run, which: str) -> State:
    """The state in the run's "best" or "latest" checkpoint. Raises InvalidInput if there is none or it does not fit.

    With config.eval.torch_checkpoint the initial one, which holds that file's weights.
    """
    if run.config.eval.torch_checkpoint:
        return create_state(run)
    return checkpoint.restore(run.workdir, which, describe_state(run))


def check_source(workdir: pathlib.Path, name: str) -> ConfigDict:
    """The configuration of the run beside `workdir` that transferred attacks are crafted on. Raises InvalidInput."""
    directory = workdir.absolute().parent / name
    try:
        return ConfigDict(configs.complete(json.loads((directory / "config.json").read_text())))
    except (OSError, json.JSONDecodeError) as error:
        raise InvalidInput(f"attacks crafted on {name!r}: no run in {directory} ({error}): train it first") from None


def source(run: Run, name: str) -> Run:
    """The run that transferred attacks are crafted on: a neighbour of `run`, or a path from their directory.

    It must have been trained on the same data. Raises InvalidInput.
    """
    config = check_source(run.workdir, name)
    if config.data.name != run.config.data.name:
        raise InvalidInput(
            f"attacks crafted on {name!r}: it was trained on {config.data.name}, not on {run.config.data.name}"
        )
    return create(config, run.workdir.absolute().parent / name, run.data)


def _processor(platform_name: str) -> str:
    return f" ({os.cpu_count()} {platform.machine()} cores)" if platform_name == "cpu" else ""
