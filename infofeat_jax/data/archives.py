"""Data sets as arrays, in memory or in an .npz file, under the names that people give them."""

import os
import pathlib
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from infofeat_jax.data.arrays import MAX_BYTES, SPLITS, Source, checked_source, roles
from infofeat_jax.types import InvalidInput, summary

# (images, labels) of a split: "{}" is train, test or val. This package's names, Keras's, MedMNIST's ...
PAIRS = (
    ("image_{}", "label_{}"), ("images_{}", "labels_{}"), ("x_{}", "y_{}"), ("{}_images", "{}_labels"),
    ("{}_x", "{}_y"), ("{}_data", "{}_labels"),
)  # fmt: skip
WHOLE = (("images", "labels"), ("image", "label"), ("x", "y"), ("data", "labels"), ("data", "target"))
LAYOUT = (
    "image_train, label_train, image_test and label_test (or x_train, y_train ..., or train_images, train_labels ...),"
    " or images and labels, of which a fifth becomes the test split"
)


def npz(path: str) -> Source:
    """Reads an .npz file; nothing is unpickled.

    Its arrays are image_train, label_train, image_test and label_test, or have one of the other names in PAIRS, in
    upper or lower case. A validation split is joined with the training split; where there is no test split, it is that.
    Of `images` and `labels` alone (or another pair of WHOLE), a fifth of each class becomes the test split.
    `class_names`, text [k], is optional.

    Raises:
      InvalidInput: the file is missing or damaged, or its arrays are not a data set (see `checked_source`).
    """
    file = pathlib.Path(os.path.expanduser(path))
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):  # these return False for names that cannot be paths
        raise InvalidInput(f"{path}: no such file, or not readable; data.name takes an .npz file with {LAYOUT}")
    with file.open("rb") as opened:  # numpy.load leaves a damaged file open
        archive = read_archive(path, opened)
        return arranged(path, archive.files, partial(read_member, path, archive))


def arranged(name: str, members: Collection[str], read: Callable[[str], Any]) -> Source:
    """A data set of arrays with these names, whose `members` are obtained by `read`. Raises InvalidInput."""
    called = _layout(name, members)
    arrays = {field: _joined(name, found, [read(one) for one in found]) for field, found in called.items()}
    names = read("class_names") if "class_names" in members else ()
    return checked_source(
        name, arrays, class_names=names, called={field: " + ".join(found) for field, found in called.items()}
    )


def _layout(name: str, members: Collection[str]) -> dict[str, list[str]]:
    """The members that make up image_train, label_train, and image_test, label_test if there is a test split."""
    known = {member.lower(): member for member in members}
    for pair in PAIRS:
        splits = roles([split for split in SPLITS if all(pattern.format(split) in known for pattern in pair)])
        if all(splits):
            return {
                f"{kind}_{split}": [known[pattern.format(published)] for published in names]
                for split, names in zip(("train", "test"), splits, strict=True)
                for kind, pattern in zip(("image", "label"), pair, strict=True)
            }
    for image, label in WHOLE:
        if image in known and label in known:
            return {"image_train": [known[image]], "label_train": [known[label]]}
    raise InvalidInput(f"{name} has {', '.join(members) or 'no arrays'}: expected {LAYOUT}")


def _joined(name: str, members: list[str], arrays: list[Any]) -> np.ndarray:
    for member, array in zip(members, arrays, strict=True):
        if not isinstance(array, np.ndarray):
            raise InvalidInput(f"{name}: {member} is of type {type(array).__name__}, expected a NumPy array")
    if len({array.shape[1:] for array in arrays}) > 1 or (len(arrays) > 1 and not arrays[0].ndim):
        shapes = ", ".join(f"{member} {array.shape}" for member, array in zip(members, arrays, strict=True))
        raise InvalidInput(f"{name}: {shapes}: expected examples of the same shape, which are joined for training")
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


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
