"""Threat models: perturbations within a norm ball around each image and within the box of valid pixels.

A norm is a tuple of pure functions in the plain dict `NORMS`; adding one adds an entry.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from infofeat_jax import l1
from infofeat_jax.types import Budget, Images, InvalidInput, PerExample, PRNGKey, check_choice, check_number

UNIT = ", in the images' own units"

# Relative reduction of the l2 radius that covers the float32 rounding of the norm.
_L2_SLACK = 4e-6
# Of the box: a projection in l1 may end so far before its border.
ROUNDING = 1e-6


class Norm(NamedTuple):
    """The geometry of a norm ball; displacements are [b, ...]."""

    size: Callable[[Images], PerExample]  # displacement -> its norm
    ascent: Callable[[Images], Images]  # gradient -> ascent direction of norm 1; always finite
    project: Callable[..., Images]  # (images, perturbed, epsilon, bounds) -> in the ball; l1: and in the box
    sample: Callable[[PRNGKey, Images], Images]  # uniform in the unit ball, shaped as the second argument


class Threat(NamedTuple):
    """A threat model: perturbations of `norm` at most `epsilon`, pixels within `bounds`."""

    norm: str = "linf"
    epsilon: Budget = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)


def threat(norm: str, epsilon: Budget, bounds: tuple[float, float] = (0.0, 1.0), *, batch: int | None = None) -> Threat:
    """Checks and builds a Threat; epsilon is rounded down to float32 so that no example exceeds it.

    `epsilon` is one number, or [batch] for a `batch` of known size; if traced, it is float32 and its value unchecked.
    `bounds` are rounded to float32, as the pixels are.

    Raises InvalidInput for an unknown norm, an epsilon < 0 or of the wrong shape, or empty or non-finite bounds.

    >>> threat("l2", 0.5)
    Threat(norm='l2', epsilon=0.5, bounds=(0.0, 1.0))
    """
    check_choice("norm", norm, NORMS)
    epsilon = _round_down(check_number("epsilon", epsilon, batch=batch, unit=UNIT))
    return Threat(norm, epsilon, _check_bounds(bounds))


def check_unit_budget(norm: str, epsilon: float, shape: tuple[int, ...]) -> None:
    """Raises InvalidInput for a budget that holds all of [0, 1]: it is of other units, such as 8-bit levels."""
    diameter = {"linf": 1.0, "l2": math.prod(shape) ** 0.5}.get(norm, math.prod(shape))
    if epsilon > diameter:
        usual = {"linf": "8 / 255", "l2": "0.5"}.get(norm, "12")
        raise InvalidInput(
            f"epsilon {epsilon:g}: expected at most {diameter:g} in {norm}, as for pixels in [0, 1], such as {usual}"
        )


def project(threat: Threat, images: Images, perturbed: Images) -> Images:
    """Projects onto ball and box (linf, l1: exactly; l2: the ball, then the box); never outside either.

    >>> images = jnp.full((1, 1, 2, 1), 0.1)
    >>> project(threat("linf", 0.25), images, images + jnp.array([[[[0.5], [-0.2]]]])).ravel().round(2)
    Array([0.35, 0.  ], dtype=float32)
    """
    inside = NORMS[threat.norm].project(images, perturbed, threat.epsilon, threat.bounds)
    return jnp.clip(inside, *threat.bounds)


def random_start(threat: Threat, key: PRNGKey, images: Images, *, clip: bool = True) -> Images:
    """Uniformly random point of the ball around each image; with `clip=False` it may lie outside the box."""
    start = images + budget(threat, images) * NORMS[threat.norm].sample(key, images)
    return project(threat, images, start) if clip else start


def ascend(threat: Threat, images: Images, perturbed: Images, gradient: Images, step_size: Budget) -> Images:
    """Takes one projected step of length `step_size` in the norm's direction of steepest ascent.

    In l1, among the pixels that can still move that way: a step along one that the box stops would be none, and all
    steps after it too (Maini et al., 2020).
    """
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    if threat.norm == "l1":
        low, high = threat.bounds
        room = jnp.where(gradient > 0, high - perturbed, perturbed - low)
        gradient = jnp.where(room > ROUNDING * (high - low), gradient, 0.0)
    direction = NORMS[threat.norm].ascent(gradient)
    step = per_example(jnp.asarray(step_size, images.dtype), images) * direction
    return project(threat, images, perturbed + step)


def size(norm: str, displacement: Images) -> PerExample:
    """The norm of each example's displacement, [b].

    >>> size("l1", jnp.array([[[[0.5], [-0.25]]]]))
    Array([0.75], dtype=float32)
    """
    return NORMS[norm].size(displacement)


def budget(threat: Threat, like: Images):
    """Epsilon, shaped to broadcast against [b, ...]."""
    return per_example(threat.epsilon, like)


def per_example(values: Budget | Shaped[Array, " b"], like: Shaped[Array, "b ..."]):
    """Reshapes [b] to [b, 1, ...], to broadcast against [b, ...]; a single number stays as it is."""
    return jnp.reshape(values, np.shape(values) + (1,) * (like.ndim - 1)) if np.ndim(values) else values


def _round_down(epsilon):
    xp = jnp if isinstance(epsilon, jax.Array) else np  # NumPy where possible: under jit, jnp would trace a constant
    epsilon = xp.asarray(epsilon)
    nearest = epsilon.astype(xp.float32)
    rounded = xp.where(nearest > epsilon, xp.nextafter(nearest, xp.float32(0)), nearest)
    return float(rounded) if xp is np and not rounded.ndim else rounded


def _check_bounds(bounds) -> tuple[float, float]:
    try:
        low, high = (float(np.float32(check_number("bounds", bound, least=-1e15))) for bound in bounds)
    except (TypeError, ValueError):  # InvalidInput is a ValueError
        low = high = 0.0
    if not low < high:
        raise InvalidInput(f"bounds {bounds}: expected (low, high), finite numbers with low < high")
    return low, high


def _flat(images: Images) -> Float[Array, "b d"]:
    return images.reshape(images.shape[0], -1)


def _linf_project(images: Images, perturbed: Images, epsilon: Budget, bounds) -> Images:
    del bounds
    epsilon = per_example(epsilon, images)
    # One float inward: x + epsilon, if rounded up, would exceed the budget.
    lower = jnp.minimum(jnp.nextafter(images - epsilon, jnp.float32(jnp.inf)), images)
    upper = jnp.maximum(jnp.nextafter(images + epsilon, jnp.float32(-jnp.inf)), images)
    return jnp.clip(perturbed, lower, upper)


def _l2_size(displacement: Images) -> PerExample:
    return jnp.linalg.norm(_flat(displacement), axis=1)


def _l2_ascent(gradient: Images) -> Images:
    # Scaled by the largest entry first: squares of tiny gradients underflow. (Below 1.2e-38 floats are flushed to 0.)
    largest = jnp.abs(_flat(gradient)).max(1)
    scaled = gradient / per_example(_or_one(largest), gradient)
    return scaled / per_example(_or_one(_l2_size(scaled)), gradient)


def _or_one(divisor: PerExample) -> PerExample:
    # Not max(divisor, 1e-12): for a gradient known to be zero, XLA's constant folding turns that into NaN.
    return jnp.where(divisor >= jnp.finfo(jnp.float32).tiny, divisor, 1.0)


def _l2_project(images: Images, perturbed: Images, epsilon: Budget, bounds) -> Images:
    del bounds
    displacement = perturbed - images
    radius = epsilon * (1 - _L2_SLACK)
    shrink = jnp.minimum(1.0, radius / jnp.maximum(_l2_size(displacement), 1e-30))
    # One float towards the image, as above.
    return jnp.nextafter(images + displacement * per_example(shrink, images), images)


def _l2_sample(key: PRNGKey, like: Images) -> Images:
    direction_key, radius_key = jax.random.split(key)
    direction = _l2_ascent(jax.random.normal(direction_key, like.shape, like.dtype))
    radius = jax.random.uniform(radius_key, like.shape[:1], like.dtype) ** (1 / _flat(like).shape[1])
    return direction * per_example(radius, like)


NORMS = {
    "linf": Norm(
        size=lambda displacement: jnp.abs(_flat(displacement)).max(axis=1),
        ascent=jnp.sign,
        project=_linf_project,
        sample=lambda key, like: jax.random.uniform(key, like.shape, like.dtype, -1.0, 1.0),
    ),
    "l2": Norm(size=_l2_size, ascent=_l2_ascent, project=_l2_project, sample=_l2_sample),
    "l1": Norm(size=l1.size, ascent=l1.ascent, project=l1.project, sample=l1.sample),
}
