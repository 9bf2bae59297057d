"""The images that a caller gives, in their layout, as the evaluation holds them: uint8 or float32, channels last."""

from typing import Any

import numpy as np

from infofeat_jax.attacks.inputs import MOST_CHANNELS, seem_channels_first
from infofeat_jax.data import Split
from infofeat_jax.types import InvalidInput


def read(images: Any, labels: Any) -> tuple[Split, bool]:
    """(images [n, h, w, c], labels; whether the images were channels first). Raises InvalidInput.

    Whether channels are first: as by `seem_channels_first`.
    """
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError:
        raise InvalidInput("images or labels are lists of unequal lengths: expected arrays") from None
    if not images.size or images.ndim != 4 or labels.shape != images.shape[:1]:
        shapes = f"images of shape {list(images.shape)}, labels of shape {list(labels.shape)}"
        raise InvalidInput(f"{shapes}: expected [n, h, w, c] and [n], with at least one image")
    if labels.dtype.kind not in "iu":
        raise InvalidInput(f"labels are {labels.dtype}: expected integers")
    if images.dtype.name in ("float16", "bfloat16"):
        images = images.astype(np.float32)
    if images.dtype.name not in ("uint8", "float32"):
        raise InvalidInput(
            f"images are {images.dtype}: expected float32 in [0, 1], or uint8: use images.astype('float32')"
        )
    first = seem_channels_first(images)
    images = images.transpose(0, 2, 3, 1) if first else images
    return Split(np.ascontiguousarray(images), labels.astype(np.int32)), first


def as_given(images: np.ndarray, channels_first: bool) -> np.ndarray:
    """Images [n, h, w, c] in the layout of the given ones."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if channels_first else images


def notes(split: Split, channels_first: bool) -> list[str]:
    """What was done about the images."""
    said = {
        "the images are channels first, [n, c, h, w]; so are those returned": channels_first,
        f"images of shape {list(split.images.shape)} are taken as [n, height, width, channels]": (
            split.images.shape[3] > MOST_CHANNELS
        ),
        "the images are uint8 and were divided by 255; those returned are in [0, 1]": split.images.dtype == np.uint8,
    }
    return [text for text, true in said.items() if true]
