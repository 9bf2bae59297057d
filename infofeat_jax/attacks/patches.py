"""The square windows of the Square attack, and the pyramids that it paints into them in l2 and l1.

Sides and positions are traced: everything is a mask over the whole image, so that new sides need no recompilation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from infofeat_jax import threat as threats
from infofeat_jax.attacks.search import Counts, Keys
from infofeat_jax.threat import Threat
from infofeat_jax.types import Images, PRNGKey

POWERS = {"l2": 2, "l1": 1}
Plane = Float[Array, "h w"]
Corner = Int[Array, "2"]


def corner_at(size: tuple[int, int], side: Int[Array, ""] | int, uniform: Float[Array, "2"]) -> Corner:
    """Upper left corner of a window from uniforms in [0, 1). As in the authors' code, never the last position."""
    return jnp.floor((jnp.asarray(size) - side) * uniform).astype(jnp.int32)


def window(size: tuple[int, int], corner: Corner, side: Int[Array, ""] | int) -> Bool[Array, "h w"]:
    """Which pixels lie in the square window."""
    row, column = _from_corner(size, corner)
    return (row >= 0) & (row < side) & (column >= 0) & (column < side)


def corners_at(size: tuple[int, int], side: Counts, uniform: Float[Array, "b 2"]) -> Int[Array, "b 2"]:
    """`corner_at` for each example."""
    return jax.vmap(lambda side, uniform: corner_at(size, side, uniform))(side, uniform)


def windows(size: tuple[int, int], corner: Int[Array, "b 2"], side: Counts) -> Bool[Array, "b h w"]:
    """`window` for each example."""
    return jax.vmap(lambda corner, side: window(size, corner, side))(corner, side)


def first(threat: Threat, keys: Keys, images: Images) -> Images:
    """Start: a grid of pyramids, each a fifth of the image wide, directions and signs random (l2: of norm epsilon)."""
    _, height, width, channels = images.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side

    def paint(key: PRNGKey) -> Float[Array, "y x c"]:
        flip_key, sign_key = jax.random.split(key)
        corner, flips = jnp.zeros(2, jnp.int32), _coin(flip_key, (rows, columns)).astype(int)
        pair = [_twin_pyramid(threat.norm, (side, side), corner, side, jnp.asarray(flip)) for flip in (False, True)]
        pyramids = jnp.stack(pair)[flips].swapaxes(1, 2).reshape(rows * side, columns * side)
        signs = _signs(sign_key, (rows, columns, channels))
        return pyramids[:, :, None] * signs.repeat(side, 0).repeat(side, 1)

    painted = jax.vmap(paint)(keys)
    rest = [(0, 0), _split(height - rows * side), _split(width - columns * side), (0, 0)]
    return _within(threat, images, jnp.pad(painted, rest))


def propose(threat: Threat, keys: Keys, images: Images, x: Images, side: Counts) -> Images:
    """Proposal: the budget of two windows, plus the unused one, goes to a new pyramid in the first window."""
    size, channels, change = images.shape[1:3], images.shape[-1], x - images
    places, pyramid = jax.vmap(lambda key, side: _draw(threat.norm, key, size, channels, side))(keys, side)
    first, second = (windows(size, places[:, i], side)[..., None] for i in (0, 1))
    power = POWERS[threat.norm]
    energy = lambda v: (jnp.abs(v) ** power).sum((1, 2), keepdims=True)  # noqa: E731 - of each channel
    unit = lambda v: v / (energy(v) ** (1 / power) + 1e-12)  # noqa: E731
    unused = jnp.maximum(threats.budget(threat, images) ** power - energy(change).sum(-1, keepdims=True), 0.0)
    budget = (energy(change * (first | second)) + unused / channels) ** (1 / power)
    if threat.norm == "l1":
        # As in the authors' code: more than there is, which the projection takes where it costs least.
        budget = budget * channels
    painted = pyramid + unit(change * first)
    return _within(threat, images, jnp.where(first | second, 0.0, change) + budget * unit(painted))


def _draw(
    norm: str, key: PRNGKey, size: tuple[int, int], channels: int, side: Int[Array, ""]
) -> tuple[Int[Array, "2 2"], Float[Array, "h w c"]]:
    """The corners of one image's two windows, and the pyramid in the first of them."""
    corner_key, other_key, flip_key, sign_key = jax.random.split(key, 4)
    corners = [corner_at(size, side, jax.random.uniform(k, (2,), jnp.float32)) for k in (corner_key, other_key)]
    pyramid = _twin_pyramid(norm, size, corners[0], side, _coin(flip_key))
    return jnp.stack(corners), pyramid[:, :, None] * _signs(sign_key, (1, 1, channels))


def _split(pixels: int) -> tuple[int, int]:
    return pixels // 2, pixels - pixels // 2


def _from_corner(size: tuple[int, int], corner: Corner) -> tuple[Int[Array, "h 1"], Int[Array, "1 w"]]:
    return jnp.arange(size[0])[:, None] - corner[0], jnp.arange(size[1])[None, :] - corner[1]


def _twin_pyramid(
    norm: str, size: tuple[int, int], corner: Corner, side: Int[Array, ""] | int, flip: Bool[Array, ""]
) -> Plane:
    """Two pyramids of opposite sign, each on half a window, together of norm 1; side by side with `flip`."""
    row, column = _from_corner(size, corner)
    along, across = jnp.where(flip, column, row), jnp.where(flip, row, column)
    inside, half = window(size, corner, side), side // 2
    length = lambda plane: jnp.linalg.norm(plane.ravel(), POWERS[norm])  # noqa: E731
    upper = _pyramid(norm, along, across, half, side) * (inside & (along < half))
    lower = _pyramid(norm, along - half, across, side - half, side) * (inside & (along >= half))
    both = upper / jnp.maximum(length(upper), 1e-12) - lower / length(lower)
    return both / length(both)


def _pyramid(norm: str, along: Array, across: Array, length: Array | int, side: Array | int) -> Plane:
    """sum_{j = d}^{n} 1 / (j + 1)^2 (l1: ^4) at distance d in l_inf from the centre of a length x side rectangle."""
    most = max(along.shape[0], along.shape[1], across.shape[0], across.shape[1]) + 2
    below = jnp.asarray(
        np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, most + 1) ** (4 / POWERS[norm]))]), jnp.float32
    )
    distance = jnp.maximum(jnp.abs(along - length // 2), jnp.abs(across - side // 2))
    return below[side // 2 + 1] - below[jnp.clip(distance, 0, side // 2 + 1)]


def _coin(key: PRNGKey, shape: tuple[int, ...] = ()) -> Bool[Array, "..."]:
    return jax.random.uniform(key, shape, dtype=jnp.float32) > 0.5


def _signs(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    return jnp.sign(2 * jax.random.uniform(key, shape, jnp.float32) - 1)


def _within(threat: Threat, images: Images, change: Images) -> Images:
    if threat.norm == "l1":
        return threats.project(threat, images, images + change)
    size = threats.per_example(threats.size("l2", change), change)
    return threats.project(threat, images, images + threats.budget(threat, images) * change / (size + 1e-12))
