"""TrivialAugment (Müller & Hutter, 2021), wide: one random operation of random strength for each image, on the device.

Written in the integers that Pillow computes with, which the authors use: the results are Pillow's. What depends on the
strength alone is tabulated. Levels are pixels in 0..255, int32 [b, h, w, c]; what is outside an image is black.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from infofeat_jax.data.pixels import to_unit
from infofeat_jax.types import LEVELS, Images, InvalidInput, PRNGKey

STRENGTHS = 31  # equally likely; 0 is the weakest
SHEAR, TRANSLATE, ROTATE = 0.99, 32, 135  # largest: a slope, pixels, degrees
LEAST, MOST = 0.01, 2.0  # factors of what is enhanced
FEWEST = 2  # bits that posterising leaves
FIXED = 2**16  # Pillow's fixed point
Pixels = Int[Array, "b h w c"]
Strengths = Int[Array, "b 1 1 1"]  # 0 to STRENGTHS - 1


def trivial(key: PRNGKey, images: Images) -> Images:
    """TrivialAugment on images [b, h, w, c] in [0, 1], which are rounded to 8 bits; `key` is split over the examples.

    Raises:
      InvalidInput: the images have neither 1 nor 3 channels.
    """
    if images.shape[-1] not in (1, 3):
        raise InvalidInput(f"trivial augmentation of {images.shape[-1]} channels: expected 1 or 3")
    draw = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, jnp.array([len(OPERATIONS), STRENGTHS, 2])))
    operations, strengths, signs = draw(jax.random.split(key, len(images))).T
    levels = jnp.rint(images * LEVELS).astype(jnp.int32)
    changed = apply(levels, operations, strengths, signs == 1)
    return to_unit(changed.astype(jnp.uint8)).astype(images.dtype)


def apply(
    levels: Pixels, operations: Int[Array, " b"], strengths: Int[Array, " b"], negative: Bool[Array, " b"]
) -> Pixels:
    """Each image after its operation, an index of OPERATIONS. `negative`: in the opposite direction, if it has one."""
    height, width = levels.shape[1:3]
    table = jnp.asarray(np.array([_coefficients(name, height, width) for name in OPERATIONS], np.int32))
    changed = _moved(levels, table[operations, strengths, negative.astype(jnp.int32)])
    for index, colour in enumerate(OPERATIONS.values()):
        if colour is not None:
            chosen = (operations == index)[:, None, None, None]
            changed = jnp.where(chosen, colour(levels, strengths[:, None, None, None]), changed)
    return changed


# Where pixels come from.


def _coefficients(name: str, height: int, width: int) -> np.ndarray:
    """(a, b, c, d, e, f) of each strength and sign: out[y, x] = in[d x + e y + f, a x + b y + c], in fixed point."""
    matrices = [
        [_matrix(name, sign * strength / (STRENGTHS - 1), height, width) for sign in (1, -1)]
        for strength in range(STRENGTHS)
    ]
    a, b, c, d, e, f = np.moveaxis(np.array(matrices), -1, 0)
    centred = a, b, c + (a + b) / 2, d, e, f + (d + e) / 2  # of pixels
    return np.stack([np.floor(part * FIXED + 0.5) for part in centred], -1)


def _matrix(name: str, part: float, height: int, width: int) -> Sequence[float | int]:
    """The affine map in pixels, at `part` of the largest strength, -1 to 1."""
    slope, distance = SHEAR * part, int(TRANSLATE * part)
    angle = -np.deg2rad(int(ROTATE * part))
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = width / 2, height / 2
    return {
        "rotate": (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
        "shear_x": (1, slope, 0, 0, 1, 0), "shear_y": (1, 0, 0, slope, 1, 0),
        "translate_x": (1, 0, distance, 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, distance),
    }.get(name, (1, 0, 0, 0, 1, 0))  # fmt: skip


def _moved(levels: Pixels, coefficients: Int[Array, "b 6"]) -> Pixels:
    count, height, width, channels = levels.shape
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    a, b, c, d, e, f = coefficients.T[:, :, None, None]
    row, column = (d * x + e * y + f) // FIXED, (a * x + b * y + c) // FIXED
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    places = (row.clip(0, height - 1) * width + column.clip(0, width - 1)).reshape(count, -1, 1)
    found = jnp.take_along_axis(levels.reshape(count, -1, channels), places, 1).reshape(levels.shape)
    return jnp.where(inside[..., None], found, 0)


# What becomes of their colours.


def _auto_contrast(levels: Pixels, strength: Strengths) -> Pixels:
    low, high = levels.min((1, 2), keepdims=True), levels.max((1, 2), keepdims=True)
    return jnp.where(high > low, (levels - low) * 255 // jnp.maximum(high - low, 1), levels)


def _equalize(levels: Pixels, strength: Strengths) -> Pixels:
    count, height, width, channels = levels.shape
    flat = levels.reshape(count, -1, channels)
    example, channel = jnp.arange(count)[:, None, None], jnp.arange(channels)
    histogram = jnp.zeros((count, 256, channels), jnp.int32).at[example, flat, channel].add(1)
    brightest = (flat == flat.max(1, keepdims=True)).sum(1, keepdims=True)
    step = (height * width - brightest) // 255
    table = (step // 2 + histogram.cumsum(1) - histogram) // jnp.maximum(step, 1)
    equal = jnp.take_along_axis(table.clip(0, 255), flat, 1)
    return jnp.where(step > 0, equal, flat).reshape(levels.shape)


def _solarize(levels: Pixels, strength: Strengths) -> Pixels:
    return jnp.where(levels < 256 - strength * 256 // (STRENGTHS - 1), levels, 255 - levels)


def _posterize(levels: Pixels, strength: Strengths) -> Pixels:
    dropped = strength * (8 - FEWEST) // (STRENGTHS - 1)  # bits
    return levels >> dropped << dropped


def _enhanced(plain: Callable[[Pixels], Int[Array, "b ..."]]) -> Callable[[Pixels, Strengths], Pixels]:
    """From, or beyond, the image without the quality that is enhanced."""
    factors = np.array([np.float32(LEAST + (MOST - LEAST) * s / (STRENGTHS - 1)) for s in range(STRENGTHS)])

    def blend(levels: Pixels, strength: Strengths) -> Pixels:
        without = plain(levels)
        mixed = without + jnp.asarray(factors)[strength] * (levels - without).astype(jnp.float32)
        return jnp.floor(mixed.clip(0, 255)).astype(jnp.int32)

    return blend


def _grey(levels: Pixels) -> Int[Array, "b h w 1"]:
    """Pillow's luminance."""
    if levels.shape[-1] == 1:
        return levels
    return ((levels * jnp.array([19595, 38470, 7471])).sum(-1, keepdims=True) + 2**15) >> 16


def _mean_grey(levels: Pixels) -> Int[Array, "b 1 1 1"]:
    grey = _grey(levels)
    count = grey[0].size
    return (2 * grey.sum((1, 2, 3), keepdims=True) + count) // (2 * count)


def _smooth(levels: Pixels) -> Pixels:
    """A 3 x 3 mean with five times the weight in its middle, but for the border."""
    inner = levels[:, 1:-1, 1:-1]
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * inner
    return levels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)


# The operations, and those of them that change colours.
OPERATIONS: dict[str, Callable[[Pixels, Strengths], Pixels] | None] = {
    "identity": None,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "rotate": None,
    "solarize": _solarize,
    "color": _enhanced(_grey),
    "posterize": _posterize,
    "contrast": _enhanced(_mean_grey),
    "brightness": _enhanced(jnp.zeros_like),
    "sharpness": _enhanced(_smooth),
    "shear_x": None,
    "shear_y": None,
    "translate_x": None,
    "translate_y": None,
}
