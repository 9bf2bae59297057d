"""The training state, and its initial value."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from infofeat_jax.types import PRNGKey


class State(NamedTuple):
    """Everything that training updates: with the configuration it determines the rest of the run.

    Weights that are perturbed within a step are not part of the state: see `step.gradients`.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = ()  # exponential moving average of `params`; () without: checkpoints then hold no such arrays

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the live model, which training attacks and updates."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the model that is validated, evaluated and exported."""
        return evaluated(self.params, self.batch_stats, self.average)


def evaluated(params: PyTree, batch_stats: PyTree, average: PyTree = ()) -> dict[str, PyTree]:
    """The variables to evaluate: the weights' average if there is one, with the live model's BatchNorm statistics."""
    return {"params": average or params, "batch_stats": batch_stats}


def move_average(average: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """The average of the weights after the update of `step` (from 0): decay * average + (1 - decay) * params.

    Its warm-up: the decay is at most (1 + step) / (10 + step), so that the initial weights are soon forgotten.
    """
    return optax.incremental_update(params, average, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))


@jax.jit
def parameter_norm(params: PyTree) -> Float[Array, ""]:
    """The L2 norm of all parameters; a program of its own, as not every step needs it."""
    return optax.tree.norm(params)


def initial_state(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    key: PRNGKey,
    image_shape: tuple[int, ...],
    weights: Mapping[str, PyTree] | None = None,
    *,
    averaged: bool = False,
) -> State:
    """The state before the first step: random weights drawn with `key`, or `weights` (params and batch_stats).

    `image_shape` is (h, w, c). `averaged`: with an average of the weights, which begins as their copy.
    """
    variables = module.init(key, jnp.zeros((1, *image_shape))) if weights is None else weights
    params = variables["params"]
    average = jax.tree.map(jnp.copy, params) if averaged else ()  # no shared memory, which a step could not take over
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params), average)


def state_shapes(
    module: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...], *, averaged: bool = False
) -> State:
    """Shapes and dtypes of the state's arrays, without computing them."""
    return jax.eval_shape(
        lambda key: initial_state(module, optimizer, key, image_shape, averaged=averaged), jax.random.key(0)
    )
