"""Data sets in .npz files, under the names that people give to their arrays."""

import os
import pathlib
from typing import BinaryIO

import numpy as np

from infofeat_jax.data.arrays import MAX_BYTES, SPLITS, Source, checked_source, roles, summary
from infofeat_jax.types import InvalidInput

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
        archive = _archive(path, opened)
        called = _layout(path, archive.files)
        arrays = {name: _joined(path, archive, members) for name, members in called.items()}
        names = _member(path, archive, "class_names") if "class_names" in archive else ()
        return checked_source(
            path, arrays, class_names=names, called={name: " + ".join(members) for name, members in called.items()}
        )


def _layout(path: str, members: list[str]) -> dict[str, list[str]]:
    """The members that make up image_train, label_train, and image_test, label_test if there is a test split."""
    known = {member.lower(): member for member in members}
    for pair in PAIRS:
        splits = roles([name for name in SPLITS if all(pattern.format(name) in known for pattern in pair)])
        if all(splits):
            return {
                f"{kind}_{split}": [known[pattern.format(name)] for name in names]
                for split, names in zip(("train", "test"), splits, strict=True)
                for kind, pattern in zip(("image", "label"), pair, strict=True)
            }
    for image, label in WHOLE:
        if image in known and label in known:
            return {"image_train": [known[image]], "label_train": [known[label]]}
    raise InvalidInput(f"{path} has {', '.join(members) or 'no arrays'}: expected {LAYOUT}")


def _joined(path: str, archive: np.lib.npyio.NpzFile, members: list[str]) -> np.ndarray:
    arrays = [_member(path, archive, name) for name in members]
    if len({array.shape[1:] for array in arrays}) > 1 or (len(arrays) > 1 and not arrays[0].ndim):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(members, arrays, strict=True))
        raise InvalidInput(f"{path}: {shapes}: expected examples of the same shape, which are joined for training")
    return np.concatenate(arrays) if len(arrays) > 1 else arrays[0]


def _archive(path: str, opened: BinaryIO) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(opened, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it holds a single array")
        return archive
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise InvalidInput(f"{path} is not an .npz file as numpy.savez writes it: {summary(error)}") from error


def _member(path: str, archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        size = archive.zip.getinfo(name + ".npy").file_size  # uncompressed; zipfile reads no more than this
        if size > MAX_BYTES:
            raise ValueError(f"it takes {size / 2**30:.0f} GiB: expected at most {MAX_BYTES / 2**30:.0f}")
        return archive[name]
    except Exception as error:
        raise InvalidInput(f"{path}: {name} cannot be read as a plain array: {summary(error)}") from error
