"""Data sets as TFDS prepares them, in array_record files, read without TensorFlow."""

import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from infofeat_jax import installation
from infofeat_jax.data.arrays import SPLITS, Source, checked_source, roles
from infofeat_jax.data.decoding import MODES, check_memory, decode
from infofeat_jax.data.files import FileImages
from infofeat_jax.types import InvalidInput, summary

READ_CHUNK = 1000
INFO, FEATURES = "dataset_info.json", "features.json"


class Place(NamedTuple):
    """Of an example."""

    split: str
    row: int


class Opened(NamedTuple):
    """A data set's files."""

    records: Mapping[str, Any]  # of each split: array_record's, which threads may read
    labels: Mapping[str, Int[np.ndarray, " n"]]
    sizes: Mapping[str, int]  # bytes of each split
    shape: tuple[int | None, ...]  # of an image
    class_names: tuple[str, ...]


def find(directory: pathlib.Path) -> pathlib.Path | None:
    """The directory itself, if TFDS has prepared it (imagenet2012/5.1.0), or the newest version in it, or None."""
    version = directory if (directory / FEATURES).is_file() else newest(directory.iterdir())
    return version if version and (version / INFO).is_file() and (version / FEATURES).is_file() else None


def newest(entries: Iterable[pathlib.Path]) -> pathlib.Path | None:
    """Of the entries of a data set's directory, that of its newest version."""
    versions = [entry for entry in entries if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)]
    return max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))), default=None)


def read(directory: pathlib.Path, *, image_size: int = 0, in_memory: bool = True) -> Source:
    """Reads a data set that TFDS has prepared in files of array_record, with the features `image` and `label`.

    A published validation split joins the training images, or is the test split where no other has labels (-1 is none).

    Args:
      directory: of a version of the data set.
      image_size: pixels of a side: each image's largest square in the middle is scaled to it, bilinearly. 0: the
        images' own size, which must be one.
      in_memory: decodes all images now. Otherwise all files are read once for their labels, and a batch's images are
        decoded when it is due.

    Raises:
      InvalidInput: files are missing or damaged, or in another format, or the features are others.
    """
    name, splits = _check_complete(directory)
    opened = _open(name, directory, splits)
    train, test = roles([split for split, labels in opened.labels.items() if labels.max(initial=-1) >= 0])
    shape = _image_shape(directory, opened.shape, image_size)
    if in_memory:
        check_memory(name, sum(len(opened.labels[split]) for split in train + test), shape)
    identify, decoded = partial(_identify, opened.sizes), partial(_decode, directory, image_size, opened.records)
    arrays = {}
    for role, joined in (("train", train), ("test", test)):
        if joined:
            places = [Place(split, row) for split in joined for row in range(len(opened.labels[split]))]
            images = FileImages(places, shape, decoded, identify)
            arrays[f"image_{role}"] = np.asarray(images) if in_memory else images
            arrays[f"label_{role}"] = np.concatenate([opened.labels[split] for split in joined])
    return checked_source(name, arrays, len(opened.class_names), opened.class_names)


def _check_complete(directory: pathlib.Path) -> tuple[str, list[str]]:
    """The data set's name, and those of its splits that have a use here."""
    for file in (INFO, FEATURES):
        if not (directory / file).is_file():
            raise broken(directory.parent.name, directory, f"{file} is missing")
    try:
        info = json.loads((directory / INFO).read_text())
        name, shards = info["name"], {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except (ValueError, KeyError, TypeError) as error:
        raise broken(directory.parent.name, directory, f"{INFO} is damaged") from error
    splits = [split for split in SPLITS if split in shards]
    if not roles(splits)[0]:
        raise broken(name, directory, "its split train is missing")
    for split in splits:
        found = len(list(directory.glob(f"{name}-{split}.array_record-*-of-*")))
        if not found and info.get("fileFormat") != "array_record":
            raise InvalidInput(
                f"data set {name!r} in {directory} has the format {info.get('fileFormat', 'tfrecord')},"
                f" but only array_record can be read without TensorFlow: {ways(name)}"
            )
        if found != shards[split]:
            raise broken(name, directory, f"{found} of {shards[split]} array_record files of {split} are there")
    return name, splits


def _open(name: str, directory: pathlib.Path, splits: list[str]) -> Opened:
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        features = builder.info.features
        if not {"image", "label"} <= {*features}:
            raise InvalidInput(f"{directory} has the features {', '.join(sorted(features))}: expected image and label")
        for feature, kind in (("image", tfds.features.Image), ("label", tfds.features.ClassLabel)):
            if not isinstance(features[feature], kind):
                found = type(features[feature]).__name__
                raise InvalidInput(f"{directory}: {feature} is a feature of type {found}: expected {kind.__name__}")
        files = {split: builder.as_data_source(split=split).data_source for split in splits}
        return Opened(
            files, {split: _labels(files[split]) for split in splits},
            {split: int(builder.info.splits[split].num_bytes) for split in splits},  # a Size, which rounds as text
            features["image"].shape, tuple(features["label"].names),
        )  # fmt: skip
    except ImportError as error:
        missing = f"data set {name!r} cannot be read ({summary(error)})"
        raise InvalidInput(f"{missing}: run {installation.command('train')}") from error
    except InvalidInput:
        raise
    except Exception as error:  # TFDS and array_record share no documented type
        raise broken(name, directory, summary(error)) from error


def _labels(records) -> Int[np.ndarray, " n"]:
    labels = np.empty(len(records), np.int64)
    for start in range(0, len(records), READ_CHUNK):
        rows = range(start, min(start + READ_CHUNK, len(records)))
        for row, record in zip(rows, records.__getitems__(rows), strict=True):
            labels[row] = _features(record)["label"].int64_list.value[0]
    return labels


def _features(record: bytes):
    """What TFDS has stored, by name: reading it takes less time than TFDS's decoding of all features."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature


def _image_shape(directory: pathlib.Path, shape: tuple[int | None, ...], image_size: int) -> tuple[int, int, int]:
    """The shape that all images have, or are scaled and converted to."""
    *sides, channels = shape
    if len(shape) != 3 or channels not in MODES:
        raise InvalidInput(f"{directory}: images {shape}, expected height, width and 1, 3 or 4 channels")
    if None in sides and not image_size:
        raise InvalidInput(f"{directory}: images of different sizes: set data.image_size, such as 224")
    height, width = (image_size, image_size) if image_size else sides
    return height, width, channels


def _decode(
    directory: pathlib.Path, image_size: int, records: Mapping[str, Any], places: Sequence[Place], out: np.ndarray
) -> None:
    for split in {place.split for place in places}:
        at = [index for index, place in enumerate(places) if place.split == split]
        rows = [places[index].row for index in at]
        try:
            found = records[split].__getitems__(rows)
        except Exception as error:  # array_record documents no common type
            raise InvalidInput(f"{directory}: examples of {split} cannot be read: {summary(error)}") from None
        for index, row, record in zip(at, rows, found, strict=True):
            image = io.BytesIO(_features(record)["image"].bytes_list.value[0])
            decode(image_size, f"{directory}, example {row} of {split}", image, out[index])


def _identify(sizes: Mapping[str, int], place: Place) -> str:
    return f"{place.split} of {sizes[place.split]} bytes, {place.row}"


def broken(name: str, directory: pathlib.Path, reason: str) -> InvalidInput:
    """The error for a data set that has to be prepared again."""
    return InvalidInput(
        f"data set {name!r} in {directory} is half prepared or damaged: {reason}; delete it and {ways(name)}"
    )


def ways(name: str) -> str:
    """How to come by a data set."""
    return (
        f"run `tfds build {name} --file_format=array_record` on a connected machine with TensorFlow and copy"
        " its data_dir here, or set data.name to the path of an .npz with image_train, label_train,"
        " image_test and label_test, to a folder of images, or to digits"
    )
