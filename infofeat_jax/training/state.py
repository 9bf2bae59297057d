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

    A further set of weights, such as their moving average, would be a field beside `params`, and `evaluated` would
    return it. Weights that are perturbed within a step are not part of the state: see `step.gradients`.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the live model, which training attacks and updates."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the model that is validated, evaluated and exported."""
        return self.variables


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
) -> State:
    """The state before the first step: random weights drawn with `key`, or `weights` (params and batch_stats).

    `image_shape` is (h, w, c).
    """
    variables = module.init(key, jnp.zeros((1, *image_shape))) if weights is None else weights
    params = variables["params"]
    return State(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), optimizer.init(params))


def state_shapes(module: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, ...]) -> State:
    """Shapes and dtypes of the state's arrays, without computing them."""
    return jax.eval_shape(lambda key: initial_state(module, optimizer, key, image_shape), jax.random.key(0))
