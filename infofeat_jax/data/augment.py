"""Data augmentation: pure functions (key, images) -> images on float images [b, h, w, c] in [0, 1].

Every example has its own key: its augmentation depends neither on the rest of the batch nor on the device count.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from infofeat_jax.data.trivial import trivial
from infofeat_jax.types import Images, InvalidInput, PRNGKey

FIRST: dict[str, Callable[[PRNGKey, Images], Images]] = {"none": lambda key, images: images, "trivial": trivial}
BEFORE = 0x747269  # what the key is folded with for FIRST


def random_crop(key: PRNGKey, images: Images, padding: int) -> Images:
    """Pads each image with black (0) on all sides and crops it to its original size at a random offset.

    As in the paper, padding comes before normalisation: the border is black, not the mean colour.

    Args:
      key: one key, which is split over the examples.
      images: [b, h, w, c] in [0, 1].
      padding: pixels on each side, static; each of the (2 padding + 1)^2 offsets is equally likely.

    Raises:
      InvalidInput: `padding` is negative.
    """
    if padding < 0:
        raise InvalidInput(f"padding={padding}: expected 0 or more pixels on each side")
    draw = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))
    top, left = draw(jax.random.split(key, len(images))).T
    return _shift(_shift(images, top, padding, axis=1), left, padding, axis=2)


def _shift(images: Images, offsets: Int[Array, " b"], padding: int, axis: int) -> Images:
    """Pads along `axis` and crops at each image's offset: a choice of windows, for a slice each is a loop on a TPU."""
    padded = jnp.pad(images, [(padding, padding) if axis == a else (0, 0) for a in range(4)])
    windows = (jax.lax.slice_in_dim(padded, at, at + images.shape[axis], axis=axis) for at in range(2 * padding + 1))
    chosen = images
    for at, window in enumerate(windows):
        chosen = jnp.where((offsets == at)[:, None, None, None], window, chosen)
    return chosen


def random_flip(key: PRNGKey, images: Images) -> Images:
    """Flips each image horizontally with probability one half.

    Images are [b, h, w, c]; `key` is split over the examples.
    """
    mirrored = jax.vmap(jax.random.bernoulli)(jax.random.split(key, len(images)))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def crop_and_flip(key: PRNGKey, images: Images, *, padding: int, flip: bool, first: str = "none") -> Images:
    """Applies `random_crop`, unless `padding` is 0, then `random_flip`, if `flip`, with independent keys.

    Images are [b, h, w, c] in [0, 1]; `padding` and `flip` are static. `first`: what is applied before, of FIRST.

    Raises:
      InvalidInput: `padding` is negative, or `first` does not apply to the images.
    """
    images = FIRST[first](jax.random.fold_in(key, BEFORE), images)
    crop_key, flip_key = jax.random.split(key)
    if padding != 0:
        images = random_crop(crop_key, images, padding)
    return random_flip(flip_key, images) if flip else images
