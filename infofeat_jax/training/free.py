"""Free adversarial training (Shafahi et al., 2019): several updates on each batch, whose perturbation is carried on.

The backward pass of an update gives the gradient to the perturbed images too: the attack costs nothing more.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from infofeat_jax import threat as threats
from infofeat_jax.types import Images, PRNGKey

# (what is updated, key, perturbed images) -> (the same after an update, metrics, gradient of its loss to the images)
Update = Callable[[PyTree, PRNGKey, Images], tuple[PyTree, dict[str, Float[Array, ""]], Images]]


class Free(NamedTuple):
    """How often a batch is replayed, and how the perturbation moves after each; budgets in the images' units."""

    replays: int = 0  # updates on each batch; 0: the method's own attack, and one update
    norm: str = "linf"
    epsilon: float = 8 / 255
    step_size: float = 8 / 255


WITHOUT = Free()


def replay(
    update: Update, free: Free, carried: PyTree, key: PRNGKey, images: Images
) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
    """Updates on the same images again and again, each time perturbed further along the gradient of the last update.

    The perturbation starts at a random point of the ball; the authors' starts where that of the batch before has ended,
    which would be part of the state. Returns what is updated, and the means of the metrics.
    """
    threat = threats.threat(free.norm, free.epsilon)

    def once(carry: tuple[PyTree, Images], index) -> tuple[tuple[PyTree, Images], dict]:
        carried, metrics, gradient = update(carry[0], jax.random.fold_in(key, index), carry[1])
        return (carried, threats.ascend(threat, images, carry[1], gradient, free.step_size)), metrics

    start = threats.random_start(threat, key, images)
    (carried, _), metrics = jax.lax.scan(once, (carried, start), jnp.arange(free.replays))
    return carried, jax.tree.map(jnp.mean, metrics)
