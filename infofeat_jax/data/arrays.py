"""Data sets as arrays in memory, and the checks that every source must pass."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from infofeat_jax.data.files import FileImages, select
from infofeat_jax.types import InvalidInput

MAX_CLASSES = 65_536  # a larger label is a mistake, and would need a classifier too large for any memory
LONGEST_CLASS = 100  # characters of a class's name
MAX_BYTES = 2**36  # of an array in a file
# What people call the splits.
TRAIN, VALIDATION, TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
SPLITS = (*TRAIN, *VALIDATION, *TEST)
ORDER_SEED = 1797  # fixed: a test split that is drawn is the same in every run


class Split(NamedTuple):
    """Images, uint8 in 0..255, channels last, and their class indices. Those of an evaluation may be float32."""

    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"] | FileImages
    labels: Int32[np.ndarray, " n"]


class Dataset(NamedTuple):
    """A data set as used in training; `validation` is held out from the original training set."""

    train: Split
    validation: Split
    test: Split
    num_classes: int
    name: str
    class_names: tuple[str, ...] = ()  # one for each class; () if the source names none


class Source(NamedTuple):
    """A data set as published, before a validation split is held out."""

    train: Split
    test: Split
    num_classes: int
    class_names: tuple[str, ...] = ()


def checked_source(
    name: str,
    arrays: Mapping[str, np.ndarray | FileImages],
    num_classes: int | None = None,
    class_names: Sequence[str] | np.ndarray = (),
    called: Mapping[str, str] | None = None,
) -> Source:
    """Builds a Source from image_train, label_train, image_test and label_test.

    Images are uint8 [n, h, w, c] with 1 to 4 channels, or [n, h, w], which gets a channel axis; labels are
    integers [n] or [n, 1] in [0, num_classes). `num_classes` is by default the number of `class_names`, or without
    these one more than the largest training label. Without image_test, a fifth of each class becomes the test split,
    drawn with a fixed seed. `called`: what the user calls the arrays, for messages.

    Raises:
      InvalidInput: an array has the wrong dtype or shape, the arrays disagree, or a label is out of range.
    """
    class_names = _checked_names(name, class_names, num_classes)
    num_classes = num_classes or len(class_names) or None
    given = {field: (f"{name}: {(called or {}).get(field, field)}", array) for field, array in arrays.items()}
    train = checked_split(*given["image_train"], *given["label_train"], num_classes or MAX_CLASSES)
    num_classes = num_classes or _count_classes(given["label_train"][0], train.labels)
    if "image_test" not in given:
        return Source(*_split_off_test(name, train), num_classes, class_names)
    test = checked_split(*given["image_test"], *given["label_test"], num_classes)
    if train.images.shape[1:] != test.images.shape[1:]:
        raise InvalidInput(
            f"{name}: training and test images have different shapes,"
            f" {train.images.shape[1:]} and {test.images.shape[1:]}"
        )
    return Source(train, test, num_classes, class_names)


def _checked_names(name: str, names: Sequence[str] | np.ndarray, num_classes: int | None) -> tuple[str, ...]:
    found = np.atleast_1d(names).tolist() if isinstance(names, np.ndarray) else list(names)
    wrong = [text for text in found if not (isinstance(text, str) and text.isprintable())]
    wrong += [text for text in found if text not in wrong and not 0 < len(text) <= LONGEST_CLASS]
    expected = f"text of 1 to {LONGEST_CLASS} printable characters for each class, all different"
    if wrong:
        raise InvalidInput(f"{name}: class_names has {str(wrong[0])[:LONGEST_CLASS]!r}, expected {expected}")
    if found and (len(found) < 2 or len(found) != (num_classes or len(found)) or len(set(found)) < len(found)):
        count = f"{len(found)} names, {len(set(found))} of them different, for {num_classes or '2 or more'} classes"
        raise InvalidInput(f"{name}: class_names has {count}: expected {expected}")
    return tuple(found)


def _count_classes(what: str, labels: np.ndarray) -> int:
    if labels.min() == labels.max():
        raise InvalidInput(f"{what} holds the label {labels[0]} alone: expected 2 or more classes, numbered from 0")
    return int(labels.max()) + 1


def _split_off_test(name: str, whole: Split) -> tuple[Split, Split]:
    """A fifth of each class, to within one image, becomes the test split. Both are in random order."""
    order = fixed_order(len(whole.labels))
    by_class = order[np.argsort(whole.labels[order], kind="stable")]
    tested = np.zeros(len(order), bool)
    tested[by_class[4::5]] = True
    if not tested.any():
        raise InvalidInput(f"{name} has {len(order)} images: expected 5 or more, of which a fifth is the test split")
    rows = order[~tested[order]], order[tested[order]]
    return take(whole, rows[0]), take(whole, rows[1])


def take(split: Split, rows: Int[np.ndarray, " b"]) -> Split:
    """The examples of these rows, in this order; images in files stay there."""
    return Split(select(split.images, rows), split.labels[rows])


def fixed_order(count: int) -> np.ndarray:
    """A random order of `count` images that is always the same."""
    return np.random.default_rng(ORDER_SEED).permutation(count)


def roles(available: Collection[str]) -> tuple[list[str], list[str]]:
    """Of the splits that a source has, those to train on and to test on.

    A published validation split is joined with the training split; where there is no test split, it is that.
    """
    train, validation, test = ([name for name in names if name in available] for names in (TRAIN, VALIDATION, TEST))
    return (train + validation, test) if test else (train, validation)


def checked_split(
    image_name: str, images: np.ndarray | FileImages, label_name: str, labels: np.ndarray, num_classes: int
) -> Split:
    """Images and labels as `checked_source` describes them, called by these names in errors; raises as it does."""
    images, labels = _checked_images(image_name, images), _checked_labels(label_name, labels, num_classes)
    if len(images) != len(labels):
        raise InvalidInput(f"{image_name} has {len(images)} images but {label_name} has {len(labels)} labels")
    images = images if isinstance(images, FileImages) else np.ascontiguousarray(images)
    return Split(images, np.ascontiguousarray(labels, np.int32))


def _checked_images(what: str, images: np.ndarray | FileImages) -> np.ndarray | FileImages:
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


def _checked_labels(what: str, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras and MedMNIST keep them
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise InvalidInput(f"{what} is {labels.dtype} of shape {labels.shape}, expected integers of shape [n]")
    if not labels.size:
        raise InvalidInput(f"{what} is empty")
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or highest >= num_classes:
        outside = lowest if lowest < 0 else highest
        raise InvalidInput(f"{what} has the label {outside}, expected 0 to {num_classes - 1}")
    return labels
