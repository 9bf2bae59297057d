"""Data sets as arrays in memory, and the checks that every source must pass."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from infofeat_jax.types import InvalidInput

MAX_CLASSES = 65_536  # a larger label is a mistake, and would need a classifier too large for any memory


class Split(NamedTuple):
    """Images, uint8 in 0..255, channels last, and their class indices. Those of an evaluation may be float32."""

    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]


class Dataset(NamedTuple):
    """A data set as used in training; `validation` is held out from the original training set."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    name: str


class Source(NamedTuple):
    """A data set as published, before a validation split is held out."""

    train: Split
    test: Split
    num_classes: int


def checked_source(name: str, arrays: dict[str, np.ndarray], num_classes: int | None = None) -> Source:
    """Builds a Source from image_train, label_train, image_test and label_test.

    Images are uint8 [n, h, w, c] with 1 to 4 channels, or [n, h, w], which gets a channel axis; labels are
    integers [n] in [0, num_classes). `num_classes` is by default one more than the largest training label.

    Raises:
      InvalidInput: an array has the wrong dtype or shape, the arrays disagree, or a label is out of range.
    """
    train = checked_split(name, arrays, ("image_train", "label_train"), num_classes or MAX_CLASSES)
    num_classes = num_classes or _count_classes(name, train.labels)
    test = checked_split(name, arrays, ("image_test", "label_test"), num_classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InvalidInput(
            f"{name}: image_train and image_test hold images of different shapes,"
            f" {train.images.shape[1:]} and {test.images.shape[1:]}"
        )
    return Source(train, test, num_classes)


def _count_classes(name: str, labels: np.ndarray) -> int:
    if labels.min() == labels.max():
        raise InvalidInput(
            f"{name}: label_train holds the label {labels[0]} alone: expected 2 or more classes, numbered from 0"
        )
    return int(labels.max()) + 1


def checked_split(name: str, arrays: dict[str, np.ndarray], fields: tuple[str, str], num_classes: int) -> Split:
    """The Split of the images and labels that `fields` names, as `checked_source` describes them; raises as it does."""
    image, label = fields
    images = _checked_images(f"{name}: {image}", arrays[image])
    labels = arrays[label]
    _check_labels(f"{name}: {label}", labels, num_classes)
    if len(images) != len(labels):
        raise InvalidInput(f"{name}: {image} has {len(images)} images but {label} {len(labels)}")
    return Split(np.ascontiguousarray(images), np.ascontiguousarray(labels, np.int32))


def _checked_images(what: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise InvalidInput(f"{what} has dtype {images.dtype}, expected uint8 in 0..255")
    shape = images.shape
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        raise InvalidInput(f"{what} has shape {shape}, expected [n, h, w] or [n, h, w, 1 to 4 channels]")
    if 0 in shape:
        raise InvalidInput(f"{what} is empty: it has shape {shape}")
    return images


def _check_labels(what: str, labels: np.ndarray, num_classes: int) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InvalidInput(f"{what} is {labels.dtype} of shape {labels.shape}, expected integers of shape [n]")
    if not labels.size:
        raise InvalidInput(f"{what} is empty")
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        outside = lowest if lowest < 0 else highest
        raise InvalidInput(f"{what} has the label {outside}, expected 0 to {num_classes - 1}")


def summary(error: Exception) -> str:
    """Returns a one-line summary of another library's error: its type, and the beginning of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
