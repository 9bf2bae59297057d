"""Image data sets: uint8, channels last, with a validation split held out from the training set."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from infofeat_jax import parts, streams
from infofeat_jax.data import augment, records
from infofeat_jax.data.archives import LAYOUT, arranged, npz
from infofeat_jax.data.arrays import Dataset, Source, Split, take
from infofeat_jax.data.folders import folder
from infofeat_jax.data.pixels import to_unit
from infofeat_jax.data.sources import SOURCES
from infofeat_jax.types import InvalidInput

__all__ = ["Dataset", "Split", "augment", "load", "to_unit"]

VALIDATION_SIZE = 1000  # held out by default, of data as large as CIFAR


def load(
    name: str | os.PathLike[str] | Mapping[str, Any],
    *,
    data_dir: str | None = None,
    validation_size: int | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    split_seed: int = 0,
    image_size: int = 0,
    in_memory: bool = True,
) -> Dataset:
    """Loads a data set, into memory unless it is told not to.

    Args:
      name: digits, cifar10, cifar100, svhn_cropped; the path of an .npz with image_train, label_train, image_test and
        label_test, or other usual names (`archives.npz`); the path of a folder with a folder of images for each class
        (`folders.folder`), or of one that TFDS has prepared (`records.read`); package.module:name, a function of
        `data_dir` that returns these arrays in a dict; or the dict itself.
      data_dir: where prepared TFDS data sets are; TFDS_DATA_DIR or ~/tensorflow_datasets by default.
      validation_size: number of training images to hold out, drawn at random with `split_seed`; 0: none. By default
        1000, but at most a fifth.
      train_size: number of the remaining images to keep, in an order drawn with `split_seed`; all by default.
      test_size: number of test images to keep, the first ones; all by default.
      split_seed: a non-negative integer, separate from a run's seed. The test split does not depend on it.
      image_size: of the images in a folder, or in one that TFDS has prepared, which are scaled to so many pixels a
        side; 0: their own size.
      in_memory: False leaves such images in their files until a batch needs them; see `files.FileImages`.

    Returns:
      A Dataset of uint8 images [n, h, w, c] in 0..255 and int32 labels [n] in [0, num_classes). Its `class_names` are
      those of TFDS, the folders', or the array or item `class_names`, and () where there are none.

    Raises:
      InvalidInput: the name is unknown, the data cannot be found or read, or a size is out of range.

    >>> load("digits").validation.images.shape
    (259, 8, 8, 1)
    >>> digits = load("digits", validation_size=200)
    >>> digits.train.images.shape, digits.validation.images.shape, digits.test.images.shape
    ((1097, 8, 8, 1), (200, 8, 8, 1), (500, 8, 8, 1))
    """
    _check_integer("split_seed", split_seed, 0, None, "a non-negative integer")
    if isinstance(name, Mapping):
        name, source = "arrays", arranged("arrays", list(map(str, name)), name.__getitem__)
    else:
        source = _find(name := os.fspath(name), data_dir, image_size, in_memory)
    available = len(source.train.labels)
    if validation_size is None:
        validation_size = min(VALIDATION_SIZE, available // 5)
    meaning = f"of {available} training images, such as {max(available // 5, 1)}"
    _check_integer("validation_size", validation_size, 0, available - 1, meaning)
    rest = available - validation_size
    _check_integer("train_size", train_size, 1, rest, f"of {rest} training images after validation")
    _check_integer("test_size", test_size, 1, len(source.test.labels), "of the test images")
    order = streams.generator(split_seed, "held_out").permutation(available)
    kept = order[validation_size:][:train_size]
    return Dataset(
        train=take(source.train, kept),
        validation=take(source.train, order[:validation_size]),
        test=Split(source.test.images[:test_size], source.test.labels[:test_size]),
        num_classes=source.num_classes,
        name=name,
        class_names=source.class_names,
    )


def _find(name: str, data_dir: str | None, image_size: int, in_memory: bool) -> Source:
    own = name.lower().endswith(".npz") or parts.is_own(name) or name in SOURCES
    directory = pathlib.Path(os.path.expanduser(name))
    if not own and os.path.isdir(directory):
        if version := records.find(directory):
            return records.read(version, image_size=image_size, in_memory=in_memory)
        return folder(name, image_size=image_size, in_memory=in_memory)
    if image_size or not in_memory:
        set_to = f"data.image_size={image_size}, data.in_memory={in_memory}"
        raise InvalidInput(f"{set_to}: {name!r} is no folder of images, nor one that TFDS has prepared")
    if name.lower().endswith(".npz"):
        return npz(name)
    if parts.is_own(name):
        return _own(name, data_dir)
    if name in SOURCES:
        return SOURCES[name](data_dir)
    choices = ", ".join(sorted(SOURCES))
    raise InvalidInput(
        f"unknown data set {name!r}: choose one of {choices}, the path of an .npz or of a folder of images,"
        " or package.module:name"
    )


def _own(name: str, data_dir: str | None) -> Source:
    arrays = parts.call("config.data.name", name, dict, f"a dict of NumPy arrays {LAYOUT}", data_dir)
    return arranged(f"config.data.name = {name!r}", list(map(str, arrays)), arrays.__getitem__)


def _check_integer(field: str, value: int | None, low: int, high: int | None, meaning: str) -> None:
    if value is None and field.endswith(("train_size", "test_size")):
        return
    if (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and low <= value
        and (high is None or value <= high)
    ):
        return
    limits = meaning if high is None else f"{low} to {high} {meaning}"
    raise InvalidInput(f"{field}={value!r}: expected {limits}")
