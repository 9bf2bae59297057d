"""What the attacker may do: perturb within a norm ball around each image, and stay within the pixel box.

A norm is a triple of pure functions in the plain dict `NORMS`; adding one adds an entry.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from infofeat_jax.types import Images, InvalidInput, PerExample, PRNGKey, check_choice

Number = float | Float[Array, ""]  # may be traced

# Relative shrinking of the l2 radius that covers float32 rounding of the norm.
_L2_SLACK = 4e-6


class Norm(NamedTuple):
    """A norm ball's geometry; displacements are [b, ...]."""

    size: Callable[[Images], PerExample]  # displacement -> its norm
    ascent: Callable[[Images], Images]  # gradient -> steepest ascent displacement of norm 1; finite always
    project: Callable[[Images, Images, Number], Images]  # (images, perturbed, epsilon) -> in the ball
    sample: Callable[[PRNGKey, Images], Images]  # uniform in the unit ball, shaped as the second argument


class Threat(NamedTuple):
    """A threat model: perturbations of `norm` at most `epsilon`, pixels within `bounds`."""

    norm: str = "linf"
    epsilon: Number = 8 / 255
    bounds: tuple[float, float] = (0.0, 1.0)


def threat(norm: str, epsilon: Number, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:
    """Checks and builds a Threat, epsilon rounded down to float32 so that no example exceeds it.

    Raises InvalidInput for an unknown norm, epsilon < 0, empty bounds.
    """
    check_choice("norm", norm, NORMS)
    if not bounds[0] < bounds[1]:
        raise InvalidInput(f"bounds {bounds}: expected (low, high) with low < high")
    if isinstance(epsilon, (int, float, np.number)):
        if not (np.isfinite(epsilon) and epsilon >= 0):
            raise InvalidInput(f"epsilon {epsilon}: expected a finite number >= 0, in the images' own units")
        rounded = np.float32(epsilon)
        epsilon = float(rounded if float(rounded) <= epsilon else np.nextafter(rounded, np.float32(0)))
    return Threat(norm, epsilon, bounds)


def project(threat: Threat, images: Images, perturbed: Images) -> Images:
    """Nearest point (linf: exactly; l2: up to the box clip) of ball and box; never outside either."""
    inside = NORMS[threat.norm].project(images, perturbed, threat.epsilon)
    return jnp.clip(inside, *threat.bounds)


def random_start(threat: Threat, key: PRNGKey, images: Images, *, clip: bool = True) -> Images:
    """Uniform point of the ball around each image; `clip=False` leaves it outside the box where it falls so."""
    start = images + threat.epsilon * NORMS[threat.norm].sample(key, images)
    return project(threat, images, start) if clip else start


def ascend(threat: Threat, images: Images, perturbed: Images, gradient: Images, step_size: Number) -> Images:
    """One projected step of length `step_size` in the steepest ascent direction of the norm."""
    direction = NORMS[threat.norm].ascent(jnp.where(jnp.isfinite(gradient), gradient, 0.0))
    return project(threat, images, perturbed + step_size * direction)


def size(norm: str, displacement: Images) -> PerExample:
    """The norm of each example's displacement, [b]."""
    return NORMS[norm].size(displacement)


def per_example(values: Shaped[Array, " b"], like: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """[b] broadcast against [b, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - 1))


def _flat(images: Images) -> Float[Array, "b d"]:
    return images.reshape(images.shape[0], -1)


def _linf_project(images: Images, perturbed: Images, epsilon: Number) -> Images:
    # One float inward: x + epsilon rounded up would exceed the budget.
    lower = jnp.minimum(jnp.nextafter(images - epsilon, jnp.float32(jnp.inf)), images)
    upper = jnp.maximum(jnp.nextafter(images + epsilon, jnp.float32(-jnp.inf)), images)
    return jnp.clip(perturbed, lower, upper)


def _l2_size(displacement: Images) -> PerExample:
    return jnp.linalg.norm(_flat(displacement), axis=1)


def _l2_ascent(gradient: Images) -> Images:
    # Scaled by the largest entry first: squares of tiny gradients underflow. (Below 1.2e-38 floats are flushed to 0.)
    scaled = gradient / jnp.maximum(per_example(jnp.abs(_flat(gradient)).max(1), gradient), 1e-37)
    return scaled / jnp.maximum(per_example(_l2_size(scaled), gradient), 1e-12)


def _l2_project(images: Images, perturbed: Images, epsilon: Number) -> Images:
    displacement = perturbed - images
    radius = epsilon * (1 - _L2_SLACK)
    shrink = jnp.minimum(1.0, radius / jnp.maximum(_l2_size(displacement), 1e-30))
    # One float towards the image, as above.
    return jnp.nextafter(images + displacement * per_example(shrink, images), images)


def _l2_sample(key: PRNGKey, like: Images) -> Images:
    direction_key, radius_key = jax.random.split(key)
    direction = _l2_ascent(jax.random.normal(direction_key, like.shape))
    radius = jax.random.uniform(radius_key, like.shape[:1]) ** (1 / _flat(like).shape[1])
    return direction * per_example(radius, like)


NORMS = {
    "linf": Norm(
        size=lambda displacement: jnp.abs(_flat(displacement)).max(axis=1),
        ascent=jnp.sign,
        project=_linf_project,
        sample=lambda key, like: jax.random.uniform(key, like.shape, minval=-1.0, maxval=1.0),
    ),
    "l2": Norm(size=_l2_size, ascent=_l2_ascent, project=_l2_project, sample=_l2_sample),
}
