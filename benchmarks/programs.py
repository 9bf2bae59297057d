"""The programs of training and evaluation, lowered for devices that need not be there."""

import importlib
import pathlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import targets
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from infofeat_jax import config as configs
from infofeat_jax import data, threat
from infofeat_jax import experiment as experiments
from infofeat_jax.attacks.search import example_keys
from infofeat_jax.attacks.stages import VERSIONS, plan
from infofeat_jax.attacks.survivors import Seats
from infofeat_jax.evaluation import attack_names, robustness
from infofeat_jax.runtime import devices

STAGES = VERSIONS["standard"]  # of AutoAttack
CONFIGS = ("cifar10_resnet18", "cifar10_wrn", "cifar100_wrn", "svhn_resnet18", "cifar10_small", "digits")
SHAPES, CLASSES = {"digits": (8, 8, 1)}, {"cifar100": 100}  # of the data sets' images, where not CIFAR-10's


class Setting(NamedTuple):
    """One program. `images`: on each chip."""

    target: str
    chips: int
    config: str
    program: str  # step, or the name of an attack or of AutoAttack's stage
    method: str
    dtype: str
    images: int
    parallel: str
    accumulate: int
    remat: int


def create(setting: Setting) -> experiments.Experiment:
    """The experiment on the target's devices, with images of the data set's shape. Raises InvalidInput."""
    config = importlib.import_module(f"configs.{setting.config}").get_config(setting.method or None)
    config.batch_size, config.dtype, config.parallel = setting.images * setting.chips, setting.dtype, setting.parallel
    config.accumulate_steps, config.remat = setting.accumulate, bool(setting.remat)
    name, count = config.data.name, config.batch_size
    split = data.Split(np.zeros((count, *SHAPES.get(name, (32, 32, 3))), np.uint8), np.zeros(count, np.int32))
    dataset = data.Dataset(split, split, split, CLASSES.get(name, 10), name)
    mesh = targets.mesh(setting.target, setting.chips)
    return experiments.create(configs.resolve(config), pathlib.Path("."), dataset)._replace(mesh=mesh)


def lower(setting: Setting) -> jax.stages.Lowered:
    """The program as JAX writes it for the target."""
    experiment = create(setting)
    state, key = experiments.describe_state(experiment), jax.eval_shape(jax.random.key, 0)
    count, split = setting.images * setting.chips, partial(_split, experiment)
    images, labels = (
        jax.ShapeDtypeStruct((count, *experiment.image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((count,), "int32"),
    )
    if setting.program == "step":
        return experiments.compile_step(experiment).lower(state, (images, labels), key)
    spec, budget = attack_names.parse(setting.program), experiments.create_budget(experiment.config)
    forward, number = Partial(experiment.module.apply, state.evaluated), jax.ShapeDtypeStruct((), "int32")
    if not spec.is_cascade:
        attack = attack_names.create(spec, budget)
        compiled = robustness.compile_attack(attack, experiment.mesh)
        return compiled.lower((forward,), key, (images, labels))
    ball, classes = threat.threat(budget.norm, budget.epsilon), experiment.data.num_classes
    (stage,) = plan(ball, classes, experiment.image_shape[:2], attacks=(spec.attack,)).stages
    images, logits = (
        jax.ShapeDtypeStruct((count, *shape), "float32") for shape in (experiment.image_shape, (classes,))
    )
    seats, inputs = Seats(*[jax.ShapeDtypeStruct((count,), "int32")] * 3), [images, labels, logits]
    keys = jax.eval_shape(example_keys, key, seats.rows, seats.attempts)
    begun = jax.eval_shape(stage.search.start, keys, *inputs, seats.attempts)
    begin = jax.ShapeDtypeStruct((), "bool")
    return stage.turn.lower(forward, key, split(seats), split(inputs), begin, number, split(begun))


def _split(experiment: experiments.Experiment, tree):
    """Shapes, with the first axis split over the devices."""
    sharding = NamedSharding(experiment.mesh, PartitionSpec(devices.AXIS))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
