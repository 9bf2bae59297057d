"""Optimizers and learning-rate schedules by name.

Adding one adds an entry to OPTIMIZERS or SCHEDULES.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Int, PyTree

from infofeat_jax import parts
from infofeat_jax.types import InvalidInput, check_choice


def piecewise(
    learning_rate: float, milestones: Sequence[float], decay: float, steps_per_epoch: int, num_epochs: int = 0
) -> optax.Schedule:
    """The paper's schedule: `learning_rate`, multiplied by `decay` at each of the `milestones` (epochs).

    Raises InvalidInput.
    """
    del num_epochs
    if list(milestones) != sorted(set(milestones)) or not all(0 < m < math.inf for m in milestones):
        raise InvalidInput(f"optimizer.milestones {tuple(milestones)}: expected increasing epochs above 0")
    if not 0 <= decay < math.inf:
        raise InvalidInput(f"optimizer.decay = {decay}: expected 0 or more")
    boundaries: dict[int, float] = {}
    for milestone in milestones:  # two may fall on the same step
        step = round(milestone * steps_per_epoch)
        boundaries[step] = boundaries.get(step, 1.0) * decay
    return optax.piecewise_constant_schedule(learning_rate, boundaries)


def cosine(
    learning_rate: float, milestones: Sequence[float], decay: float, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
    """Half a cosine from `learning_rate` to 0 (Loshchilov & Hutter, 2017); milestones and decay are unused."""
    del milestones, decay
    return optax.cosine_decay_schedule(learning_rate, max(steps_per_epoch * num_epochs, 1))


def onecycle(
    learning_rate: float, milestones: Sequence[float], decay: float, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
    """PyTorch's OneCycleLR as Wang et al. (2023) use it; milestones and decay are unused.

    Half a cosine up, from a 25th of `learning_rate` to it in 2.5 % of the steps, and half a cosine down to a 250,000th;
    the momentum is constant.
    """
    del milestones, decay
    total = max(steps_per_epoch * num_epochs, 2)
    peak = max(round(0.025 * total), 1)
    return optax.piecewise_interpolate_schedule("cosine", learning_rate / 25, {peak: 25.0, total: 1 / 25e4})


def cyclic(
    learning_rate: float, milestones: Sequence[float], decay: float, steps_per_epoch: int, num_epochs: int
) -> optax.Schedule:
    """One triangle as in fast adversarial training (Wong et al., 2020); milestones and decay are unused.

    From 0 to `learning_rate` at half of the steps, and back to 0; the momentum is constant.
    """
    del milestones, decay
    total = max(steps_per_epoch * num_epochs, 2)
    peak = max(total // 2, 1)
    up, down = optax.linear_schedule(0.0, learning_rate, peak), optax.linear_schedule(learning_rate, 0.0, total - peak)
    return optax.join_schedules([up, down], [peak])


def scale_rate(rule: str, learning_rate: float, batch_size: int) -> float:
    """The learning rate for batches of `batch_size`, by a rule of SCALINGS, given that for batches of 128.

    Raises InvalidInput.
    """
    check_choice("optimizer.scaling", rule, SCALINGS)
    return learning_rate * SCALINGS[rule](batch_size / REFERENCE)


def warmed_up(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """`schedule`, multiplied by (step + 1) / `steps` in the first `steps` steps (Goyal et al., 2017)."""
    return (lambda step: schedule(step) * jnp.minimum((step + 1) / steps, 1.0)) if steps else schedule


def sgd(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decay_norm: bool = True,
) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay is added to the gradient before momentum."""
    momentum_or_none, mask = momentum or None, None if decay_norm else outside_norms
    return optax.chain(optax.add_decayed_weights(weight_decay, mask), optax.sgd(schedule, momentum_or_none, nesterov))


def adamw(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decay_norm: bool = True,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019); `momentum` is its beta_1."""
    mask = None if decay_norm else outside_norms
    return optax.adamw(schedule, b1=momentum, weight_decay=weight_decay, mask=mask, nesterov=nesterov)


def adam(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decay_norm: bool = True,
) -> optax.GradientTransformation:
    """PyTorch's Adam (Kingma & Ba, 2015): weight decay is added to the gradient; `momentum` is beta_1."""
    mask = None if decay_norm else outside_norms
    decayed = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(decayed, optax.adam(schedule, b1=momentum, nesterov=nesterov))


def muon(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    decay_norm: bool = True,
) -> optax.GradientTransformation:
    """Muon (Jordan, 2024) for the convolutions' kernels, each as a matrix [h * w * i, o]; AdamW for the rest.

    The rest are the last layer, biases and BatchNorm's scales. Decay is decoupled; `momentum` is AdamW's beta_1 too.
    """
    mask = None if decay_norm else outside_norms
    direction = optax.contrib.muon(
        -1.0,  # the direction itself: decay and learning rate follow, as optax's own mask leaves out what AdamW updates
        beta=momentum, nesterov=nesterov, adam_b1=momentum, muon_weight_dimension_numbers=as_matrices,
    )  # fmt: skip
    decayed = optax.add_decayed_weights(weight_decay, mask)
    return optax.chain(direction, decayed, optax.scale_by_learning_rate(schedule))


def as_matrices(params: PyTree) -> PyTree:
    """How Muon reads each parameter: convolutions' kernels [h, w, i, o] as [h * w * i, o], others not at all."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    return jax.tree.map(lambda leaf: numbers if leaf.ndim == 4 else None, params)


def outside_norms(params: PyTree) -> PyTree:
    """Whether each parameter is outside the normalisation layers: those with a "scale"."""
    if not isinstance(params, Mapping):
        return True
    return {name: "scale" not in params and outside_norms(value) for name, value in params.items()}


def at_step(opt_state: PyTree, step: Int[Array, ""]) -> PyTree:
    """`opt_state` with its schedules at `step`: the state's own counter, which skipped batches advance too."""

    def moved(part):
        return part._replace(count=step) if isinstance(part, optax.ScaleByScheduleState) else part

    return jax.tree.map(moved, opt_state, is_leaf=lambda part: isinstance(part, optax.ScaleByScheduleState))


def create_schedule(name: str, **options) -> optax.Schedule:
    """The schedule `name` of SCHEDULES, or package.module:name: step -> learning rate. Raises InvalidInput."""
    if parts.is_own(name):
        return parts.call("config.optimizer.schedule", name, Callable, "a function step -> learning rate", **options)
    check_choice("optimizer.schedule", name, SCHEDULES)
    return SCHEDULES[name](**options)


def create_optimizer(name: str, schedule: optax.Schedule, **options) -> optax.GradientTransformation:
    """The optimizer `name` of OPTIMIZERS, or package.module:name. Raises InvalidInput."""
    if parts.is_own(name):
        kind, expected = optax.GradientTransformation, "an optax.GradientTransformation"
        return parts.call("config.optimizer.name", name, kind, expected, schedule, **options)
    check_choice("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](schedule, **options)


REFERENCE = 128  # the batch size that learning rates are given for
# How the learning rate follows from that for batches of 128 and the ratio of the sizes.
SCALINGS: dict[str, Callable[[float], float]] = {
    "none": lambda ratio: 1.0,
    "linear": lambda ratio: ratio,  # SGD (Goyal et al., 2017)
    "sqrt": math.sqrt,  # Adam and its relatives (Malladi et al., 2022)
}
# (learning_rate, milestones, decay, steps_per_epoch, num_epochs) -> schedule.
SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "piecewise": piecewise, "cosine": cosine, "onecycle": onecycle, "cyclic": cyclic,
}  # fmt: skip
# (schedule, momentum, weight_decay, nesterov, decay_norm) -> optimizer.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd, "adam": adam, "adamw": adamw, "muon": muon,
}  # fmt: skip
