"""The geometry of the l1 ball: its exact intersection with the box of valid pixels, and sparse directions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from infofeat_jax.types import Images, PerExample, PRNGKey

# Relative reduction of the radius that covers the float32 rounding of a sum of thousands of terms.
SLACK = 4e-6
SHARE = 0.01  # of the entries along which a step goes, as in Tramèr & Boneh (2019)
BISECTIONS = 32

Rows = Float[Array, "b d"]


def size(displacement: Images) -> PerExample:
    """The sum of the absolute values."""
    return jnp.abs(_flat(displacement)).sum(1)


def support(displacement: Images) -> PerExample:
    """The number of entries that are not zero."""
    return (_flat(displacement) != 0).sum(1).astype(jnp.float32)


def ascent(gradient: Images) -> Images:
    """Direction of l1 norm 1 along the largest percent of entries, in equal parts (Tramèr & Boneh, 2019, "SLIDE").

    Steepest ascent proper would move a single entry a step.
    """
    count = math.prod(gradient.shape[1:])
    return sparse_direction(gradient, jnp.full(gradient.shape[0], SHARE * count))


def sparse_direction(gradient: Images, entries: PerExample) -> Images:
    """Signs of the `entries` largest entries (at least one; more where equal), divided by their number."""
    sizes = jnp.abs(_flat(gradient))
    count = sizes.shape[1]
    place = jnp.clip(count - entries, 0, count - 1).astype(jnp.int32)
    least = largest(sizes, count - place)[:, None]
    signs = jnp.where(sizes >= least, jnp.sign(_flat(gradient)), 0.0)
    return (signs / jnp.maximum(jnp.abs(signs).sum(1, keepdims=True), 1.0)).reshape(gradient.shape)


def largest(sizes: Rows, rank: Int[Array, " b"]) -> PerExample:
    """The rank-th largest of each row of non-negative float32, rank from 1: exact, by bisection over the bits.

    The bits of such numbers are ordered as the numbers are. On a CPU sorting takes much longer.
    """
    bits = jax.lax.bitcast_convert_type(sizes, jnp.int32)

    def halve(_, bracket):
        low, high = bracket  # at least `rank` entries reach the first, fewer the second
        middle = low + (high - low) // 2
        enough = (bits >= middle[:, None]).sum(1) >= rank
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = jnp.zeros_like(rank), jnp.full_like(rank, jnp.iinfo(jnp.int32).max)
    return jax.lax.bitcast_convert_type(jax.lax.fori_loop(0, 31, halve, ends)[0], jnp.float32)


def project(images: Images, perturbed: Images, epsilon, bounds: tuple[float, float]) -> Images:
    """The nearest point (in l2) of the intersection of ball and box (Croce & Hein, "Mind the box ...", 2021).

    It is sign(v) min(max(|v| - t, 0), room) for displacements v and the distance `room` to the wall of the box. The
    threshold t at which the norm is epsilon is found by bisection, and exactly by a last step: the norm falls
    linearly in t between two entries' thresholds.
    """
    v, x = _flat(perturbed - images), _flat(images)
    sizes, room = jnp.abs(v), jnp.where(v > 0, bounds[1] - x, x - bounds[0])
    radius = jnp.broadcast_to(jnp.asarray(epsilon, v.dtype) * (1 - SLACK), v.shape[:1])
    shrunk = lambda threshold: jnp.clip(sizes - threshold[:, None], 0.0, room)  # noqa: E731

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        too_long = shrunk(middle).sum(1) > radius
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    low, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(radius), sizes.max(1)))
    there = shrunk(low)
    moving = ((there > 0) & (there < room)).sum(1)
    last = jnp.maximum(there.sum(1) - radius, 0.0) / jnp.maximum(moving, 1)
    found = shrunk(low + last)
    found = found * jnp.minimum(1.0, radius / jnp.maximum(found.sum(1), 1e-30))[:, None]  # what rounding leaves
    # One float towards the image, so that no rounding of the sum leaves the ball.
    return jnp.nextafter(x + jnp.sign(v) * found, x).reshape(images.shape)


def sample(key: PRNGKey, like: Images) -> Images:
    """Uniform in the unit ball: signed exponential variables, divided by their sum and one more."""
    sign_key, size_key = jax.random.split(key)
    b, d = _flat(like).shape
    sizes = jax.random.exponential(size_key, (b, d + 1), like.dtype)
    signs = jax.random.rademacher(sign_key, (b, d), like.dtype)
    return (signs * sizes[:, 1:] / sizes.sum(1, keepdims=True)).reshape(like.shape)


def _flat(images: Images) -> Rows:
    return images.reshape(images.shape[0], -1)
