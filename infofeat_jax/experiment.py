"""An experiment: the parts that a resolved configuration describes. No lower layer reads a configuration."""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from infofeat_jax import checks, data, methods, parts, streams, weights
from infofeat_jax import config as configs
from infofeat_jax.attacks.gradient import uniform_start
from infofeat_jax.config_combinations import extra_count
from infofeat_jax.data import augment, mixing
from infofeat_jax.data.batches import steps_per_epoch
from infofeat_jax.data.mapped import mapped
from infofeat_jax.evaluation import attack_names, evaluators
from infofeat_jax.evaluation.attack_names import Budget
from infofeat_jax.runtime import compilation, devices
from infofeat_jax.training import checkpoint, optimizers
from infofeat_jax.training.averaging import Averaging
from infofeat_jax.training.awp import Awp
from infofeat_jax.training.free import Free
from infofeat_jax.training.state import State, initial_state, state_shapes
from infofeat_jax.training.step import Mix, make_step
from infofeat_jax.types import LEVELS, InvalidInput, summary

LESS_MEMORY = "lower config.batch_size, or set config.accumulate_steps, config.remat or config.dtype=bfloat16"


class Experiment(NamedTuple):
    """The parts that a configuration describes, built on this machine."""

    config: ConfigDict
    workdir: pathlib.Path
    data: data.Dataset
    mesh: Mesh
    module: nn.Module
    method: methods.Method
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    initial: weights.Variables | None = None  # weights that the configuration names, to start from or to evaluate
    extra: data.Split | None = None  # a second pool to train on

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(h, w, c)."""
        return self.data.train.images.shape[1:]

    @property
    def total_steps(self) -> int:
        """Total number of training steps."""
        return self.config.num_epochs * self.epoch_steps

    @property
    def epoch_steps(self) -> int:
        """Number of training steps in an epoch."""
        return count_epoch_steps(self.config, self.data)


def count_epoch_steps(config: ConfigDict, dataset: data.Dataset) -> int:
    """Number of training steps in an epoch; 1 where an evaluation's data have fewer images than a batch."""
    return max(len(dataset.train.labels) // config.batch_size, 1)


def create(
    config: ConfigDict, workdir: pathlib.Path, dataset: data.Dataset | None = None, *, to_train: bool = True
) -> Experiment:
    """Builds an experiment: checks what can be checked without computing, then loads the data unless it is given.

    `to_train`: with the second pool of training images, if there is one, and what training alone asks for.
    Raises InvalidInput.
    """
    mesh = devices.mesh(devices.count_for(config.batch_size, config.accumulate_steps) if to_train else None)
    make_module = partial(weights.create, config.model.to_dict(), dtype=config.dtype, remat=config.remat)
    create_method(config, 10), create_optimizer(config, 10), make_module(10)  # errors before the data is read
    path, initial = weights.named(config, workdir) or ("", None)
    dataset = dataset or load_data(config)
    checks.check_data(config, dataset)
    if initial is not None and not parts.is_own(config.model.name):
        weights.check_fits(path, initial, dataset.train.images.shape, dataset.num_classes, dataset.name)
    if to_train:
        steps_per_epoch(len(dataset.train.labels), config.batch_size)  # raises InvalidInput if there is no full batch
        methods.check_smoothing(config.method.name, config.method.label_smoothing, dataset.num_classes)
    optimizer, schedule = create_optimizer(config, count_epoch_steps(config, dataset))
    method = create_method(config, dataset.num_classes)
    module = make_module(dataset.num_classes)
    extra = load_extra(config, dataset) if to_train else None
    created = Experiment(config, workdir, dataset, mesh, module, method, optimizer, schedule, initial, extra)
    check_own(created)
    check_evaluators(created)
    if initial is not None and parts.is_own(config.model.name):
        weights.check_shapes(path, module, initial, created.image_shape)
    return created


def check_own(experiment: Experiment) -> None:
    """Raises InvalidInput if a training step or an attack fails, where model, method, optimizer or attack is one's own.

    They are traced for two images and for one, not computed.
    """
    config, shape = experiment.config, experiment.image_shape
    updated = {name: config.optimizer[name] for name in ("name", "schedule") if parts.is_own(config.optimizer[name])}
    trains_own = bool(updated) or parts.is_own(config.model.name) or parts.is_own(config.method.name)
    names = (*config.eval.attacks, *config.eval.distances, config.eval.validation_attack)
    specs = [spec for spec in map(attack_names.parse, names) if trains_own or parts.is_own(spec.attack)]
    what = f"config.method.name = {config.method.name!r} with model {config.model.name!r}"
    what += "".join(f", optimizer.{name} {value!r}" for name, value in updated.items())
    batch = (jax.ShapeDtypeStruct((2, *shape), jnp.uint8), jax.ShapeDtypeStruct((2,), jnp.int32))

    def attacked(variables):
        forward = partial(experiment.module.apply, variables)
        for spec in (spec for spec in specs if not spec.source):
            attack_names.check(spec, create_budget(config), forward, shape)

    try:
        state = state_shapes(experiment.module, experiment.optimizer, shape) if specs else None
        if trains_own:
            step = make_step(experiment.module, method_of_step(experiment), experiment.optimizer)
            jax.eval_shape(step, state, batch, jax.random.key(0))
        if specs:
            jax.eval_shape(attacked, state.variables)
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error}" if trains_own else str(error)) from None
    except Exception as error:  # a user's code raises anything
        raise InvalidInput(f"{what}, images {list(shape)}: {summary(error)}") from error


def check_evaluators(experiment: Experiment) -> None:
    """Raises InvalidInput if an evaluator of one's own fails on the model: it is traced, not computed."""
    key, images = jax.random.key(0), jnp.zeros((1, *experiment.image_shape))
    for name in experiment.config.eval.evaluators:

        def traced(variables, name=name):
            evaluators.check(name, partial(experiment.module.apply, variables), experiment.image_shape)
            return jnp.zeros(())

        jax.eval_shape(traced, jax.eval_shape(experiment.module.init, key, images))


def load_data(config: ConfigDict) -> data.Dataset:
    """The data of a resolved configuration. Raises InvalidInput."""
    options = config.data
    return data.load(
        options.name, data_dir=options.data_dir or None, validation_size=options.validation_size,
        train_size=options.train_size or None, test_size=options.test_size or None, split_seed=options.split_seed,
        image_size=options.image_size, in_memory=options.in_memory,
    )  # fmt: skip


def load_extra(config: ConfigDict, dataset: data.Dataset) -> data.Split | None:
    """The second pool of training images, mapped; None without. Raises InvalidInput if it does not fit the data."""
    if not config.data.extra:
        return None
    extra = mapped(config.data.extra, dataset.num_classes)
    here, there = extra.images.shape[1:], dataset.train.images.shape[1:]
    if here != there:
        raise InvalidInput(f"config.data.extra = {config.data.extra!r} has images {list(here)}: expected {list(there)}")
    if len(extra.labels) < extra_in_batch(config):
        raise InvalidInput(f"config.data.extra = {config.data.extra!r} has fewer images than a batch takes from it")
    return extra


def extra_in_batch(config: ConfigDict) -> int:
    """How many examples of each batch are of the second pool."""
    return extra_count(dict(configs.flatten(config.to_dict())))


def create_method(config: ConfigDict, num_classes: int, scale: float | jax.Array = 1.0) -> methods.Method:
    """The training method of a resolved configuration, with budgets in the images' units, times `scale`.

    Raises InvalidInput.
    """
    epsilon = config.attack.epsilon / LEVELS * scale
    attack = {
        "norm": config.attack.norm,
        "epsilon": epsilon,
        "step_size": config.attack.step_size / LEVELS * scale,
        "num_steps": config.attack.num_steps,
    }
    if config.attack.noise:  # N-FGSM: in a ball that holds whatever noise and steps add up to, nothing is projected
        radius = config.attack.noise * epsilon
        attack["start"] = partial(uniform_start, norm=config.attack.norm, radius=radius)
        attack["epsilon"] = radius + attack["num_steps"] * attack["step_size"]
    options = {field: value for field, value in config.method.items() if field != "name"}
    return methods.create(config.method.name, methods.Options(num_classes, attack, **options, epsilon=epsilon))


def method_of_step(experiment: Experiment) -> methods.Method | Callable[[jax.Array], methods.Method]:
    """The method; a function of the step where the attack's budget grows over the first ones."""
    config, count = experiment.config, round(experiment.config.attack.ramp_epochs * experiment.epoch_steps)

    def method(step: jax.Array) -> methods.Method:
        return create_method(config, experiment.data.num_classes, jnp.minimum((step + 1) / count, 1.0))

    return method if count else experiment.method


def create_averaging(experiment: Experiment) -> Averaging:
    """Which average of the weights the configuration asks for."""
    config = experiment.config
    start = round(config.swa.start_epoch * experiment.epoch_steps)
    return Averaging(float(config.ema.decay), max(start, 1) if config.swa.start_epoch else 0)


def create_free(config: ConfigDict) -> Free:
    """Whether and how each batch is replayed."""
    attack = config.attack
    return Free(attack.replays, attack.norm, attack.epsilon / LEVELS, attack.step_size / LEVELS)


def create_mix(config: ConfigDict) -> Mix | None:
    """MixUp or CutMix, if the configuration asks for it."""
    if config.data.mixup:
        return partial(mixing.mixup, alpha=float(config.data.mixup))
    return partial(mixing.cutmix, alpha=float(config.data.cutmix)) if config.data.cutmix else None


def create_optimizer(config: ConfigDict, epoch_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, schedule) of a resolved configuration, with `epoch_steps` steps per epoch. Raises InvalidInput."""
    options = config.optimizer
    learning_rate = optimizers.scale_rate(options.scaling, float(options.learning_rate), config.batch_size)
    schedule = optimizers.create_schedule(
        options.schedule, learning_rate=learning_rate, decay=float(options.decay),
        milestones=tuple(map(float, options.milestones)),
        steps_per_epoch=epoch_steps, num_epochs=config.num_epochs,
    )  # fmt: skip
    schedule = optimizers.warmed_up(schedule, round(options.warmup_epochs * epoch_steps))
    given = {"momentum": options.momentum, "weight_decay": options.weight_decay, "nesterov": options.nesterov}
    given["decay_norm"] = options.decay_norm
    return optimizers.create_optimizer(options.name, schedule, **given), schedule


def create_budget(config: ConfigDict) -> Budget:
    """The threat model of the evaluation in the images' units."""
    norm, epsilon = config.attack.norm, config.attack.epsilon
    return Budget(norm, epsilon / LEVELS, config.eval.step_size / LEVELS)


def compile_step(experiment: Experiment):
    """The training step over all devices."""
    config = experiment.config
    step = make_step(
        experiment.module, method_of_step(experiment), experiment.optimizer,
        augment=partial(
            augment.crop_and_flip, padding=config.data.crop_padding, flip=config.data.flip, first=config.data.augment
        ),
        mix=create_mix(config), accumulate_steps=config.accumulate_steps,
        awp=Awp(float(config.awp.gamma), round(config.awp.warmup_epochs * experiment.epoch_steps)),
        averaging=create_averaging(experiment), batch_norm=config.attack.batch_norm, free=create_free(config),
    )  # fmt: skip
    return devices.parallelize_update(step, experiment.mesh, config.parallel)


def create_state(experiment: Experiment) -> State:
    """The initial state on all devices, determined by the seed alone or by the weights to start from.

    These are read here where there were checkpoints in their place, all of which turned out to be damaged.
    """
    initial = experiment.initial
    if initial is None:
        _, initial = weights.named(experiment.config, experiment.workdir) or ("", None)
    parts = experiment.module, experiment.optimizer
    key = streams.key(experiment.config.seed, "initial_weights")
    shape, averaging = experiment.image_shape, create_averaging(experiment)
    begin = jax.jit(
        lambda key, given: initial_state(*parts, key, shape, given, averaging=averaging),
        compiler_options=compilation.once(experiment.mesh.devices.flat[0].platform),
    )
    return devices.replicate(experiment.mesh, begin(key, initial))


def describe_state(experiment: Experiment) -> State:
    """Shapes, dtypes and shardings of the state's arrays, without computing them."""
    averaging = create_averaging(experiment)
    shapes = state_shapes(experiment.module, experiment.optimizer, experiment.image_shape, averaging=averaging)
    return devices.replicated(experiment.mesh, shapes)


def restore(experiment: Experiment, which: str) -> State:
    """The state in the "best" or "latest" checkpoint. Raises InvalidInput if there is none or it does not fit.

    With config.eval.torch_checkpoint, the initial state, which holds that file's weights.
    """
    if experiment.config.eval.torch_checkpoint:
        return create_state(experiment)
    return checkpoint.restore(experiment.workdir, which, describe_state(experiment))


def facts(experiment: Experiment) -> dict[str, Any]:
    """The facts about data, hardware and software that a reader needs to judge a result."""
    return {
        "data": experiment.data.name,
        "train_images": len(experiment.data.train.labels),
        "hardware": devices.hardware(experiment.mesh),
        "jax": jax.__version__,
    }
