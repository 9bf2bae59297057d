"""Square attack (Andriushchenko et al., "Square Attack: a query-efficient black-box attack ...", 2020).

Gradient-free random search: each iteration repaints a random square of the image and keeps it if the margin drops.
Constants and order are those of the authors' implementation in AutoAttack, where however the whole batch shares the
square's position and in l_inf its signs; here each example draws its own, so that the others do not matter.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks import patches
from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.inputs import as_forward, check_channels_last
from infofeat_jax.attacks.search import Counts, Keys, Logits, Search, select
from infofeat_jax.threat import Threat
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    PerExample,
    PRNGKey,
    check_count,
    check_number,
)

# The share of painted pixels halves after these numbers of queries, whatever the total.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class SquareState(NamedTuple):
    """The image of smallest margin so far, and that margin."""

    images: Images
    labels: Labels
    margin: PerExample  # infinite before the first query
    adversarial: Images
    success: Bool[Array, " b"]


def square(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget, norm: str = "linf",
    num_queries: int = 5000, initial_share: float = 0.8, restarts: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Images:  # fmt: skip
    """Square attack, a score-based black-box attack: it sees only logits (Andriushchenko et al., 2020).

    Args:
      forward: a frozen model, images -> Outputs (or bare logits).
      images, labels: [b, h, w, c] float32 within `bounds`; [b] classes.
      epsilon: budget in the images' units; `norm` "linf", "l2" or "l1".
      num_queries: forward passes in a run, the first of them on the start (l_inf: stripes; l2, l1: pyramids).
      initial_share: share of the image's area that the first squares cover, in (0, 1].
      restarts: number of independent runs, each on the examples that are not yet broken.

    Returns a misclassified image where one was found, else the one of smallest margin of the first run.
    Images that are already misclassified are returned unchanged. Raises InvalidInput for invalid arguments.
    """
    options = {"num_queries": num_queries, "initial_share": initial_share, "restarts": restarts}

    def build(threat: Threat, num_classes: int) -> Search:
        check_channels_last(images)
        return square_search(threat, images.shape[1:3], **options)

    return searches.attack(build, forward, key, images, labels, epsilon=epsilon, norm=norm, bounds=bounds)


def square_search(
    threat: Threat, image_size: tuple[int, int], *, num_queries: int = 5000, initial_share: float = 0.8,
    restarts: int = 1,
) -> Search:  # fmt: skip
    """Square attack as a search; arguments as in `square`, `image_size` (height, width)."""
    num_queries, restarts = check_count("num_queries", num_queries), check_count("restarts", restarts, 1)
    if not 0 < check_number("initial_share", initial_share) <= 1:
        raise InvalidInput(f"initial_share {initial_share}: expected a share of the image's area in (0, 1]")
    first, propose = KINDS[threat.norm]
    sides = patch_sides(image_size, max(num_queries, 1), initial_share, threat.norm)

    def at(keys: Keys, t: Counts | int) -> Keys:
        return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(t, keys.shape[:1]))

    def start(keys: Keys, images: Images, labels: Labels, logits: Logits, attempt: Counts) -> SquareState:
        del logits, attempt
        state = initial_state(images, labels)
        return state._replace(adversarial=first(threat, at(keys, 0), images)) if num_queries else state

    def step(forward: Forward, keys: Keys, t: Counts, state: SquareState) -> SquareState:
        proposal = propose(threat, at(keys, t), state.images, state.adversarial, jnp.asarray(sides)[t])
        return accept(forward, state, select(t == 0, state.adversarial, proposal))  # the first query is of the start

    return Search(start, step, num_queries, restarts)


def initial_state(images: Images, labels: Labels) -> SquareState:
    """The state before the first query."""
    never = jnp.zeros(labels.shape, bool)
    return SquareState(images, labels, jnp.full(labels.shape, jnp.inf, images.dtype), images, never)


def accept(forward: Forward, state: SquareState, proposal: Images) -> SquareState:
    """Takes the proposal where it is misclassified or has a smaller margin; broken examples stay."""
    logits = as_forward(forward)(proposal).logits
    margin = objectives.logit_margin(logits, state.labels)
    fooled = objectives.misclassified(logits, state.labels)
    take = ~state.success & (fooled | (margin < state.margin))
    return state._replace(
        margin=jnp.where(take, margin, state.margin),
        adversarial=select(take, proposal, state.adversarial),
        success=state.success | fooled,
    )


def shares(num_queries: int, initial_share: float = 0.8) -> np.ndarray:
    """[num_queries] share of the area painted at each query (unused at the first, which paints stripes)."""
    halvings = np.searchsorted(HALVINGS, np.arange(num_queries), side="left")
    return initial_share / 2.0**halvings


def patch_sides(image_size: tuple[int, int], num_queries: int, initial_share: float, norm: str) -> np.ndarray:
    """[num_queries] side of the square at each query; in l2 and l1 odd and at least 3, if the image is large enough."""
    height, width = image_size
    wanted = [round(math.sqrt(share * height * width)) for share in shares(num_queries, initial_share)]
    if norm != "linf":
        wanted = [max(side, 3) | 1 for side in wanted]
    return np.clip(np.asarray(wanted, np.int32), 1, min(height, width))


def stripes(threat: Threat, images: Images, uniform: Float[Array, "b 1 w c"]) -> Images:
    """l_inf start: stripes of +-epsilon, with a sign for each column and channel from uniforms in [0, 1)."""
    return threats.project(threat, images, images + threats.budget(threat, images) * jnp.sign(2 * uniform - 1))


def repaint(
    threat: Threat,
    images: Images,
    x: Images,
    side: Counts,
    corner: Float[Array, "b 2"],
    sign: Float[Array, "b c"],
) -> Images:
    """l_inf proposal: squares of the given sides, their positions and signs chosen by uniforms in [0, 1)."""
    inside = patches.windows(images.shape[1:3], patches.corners_at(images.shape[1:3], side, corner), side)
    painted = inside[..., None] * jnp.sign(2 * sign - 1)[:, None, None, :]
    return threats.project(threat, images, x + 2 * threats.budget(threat, images) * painted)


def _first_linf(threat: Threat, keys: Keys, images: Images) -> Images:
    _, _, w, c = images.shape
    return stripes(threat, images, searches.draw(jax.random.uniform, keys, (1, w, c)))


def _propose_linf(threat: Threat, keys: Keys, images: Images, x: Images, side: Counts) -> Images:
    uniform = searches.draw(jax.random.uniform, keys, (2 + images.shape[-1],))
    return repaint(threat, images, x, side, uniform[:, :2], uniform[:, 2:])


# (the first image, the proposals), each from (threat, keys, images, ...).
PYRAMIDS = (patches.first, patches.propose)
KINDS = {"linf": (_first_linf, _propose_linf), "l2": PYRAMIDS, "l1": PYRAMIDS}
