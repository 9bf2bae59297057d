"""The training loop in one call, for a notebook: any Linen module, method and data, without a configuration."""

import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from infofeat_jax import data as datasets
from infofeat_jax import method_names, methods, streams
from infofeat_jax.data.batches import steps_per_epoch
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.subject import digest
from infofeat_jax.models import own
from infofeat_jax.runtime import compilation, devices, memory, signals
from infofeat_jax.threat import NORMS, check_unit_budget
from infofeat_jax.training import checkpoint, claim, loop, optimizers, records, validation
from infofeat_jax.training.averaging import Averaging
from infofeat_jax.training.awp import WITHOUT, Awp
from infofeat_jax.training.state import State, initial_state, state_shapes
from infofeat_jax.training.step import Augment, make_step
from infofeat_jax.types import Images, InvalidInput, PRNGKey, check_choice, check_count, check_number, summary

MILESTONES = (0.5, 0.75)  # parts of the training, as the paper's epochs 60 and 90 of 120
VALIDATED = 250  # images at a time

sgd = partial(optimizers.sgd, weight_decay=2e-4)  # the paper's: momentum 0.9

Optimizer = Callable[[optax.Schedule], optax.GradientTransformation]


class Plan(NamedTuple):
    """What is to be trained, and how."""

    module: nn.Module  # as `own.adapted`
    method: methods.Method
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    data: datasets.Dataset
    mesh: Mesh
    validation_attack: attack_names.AttackSpec
    budget: attack_names.Budget
    step: dict[str, Any]  # options of `make_step`
    settings: loop.Settings


class Fitted(NamedTuple):
    """A trained model; the `best` epoch is that of the highest validation accuracy."""

    module: nn.Module
    best: dict[str, PyTree]  # variables, as `module.apply` takes them
    latest: dict[str, PyTree]
    epochs: list[dict[str, Any]]  # of metrics.jsonl: the validation after each epoch

    @property
    def model(self) -> tuple[nn.Module, dict[str, PyTree]]:
        """What `infofeat_jax.evaluate` takes: the module with the variables of the best epoch."""
        return self.module, self.best


def fit(
    module: nn.Module, method: str | methods.Method, data: str | os.PathLike[str] | datasets.Dataset, *,
    directory: str | os.PathLike[str], epsilon: float, num_epochs: int, batch_size: int = 128, norm: str = "linf",
    step_size: float | None = None, num_steps: int | None = None, learning_rate: float | int | optax.Schedule = 0.1,
    optimizer: Optimizer = sgd, augment: Augment | None = None,
    accumulate_steps: int = 1, awp: Awp = WITHOUT, ema_decay: float = 0.0, validation_attack: str = "pgd7",
    seed: int = 0, log_every: int = 20, max_loss: float = 1e4, checkpoint_minutes: float = 1.0,
) -> Fitted:  # fmt: skip
    """Trains a model: the same loop as the command's, with its progress, early stopping, checkpoints and resume.

    A call with the same arguments continues a training that was interrupted (Ctrl-C, the notebook's stop button, a
    kill), to the same bits as an undisturbed one on one CPU, and returns at once what has been trained.

    Args:
      module: any Linen module of images [b, h, w, c] in [0, 1] that returns logits or Outputs: see `models.own`.
      method: a name of `methods.METHODS`, or a `methods.Method`.
      data: what `data.load` returns, or the name or path that it takes.
      directory: where checkpoints, metrics.jsonl and a description of the training are kept; for one training.
      epsilon: the budget in the images' units, as 8 / 255, of the method (if it is a name) and the validation; `norm`
        "linf", "l2" or "l1". By default `num_steps` is 7, or 1 for the methods of a single step, and `step_size` a
        quarter of epsilon, or epsilon where there is one step. The validation attack's steps are a quarter of epsilon,
        or `step_size`.
      learning_rate: a schedule (step -> learning rate), or the first learning rate, which is divided by ten after half
        and after three quarters of the epochs.
      optimizer: called with the schedule: `optax.adam`, or `partial(optimizers.sgd, weight_decay=2e-4, nesterov=True)`;
        by default SGD as in the paper, with a weight decay of 2e-4.
      augment: (key, images) -> images, such as `partial(data.augment.crop_and_flip, padding=4, flip=True)`; none by
        default.
      accumulate_steps, awp, ema_decay: see `step.make_step`.
      validation_attack: a name as `config.eval.attacks` takes, but not AutoAttack, a stage of it or @RUN, and one of
        one's own after `parts.trust`; on data.validation. Its accuracy decides which epoch is the best (without an
        attack in the method, clean accuracy does).
      seed: of the initial weights, the order of the examples, augmentation and random starts.
      log_every: steps; a loss above `max_loss`, or one that is non-finite, ends the training.
      checkpoint_minutes: between checkpoints, at ends of epochs; 0: after each.

    Raises InvalidInput before anything is computed, Stopped when interrupted, RunFailed.
    """
    dataset = data if isinstance(data, datasets.Dataset) else datasets.load(data)
    counts = {
        "num_epochs": num_epochs, "batch_size": batch_size, "accumulate_steps": accumulate_steps, "log_every": log_every
    }  # fmt: skip
    num_epochs, batch_size, accumulate_steps, log_every = (check_count(*given, 1) for given in counts.items())
    seed, num_steps = check_count("seed", seed), None if num_steps is None else check_count("num_steps", num_steps)
    learning_rate = learning_rate if callable(learning_rate) else float(learning_rate)
    if not len(dataset.validation.labels):
        raise InvalidInput(
            "data has no validation split, which early stopping needs: data.load(..., validation_size=...)"
        )
    known = method if isinstance(method, str) else ""
    methods.check_smoothing(known, None, dataset.num_classes)
    epsilon = check_number("epsilon", epsilon)
    check_choice("norm", norm, NORMS)
    check_unit_budget(norm, epsilon, dataset.train.images.shape[1:])
    step_size = None if step_size is None else check_number("step_size", step_size)
    size = epsilon / 4 if step_size is None else step_size
    budget = attack_names.Budget(norm, epsilon, size)
    steps = method_names.steps(known, epsilon, num_steps, step_size)
    inner = budget._asdict() | dict(zip(("num_steps", "step_size"), steps, strict=True))
    if not 0 <= check_number("ema_decay", ema_decay) < 1:
        raise InvalidInput(f"ema_decay {ema_decay}: expected at least 0 (no average) and below 1")
    if not isinstance(awp, Awp):
        raise InvalidInput(f"awp {awp!r}: expected training.awp.Awp(gamma, warmup_steps)")
    if not callable(optimizer):
        raise InvalidInput(f"optimizer is of type {type(optimizer).__name__}: expected a function of the schedule")
    ema_decay, awp = float(ema_decay), Awp(float(awp.gamma), int(awp.warmup_steps))
    averaging = Averaging(ema_decay=ema_decay)
    step = {"averaging": averaging, "accumulate_steps": accumulate_steps, "awp": awp, "augment": augment or _unchanged}
    schedule = _schedule(learning_rate, steps_per_epoch(len(dataset.train.labels), batch_size), num_epochs)
    planned = Plan(
        own.adapted(module),
        methods.create(method, methods.Options(dataset.num_classes, inner)) if isinstance(method, str) else method,
        optimizer(schedule), schedule, dataset,
        devices.mesh(devices.count_for(batch_size, accumulate_steps, "batch_size")),
        attack_names.parse(validation_attack), budget, step,
        loop.Settings(batch_size, num_epochs, seed, log_every, max_loss, every_minutes=checkpoint_minutes),
    )  # fmt: skip
    _check(planned)
    name = known or "a method of one's own"
    rate = "a schedule" if callable(learning_rate) else learning_rate
    setting = inner | {
        "module": claim.text(module), "method": name, "data": digest(dataset[:3]), "num_epochs": num_epochs,
        "batch_size": batch_size, "seed": seed, "learning_rate": rate, "accumulate_steps": accumulate_steps,
        "awp": list(awp), "ema_decay": ema_decay, "validation_attack": validation_attack,
        "validation_step_size": size,
    }  # fmt: skip
    workdir, title = pathlib.Path(directory), f"{name}, {type(module).__name__}, {dataset.name}"
    with claim.claimed(workdir, setting), signals.listening():
        return _train(planned, module, workdir, title)


def _train(plan: Plan, module: nn.Module, workdir: pathlib.Path, title: str) -> Fitted:
    step = devices.parallelize_update(_step(plan), plan.mesh, "jit")
    training = loop.Training(
        workdir, plan.settings, plan.data.train, plan.data.num_classes, plan.mesh,
        memory.checked(step, "lower batch_size, or raise accumulate_steps"),
        streams.key(plan.settings.seed, "training"), jax.jit(plan.schedule),
        partial(_initial, plan), devices.replicated(plan.mesh, _shapes(plan)),
        validation.create(
            plan.module, attack_names.create(plan.validation_attack, plan.budget), plan.data.validation, plan.mesh,
            seed=plan.settings.seed, batch_size=VALIDATED,
        ),
        judge="clean" if plan.method.attack is None else "robust", robust_name=plan.validation_attack.name, title=title,
    )  # fmt: skip
    latest = loop.train(training)
    best = checkpoint.restore(workdir, "best", training.like)
    epochs = [record for record in records.read(workdir / "metrics.jsonl") if "epoch" in record]
    found = [own.natural(plan.module, jax.device_get(state.evaluated)) for state in (best, latest)]
    return Fitted(module, found[0], found[1], epochs)


def _step(plan: Plan):
    return make_step(plan.module, plan.method, plan.optimizer, **plan.step)


def _initial(plan: Plan) -> State:
    shape, averaging = plan.data.train.images.shape[1:], plan.step["averaging"]
    begin = jax.jit(
        lambda key: initial_state(plan.module, plan.optimizer, key, shape, averaging=averaging),
        compiler_options=compilation.once(plan.mesh.devices.flat[0].platform),
    )
    return devices.replicate(plan.mesh, begin(streams.key(plan.settings.seed, "initial_weights")))


def _shapes(plan: Plan) -> State:
    averaging = plan.step["averaging"]
    return state_shapes(plan.module, plan.optimizer, plan.data.train.images.shape[1:], averaging=averaging)


def _schedule(rate: float | int | optax.Schedule, epoch_steps: int, num_epochs: int) -> optax.Schedule:
    if callable(rate):
        return rate
    milestones = [part * num_epochs for part in MILESTONES]
    return optimizers.piecewise(float(rate), milestones, 0.1, epoch_steps)


def _check(plan: Plan) -> None:
    """Raises InvalidInput if a step or the validation attack fails when they are traced; nothing is computed."""
    shape, size = plan.data.train.images.shape[1:], plan.settings.batch_size
    batch = jax.ShapeDtypeStruct((size, *shape), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
    if plan.validation_attack.source or plan.validation_attack.is_cascade:
        raise InvalidInput(f"validation_attack {plan.validation_attack.name!r}: expected one such as pgd7")

    def attacked(variables):
        attack_names.check(plan.validation_attack, plan.budget, partial(plan.module.apply, variables), shape)
        return jnp.zeros(())

    try:
        state = _shapes(plan)
        jax.eval_shape(_step(plan), state, batch, jax.random.key(0))
        jax.eval_shape(attacked, state.variables)
    except InvalidInput:
        raise
    except Exception as error:  # a user's code raises anything
        raise InvalidInput(
            f"the method, optimizer or schedule with this module, images {list(shape)}: {summary(error)}"
        ) from error


def _unchanged(key: PRNGKey, images: Images) -> Images:
    return images
