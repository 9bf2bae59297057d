"""The paper's optimizer: SGD with momentum, coupled weight decay on all parameters, a step schedule."""

import math
from collections.abc import Sequence

import optax

from infofeat_jax.types import InvalidInput


def step_schedule(
    learning_rate: float, milestones: Sequence[float], decay: float, steps_per_epoch: int
) -> optax.Schedule:
    """`learning_rate`, multiplied by `decay` at each of the `milestones` (epochs). Raises InvalidInput."""
    if list(milestones) != sorted(set(milestones)) or not all(0 < m < math.inf for m in milestones):
        raise InvalidInput(f"optimizer.milestones {tuple(milestones)}: expected increasing epochs above 0")
    if not 0 <= decay < math.inf:
        raise InvalidInput(f"optimizer.decay = {decay}: expected 0 or more")
    boundaries = {round(m * steps_per_epoch): decay for m in milestones}
    return optax.piecewise_constant_schedule(learning_rate, boundaries)


def sgd(schedule: optax.Schedule, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay is added to the gradient before the momentum."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None))
