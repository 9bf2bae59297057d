"""TFDS data sets, read without TensorFlow from the array_record files that TFDS prepares."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import threading
import urllib.parse
import urllib.request

import numpy as np

from infofeat_jax import installation
from infofeat_jax.data.arrays import Source, checked_source, summary
from infofeat_jax.types import InvalidInput

READ_CHUNK = 1000
REACH_SECONDS = 4.0


def prepared(name: str, url: str, data_dir: str | None = None) -> Source:
    """Returns a TFDS data set, after preparing it if necessary and if TensorFlow and the network allow it.

    `data_dir` defaults to TFDS_DATA_DIR, or TFDS's own ~/tensorflow_datasets; `url` is what TFDS downloads.

    Raises:
      InvalidInput: the data set is missing, partially prepared, in an unsupported format, or damaged.
    """
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(os.path.expanduser(chosen))  # unlike pathlib's, leaves an unknown ~user as it is
    if not (directory := _newest_version(name, root)):
        _prepare(name, url, root)
        directory = _newest_version(name, root) or root / name
    _check_complete(name, directory)
    return _read(name, directory)


def _newest_version(name: str, root: pathlib.Path) -> pathlib.Path | None:
    folder = root / name
    try:
        entries = list(folder.iterdir()) if os.path.isdir(folder) else []
    except OSError as error:
        raise _broken(name, folder, summary(error)) from None
    versions = [entry for entry in entries if re.fullmatch(r"\d+\.\d+\.\d+", entry.name)]
    if not versions and (unfinished := [entry for entry in entries if "incomplete" in entry.name]):
        raise _broken(name, unfinished[0], "an unfinished preparation was left behind")
    return max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))), default=None)


def _check_complete(name: str, directory: pathlib.Path) -> None:
    for file in ("dataset_info.json", "features.json"):
        if not (directory / file).is_file():
            raise _broken(name, directory, f"{file} is missing")
    try:
        info = json.loads((directory / "dataset_info.json").read_text())
        shards = {split["name"]: len(split["shardLengths"]) for split in info["splits"]}
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(name, directory, "dataset_info.json is damaged") from error
    for split in ("train", "test"):
        if split not in shards:
            raise _broken(name, directory, f"its split {split} is missing")
        found = len(list(directory.glob(f"{name}-{split}.array_record-*-of-*")))
        if not found and info.get("fileFormat") != "array_record":
            raise InvalidInput(
                f"data set {name!r} in {directory} has the format {info.get('fileFormat', 'tfrecord')},"
                f" but only array_record can be read without TensorFlow: {_ways(name)}"
            )
        if found != shards[split]:
            raise _broken(name, directory, f"{found} of {shards[split]} array_record files of {split} are there")


def _read(name: str, directory: pathlib.Path) -> Source:
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(directory)
        arrays = {}
        for split in ("train", "test"):
            arrays[f"image_{split}"], arrays[f"label_{split}"] = _decode(builder, split)
        label = builder.info.features["label"]
        num_classes, names = label.num_classes, label.names
    except ImportError as error:
        raise InvalidInput(
            f"data set {name!r} cannot be read ({summary(error)}): run {installation.command('train')}"
        ) from error
    except Exception as error:  # TFDS, array_record and Pillow share no documented type
        raise _broken(name, directory, summary(error)) from error
    return checked_source(name, arrays, num_classes, names)


def _decode(builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Decodes images and labels only, in 70 % of the time that TFDS takes for all features."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    source = builder.as_data_source(split=split)
    images = np.empty((len(source), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    with source.data_source as records:
        for start in range(0, len(source), READ_CHUNK):
            rows = range(start, min(start + READ_CHUNK, len(source)))
            for row, record in zip(rows, records.__getitems__(rows), strict=True):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                with Image.open(io.BytesIO(feature["image"].bytes_list.value[0])) as decoded:
                    images[row] = np.asarray(decoded)
                labels[row] = feature["label"].int64_list.value[0]
    return images, labels


def _prepare(name: str, url: str, root: pathlib.Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise _missing(name, root, "TensorFlow, which prepares it, is not installed")
    if not reachable(url):
        raise _missing(name, root, f"{urllib.parse.urlsplit(url).hostname}, its origin, cannot be reached")
    try:
        import tensorflow_datasets as tfds

        tfds.builder(name, data_dir=str(root), file_format="array_record").download_and_prepare()
    except Exception as error:  # TFDS, TensorFlow and the download share no documented type
        raise _missing(name, root, f"preparing it failed ({summary(error)})") from error


def reachable(url: str, seconds: float = REACH_SECONDS) -> bool:
    """Whether `url` answers a HEAD request within `seconds`, through the proxy if one is set."""
    answered = threading.Event()

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        with contextlib.suppress(Exception), urllib.request.urlopen(request, timeout=seconds):
            answered.set()

    threading.Thread(target=ask, daemon=True).start()  # name resolution ignores timeouts
    return answered.wait(seconds)


def _missing(name: str, root: pathlib.Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"data set {name!r} is not prepared in {root} (data.data_dir, or TFDS_DATA_DIR), and {reason}: {_ways(name)}"
    )


def _broken(name: str, directory: pathlib.Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"data set {name!r} in {directory} is half prepared or damaged: {reason}; delete it and {_ways(name)}"
    )


def _ways(name: str) -> str:
    return (
        f"run `tfds build {name} --file_format=array_record` on a connected machine with TensorFlow and copy"
        " its data_dir here, or set data.name to the path of an .npz with image_train, label_train,"
        " image_test and label_test, to a folder of images, or to digits"
    )
