"""Averages of the weights: exponential (EMA), or equal over the last part of training (SWA)."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree


class Averaging(NamedTuple):
    """Which average of the weights a run keeps; none by default."""

    ema_decay: float = 0.0  # 0: no exponential average
    swa_start: int = 0  # the step (from 0) whose weights are the first in an equal average; 0: no such average

    @property
    def is_kept(self) -> bool:
        """Whether there is an average."""
        return bool(self.ema_decay or self.swa_start)

    @property
    def has_statistics(self) -> bool:
        """Whether BatchNorm's statistics are estimated for the average, which those of the live model do not suit."""
        return bool(self.swa_start)


class Apart(NamedTuple):
    """An averaged model, for which the statistics of BatchNorm are to be estimated."""

    params: PyTree
    begun: Bool[Array, ""]  # whether it differs from the live model; before that, it has that model's statistics


WITHOUT = Averaging()


def move_average(average: PyTree, params: PyTree, step: Int[Array, ""], averaging: Averaging) -> PyTree:
    """The average of the weights after the update of `step` (from 0), `params` being the weights after it.

    EMA: decay * average + (1 - decay) * params. Its warm-up: the decay is at most (1 + step) / (10 + step), so that the
    initial weights are soon forgotten. SWA (Izmailov et al., 2018, who take the weights once an epoch): the mean of the
    weights after every step from `swa_start` on; before that, a copy of the live weights.
    """
    return optax.incremental_update(params, average, share_of_newest(step, averaging))


def share_of_newest(step: Int[Array, ""], averaging: Averaging) -> Float[Array, ""]:
    """How much of the average after `step` is due to the weights of that step."""
    if averaging.swa_start:
        return 1 / (1 + jnp.maximum(step - averaging.swa_start, 0))
    return 1 - jnp.minimum(averaging.ema_decay, (1 + step) / (10 + step))


def apart(average: PyTree, step: Int[Array, ""], averaging: Averaging) -> Apart | None:
    """The averaged model in `step` if it needs statistics of its own."""
    return Apart(average, step > averaging.swa_start) if averaging.has_statistics else None
