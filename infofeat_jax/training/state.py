"""The training state, and its initial value."""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from infofeat_jax.training.averaging import WITHOUT, Averaging
from infofeat_jax.types import PRNGKey


class State(NamedTuple):
    """Everything that training updates: with the configuration it determines the rest of the run.

    Weights that are perturbed within a step are not part of the state: see `step.gradients`.
    """

    step: Int[Array, ""]
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    average: PyTree = ()  # average of `params`; () without: checkpoints then hold no such arrays
    average_stats: PyTree = ()  # the average's own BatchNorm statistics; () if it has those of the live model

    @property
    def variables(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the live model, which training attacks and updates."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluated(self) -> dict[str, PyTree]:
        """What `module.apply` takes for the model that is validated, evaluated and exported."""
        return evaluated(self.params, self.batch_stats, self.average, self.average_stats)


def evaluated(
    params: PyTree, batch_stats: PyTree, average: PyTree = (), average_stats: PyTree = ()
) -> dict[str, PyTree]:
    """The variables to evaluate: the weights' average if there is one, with its statistics or the live model's."""
    return {"params": average or params, "batch_stats": average_stats or batch_stats}


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
    averaging: Averaging = WITHOUT,
) -> State:
    """The state before the first step: random weights drawn with `key`, or `weights` (params and batch_stats).

    `image_shape` is (h, w, c). An average of the weights begins as their copy.
    """
    variables = module.init(key, jnp.zeros((1, *image_shape))) if weights is None else weights
    params, statistics = variables["params"], variables.get("batch_stats", {})
    # Copies: no shared memory, which a step could not take over.
    average = jax.tree.map(jnp.copy, params) if averaging.is_kept else ()
    of_average = jax.tree.map(jnp.copy, statistics) if averaging.has_statistics else ()
    return State(jnp.zeros((), jnp.int32), params, statistics, optimizer.init(params), average, of_average)


def state_shapes(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    *,
    averaging: Averaging = WITHOUT,
) -> State:
    """Shapes and dtypes of the state's arrays, without computing them."""
    return jax.eval_shape(
        lambda key: initial_state(module, optimizer, key, image_shape, averaging=averaging), jax.random.key(0)
    )
