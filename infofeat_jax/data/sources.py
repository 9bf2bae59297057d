"""Data sets that have a name: the embedded digits, and those of TFDS. Adding one adds an entry to SOURCES."""

import importlib.util
import pathlib
from collections.abc import Callable
from functools import partial

import numpy as np

from infofeat_jax import installation
from infofeat_jax.data.arrays import Source, checked_source, fixed_order
from infofeat_jax.data.prepared import prepared
from infofeat_jax.types import InvalidInput

DIGITS_TRAIN = 1297
DIGITS_FILE = "datasets/data/digits.csv.gz"  # of scikit-learn: 64 levels and a label in each line


def digits(data_dir: str | None = None) -> Source:
    """Returns scikit-learn's handwritten digits, 8x8x1: 1297 for training and 500 for testing.

    Their 17 grey levels, 0 to 16, are scaled to 0 to 255. `data_dir` is unused: scikit-learn ships the images.

    Raises:
      InvalidInput: scikit-learn is not installed.
    """
    del data_dir
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        either = f"pip install scikit-learn, or {installation.command('train')}"
        raise InvalidInput(f"data set 'digits' needs scikit-learn (sklearn): run {either}")
    lines = _read_digits(pathlib.Path(found.origin).parent / DIGITS_FILE)
    levels, labels = lines[:, :-1], lines[:, -1].astype(np.int64)
    images = np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = fixed_order(len(labels))
    arrays = {}
    for split, rows in (("train", order[:DIGITS_TRAIN]), ("test", order[DIGITS_TRAIN:])):
        arrays[f"image_{split}"], arrays[f"label_{split}"] = images[rows], labels[rows]
    return checked_source("digits", arrays, class_names="0123456789")


def _read_digits(file: pathlib.Path) -> np.ndarray:
    """The file as it is, as to import scikit-learn takes a second; by its own function where the file is not there."""
    if file.exists():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))


SOURCES: dict[str, Callable[[str | None], Source]] = {
    "digits": digits,
    "cifar10": partial(prepared, "cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
    "cifar100": partial(prepared, "cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"),
    "svhn_cropped": partial(prepared, "svhn_cropped", "http://ufldl.stanford.edu/housenumbers/train_32x32.mat"),
}
