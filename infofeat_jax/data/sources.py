"""Sources of data sets: the embedded digits, TFDS, and .npz files. Adding one adds an entry to SOURCES."""

import os
import pathlib
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

import numpy as np

from infofeat_jax import installation
from infofeat_jax.data.arrays import Source, checked_source, summary
from infofeat_jax.data.prepared import prepared
from infofeat_jax.types import InvalidInput

ARRAYS = ("image_train", "label_train", "image_test", "label_test")
DIGITS_SPLIT_SEED = 1797  # fixed: the test digits are the same in every run
DIGITS_TRAIN = 1297
MAX_BYTES = 2**36  # of an array in an .npz


def digits(data_dir: str | None = None) -> Source:
    """Returns scikit-learn's handwritten digits, 8x8x1: 1297 for training and 500 for testing.

    Their 17 grey levels, 0 to 16, are scaled to 0 to 255. `data_dir` is unused: scikit-learn ships the images.

    Raises:
      InvalidInput: scikit-learn is not installed.
    """
    del data_dir
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InvalidInput(
            f"data set 'digits' needs scikit-learn ({error}): run {installation.command('train')}"
        ) from error
    levels, labels = load_digits(return_X_y=True)
    images = np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(labels))
    arrays = {}
    for split, rows in (("train", order[:DIGITS_TRAIN]), ("test", order[DIGITS_TRAIN:])):
        arrays[f"image_{split}"], arrays[f"label_{split}"] = images[rows], labels[rows]
    return checked_source("digits", arrays, num_classes=10)


def npz(path: str) -> Source:
    """Reads image_train, label_train, image_test and label_test from an .npz file; nothing is unpickled.

    Raises:
      InvalidInput: the file is missing or damaged, or its arrays are not a data set (see `checked_source`).
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):  # these return False for names that cannot be paths
        raise InvalidInput(
            f"{path}: no such file, or not readable; data.name takes an .npz file with {', '.join(ARRAYS)}"
        )
    with file.open("rb") as opened:  # numpy.load leaves a damaged file open
        archive = read_archive(path, opened)
        if missing := [name for name in ARRAYS if name not in archive]:
            raise InvalidInput(f"{path} lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'no arrays'}")
        return checked_source(path, {name: read_member(path, archive, name) for name in ARRAYS})


def read_archive(path: str, opened: BinaryIO) -> np.lib.npyio.NpzFile:
    """The .npz in an open file, of which nothing is unpickled. Raises InvalidInput if it is not one."""
    try:
        archive = np.load(opened, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        return archive
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise InvalidInput(f"{path} is not an .npz file as numpy.savez writes it: {summary(error)}") from error


def read_member(path: str, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of an .npz, read into memory. Raises InvalidInput if it is damaged or too large."""
    try:
        size = archive.zip.getinfo(name + ".npy").file_size  # uncompressed; zipfile reads no more than this
        if size > MAX_BYTES:
            raise ValueError(f"it takes {size / 2**30:.0f} GiB: expected at most {MAX_BYTES / 2**30:.0f}")
        return archive[name]
    except Exception as error:
        raise InvalidInput(f"{path}: {name} cannot be read as a plain array: {summary(error)}") from error


SOURCES: dict[str, Callable[[str | None], Source]] = {
    "digits": digits,
    "cifar10": partial(prepared, "cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
    "cifar100": partial(prepared, "cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"),
    "svhn_cropped": partial(prepared, "svhn_cropped", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"),
}
