"""Loading data sets: what is returned, and the error messages when it fails."""

import http.server
import importlib.util
import io
import json
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_files
from hypothesis import given, settings
from hypothesis import strategies as st

from infofeat_jax import data, installation
from infofeat_jax.data import batches, prepared, records, sources
from infofeat_jax.types import InvalidInput


def create_images(n, shape=(6, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def arrays(train=30, test=12, classes=4):
    return {
        "image_train": create_images(train),
        "label_train": np.arange(train) % classes,
        "image_test": create_images(test, seed=1),
        "label_test": np.arange(test) % classes,
    }


@pytest.fixture
def npz(tmp_path):
    """Writes arrays, changed as asked, to an .npz; None drops one."""

    def write(**changes):
        path = tmp_path / "set.npz"
        merged = {**arrays(), **changes}
        np.savez(path, **{name: value for name, value in merged.items() if value is not None})
        return str(path)

    return write


def message(call, *args, **kwargs):
    with pytest.raises(InvalidInput) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rows(split):
    """The examples of a split as a sorted list of bytes."""
    return sorted(image.tobytes() + bytes([label]) for image, label in zip(*split, strict=True))


# Pixels


def test_a_pixel_is_one_number_everywhere():
    """XLA compiles a division by 255 to a multiplication: training and AutoAttack would see different images."""
    levels = np.arange(256, dtype=np.uint8)
    here = data.to_unit(levels)
    assert here.dtype == np.float32
    for elsewhere in (data.to_unit(jnp.asarray(levels)), jax.jit(data.to_unit)(levels)):
        assert elsewhere.dtype == jnp.float32
        np.testing.assert_array_equal(here, elsewhere)
    assert (here[0], here[255]) == (0, 1)
    np.testing.assert_allclose(here, levels / 255, rtol=1e-7)


# The embedded digits


@pytest.mark.parametrize("file", [sources.DIGITS_FILE, "of_another_version.csv.gz"])
def test_digits_are_those_of_scikit_learn(monkeypatch, file):
    from sklearn.datasets import load_digits

    monkeypatch.setattr(sources, "DIGITS_FILE", file)
    loaded = data.load("digits", validation_size=100)
    assert (loaded.name, loaded.num_classes) == ("digits", 10)
    assert loaded.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert [len(split.labels) for split in loaded[:3]] == [1197, 100, 500]
    images = np.concatenate([split.images for split in loaded[:3]])
    assert images.dtype == np.uint8
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (0, 255)
    original = load_digits()
    levels = np.rint(images[..., 0].reshape(-1, 64) / 255 * 16).astype(int)
    labels = np.concatenate([split.labels for split in loaded[:3]])
    expected = sorted(map(tuple, np.c_[original.data.astype(int), original.target]))
    assert sorted(map(tuple, np.c_[levels, labels])) == expected


def test_the_seed_moves_validation_but_never_test():
    first, same, other = (data.load("digits", split_seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.validation.images, same.validation.images)
    np.testing.assert_array_equal(first.train.images, same.train.images)
    assert rows(first.validation) != rows(other.validation)
    np.testing.assert_array_equal(first.test.images, other.test.images)


# Splits


@pytest.mark.parametrize("seed", [0, 7])
def test_train_and_validation_part_the_training_set(npz, seed):
    source = arrays()
    loaded = data.load(npz(), validation_size=9, split_seed=seed)
    assert len(loaded.validation.labels) == 9
    original = data.Split(source["image_train"], source["label_train"])
    assert sorted(rows(loaded.train) + rows(loaded.validation)) == rows(original)
    np.testing.assert_array_equal(loaded.test.images, source["image_test"])
    np.testing.assert_array_equal(loaded.test.labels, source["label_test"])
    assert loaded.num_classes == 4
    assert loaded.train.labels.dtype == loaded.test.labels.dtype == np.int32


@pytest.mark.parametrize(("images", "held_out"), [(30, 6), (5, 1), (4, 0), (5001, 1000), (9000, 1000)])
def test_by_default_a_thousand_images_are_held_out_but_at_most_a_fifth(images, held_out):
    """A thousand of CIFAR's 50,000, not of 1,297."""
    arrays = {"image_train": np.zeros((images, 1, 1), np.uint8), "label_train": np.arange(images) % 2}
    loaded = data.load(arrays | {"image_test": arrays["image_train"], "label_test": arrays["label_train"]})
    assert (len(loaded.train.labels), len(loaded.validation.labels)) == (images - held_out, held_out)


def test_sizes_keep_the_first_of_the_same_order(npz):
    path = npz()
    whole = data.load(path, validation_size=9)
    part = data.load(path, validation_size=9, train_size=5, test_size=3)
    for name, size in (("train", 5), ("validation", 9), ("test", 3)):
        for small, large in zip(getattr(part, name), getattr(whole, name), strict=True):
            np.testing.assert_array_equal(small, large[:size])


def test_no_validation_and_grey_images_without_channels(npz):
    source = {name: value[..., 0] for name, value in arrays().items() if name.startswith("image")}
    loaded = data.load(npz(**source), validation_size=0)
    assert loaded.train.images.shape == (30, 6, 5, 1)
    assert loaded.validation.images.shape == (0, 6, 5, 1)
    assert rows(loaded.train) == rows(data.Split(source["image_train"], arrays()["label_train"]))


# Class names


def test_class_names_are_kept_and_count_the_classes(npz):
    """The fifth class is in no example."""
    names = ["cat", "dog", "große Fuge", "<b>", "last"]
    loaded = data.load(npz(class_names=np.array(names)), validation_size=5)
    assert loaded.class_names == tuple(names)
    assert all(type(name) is str for name in loaded.class_names)
    assert loaded.num_classes == 5
    assert data.load(npz(), validation_size=5).class_names == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], "label_train has the label 3, expected 0 to 2"),
        (["a", "b", "c", "c"], "class_names has 4 names, 3 of them different, for 2 or more classes"),
        (["a"], "class_names has 1 names, 1 of them different, for 2 or more classes"),
        (["a", "b", "c", "two\nlines"], r"class_names has 'two\nlines', expected text of 1 to 100 printable"),
        (["a", "b", "c", ""], "class_names has '', expected text"),
        (["a", "b", "c", "d" * 101], "class_names has '" + "d" * 100 + "', expected text"),
        ([b"a", b"b", b"c", b"d"], "class_names has \"b'a'\", expected text"),
        ([1, 2, 3, 4], "class_names has '1', expected text"),
        ([["a", "b", "c", "d"]], "class_names has \"['a', 'b', 'c', 'd']\", expected text"),
        (np.array({}), "class_names cannot be read as a plain array"),
    ],
)
def test_class_names_that_are_none(npz, names, expected):
    assert expected in message(data.load, npz(class_names=np.asarray(names)), validation_size=5)


# Other names of arrays


def renamed(image, label, train="train", test="test", **more):
    """The arrays under other names; `more` for those that are not there otherwise."""
    own = arrays()
    found = {image.format(train): own["image_train"], label.format(train): own["label_train"]}
    return found | {image.format(test): own["image_test"], label.format(test): own["label_test"], **more}


@pytest.mark.parametrize(
    ("image", "label"),
    [("x_{}", "y_{}"), ("X_{}", "Y_{}"), ("{}_images", "{}_labels"), ("images_{}", "labels_{}"), ("{}_x", "{}_y")],
)
def test_the_usual_names_of_arrays(tmp_path, npz, image, label):
    np.savez(tmp_path / "other.npz", **renamed(image, label), unrelated=np.zeros(3))
    ours, theirs = (data.load(path, validation_size=9) for path in (npz(), tmp_path / "other.npz"))
    jax.tree.map(np.testing.assert_array_equal, ours[:4], theirs[:4])


def test_a_published_validation_split_is_trained_on_with_labels_in_a_column(tmp_path):
    """As MedMNIST's: [n, 1]. Without a test split, it is the test split."""
    own = arrays()
    more = {"val_images": create_images(7, seed=2), "val_labels": np.arange(7)[:, None] % 4}
    found = {name: value[:, None] if "label" in name else value for name, value in renamed(PLURAL, LABELS).items()}
    np.savez(tmp_path / "three.npz", **found, **more)
    loaded = data.load(tmp_path / "three.npz", validation_size=9)
    expected = np.concatenate([own["image_train"], more["val_images"]]), [*own["label_train"], *np.arange(7) % 4]
    assert sorted(rows(loaded.train) + rows(loaded.validation)) == rows(expected)
    assert rows(loaded.test) == rows((own["image_test"], own["label_test"]))
    np.savez(tmp_path / "two.npz", **renamed(PLURAL, LABELS, test="val"))
    jax.tree.map(np.testing.assert_array_equal, data.load(tmp_path / "two.npz", validation_size=9).test, loaded.test)


PLURAL, LABELS = "{}_images", "{}_labels"


@pytest.mark.parametrize(("image", "label"), [("images", "labels"), ("X", "y"), ("data", "target")])
def test_without_a_test_split_a_fifth_of_each_class_becomes_one(tmp_path, image, label):
    everything = create_images(53), np.sort(np.arange(53) % 4)
    np.savez(tmp_path / "whole.npz", **{image: everything[0], label: everything[1]})
    first, second = (data.load(tmp_path / "whole.npz", validation_size=9, split_seed=seed) for seed in (0, 1))
    assert sorted(rows(first.train) + rows(first.validation) + rows(first.test)) == rows(everything)
    assert all(2 <= count <= 4 for count in np.bincount(first.test.labels, minlength=4))
    assert list(first.test.labels) != sorted(first.test.labels)  # the first 1000 are not of one class
    jax.tree.map(np.testing.assert_array_equal, first.test, second.test)
    assert rows(first.validation) != rows(second.validation)


def test_arrays_in_memory(npz):
    ours, theirs = data.load(npz(), validation_size=9), data.load(renamed("x_{}", "y_{}"), validation_size=9)
    assert theirs.name == "arrays"
    jax.tree.map(np.testing.assert_array_equal, ours[:4], theirs[:4])
    text = message(data.load, renamed("x_{}", "y_{}") | {"x_test": [1, 2]})
    assert "arrays: x_test is of type list, expected a NumPy array" in text


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"images": create_images(4), "labels": np.arange(4)}, "has 4 images: expected 5 or more, of which a fifth"),
        ({"images": create_images(30)}, "has images: expected image_train, label_train, image_test and"),
        (renamed("x_{}", "y_{}", x_val=create_images(3, (6, 6, 3)), y_val=np.zeros(3, int)), "x_val (3, 6, 6, 3)"),
        (renamed("x_{}", "y_{}", x_val=np.array(1), y_val=np.array(1)), "x_train (30, 6, 5, 3), x_val (): expected"),
        (renamed("x_{}", "y_{}") | {"x_test": create_images(12) / 255}, "x_test has dtype float64, expected uint8"),
        (renamed("x_{}", "y_{}") | {"y_train": np.zeros(29, int)}, "x_train has 30 images but"),
        (renamed("x_{}", "y_{}") | {"y_train": np.zeros(30, int)}, "y_train holds the label 0 alone"),
    ],
)
def test_other_names_in_messages(tmp_path, members, expected):
    np.savez(tmp_path / "other.npz", **members)
    assert expected in message(data.load, tmp_path / "other.npz", validation_size=5)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"validation_size": -1}, "validation_size=-1: expected 0 to 29 of 30 training images"),
        ({"validation_size": 30}, "validation_size=30: expected 0 to 29 of 30 training images, such as 6"),
        ({"train_size": 0}, "train_size=0: expected 1 to 25 of 25 training images after validation"),
        ({"train_size": 26}, "train_size=26: expected 1 to 25 "),
        ({"test_size": 0}, "test_size=0: expected 1 to 12 of the test images"),
        ({"test_size": -3}, "test_size=-3: expected 1 to 12 "),
        ({"test_size": 13}, "test_size=13: expected 1 to 12 "),
        ({"split_seed": -1}, "split_seed=-1: expected a non-negative integer"),
    ],
)
def test_sizes_that_do_not_fit(npz, arguments, expected):
    assert expected in message(data.load, npz(), **{"validation_size": 5, **arguments})


def test_unknown_name_lists_the_choices():
    text = message(data.load, "cifar")
    assert "'cifar'" in text
    assert "cifar10, cifar100, digits, svhn_cropped, the path of an .npz or of a folder of images, or pack" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"image_test": None, "label_test": None},
            "has image_train, label_train: expected image_train, label_train, image_test and label_test (or x_train, ",
        ),
        ({"image_train": create_images(30) / 255}, "image_train has dtype float64, expected uint8"),
        ({"image_train": create_images(30, (3, 6, 5))}, "image_train has shape (30, 3, 6, 5), expected"),
        ({"image_train": create_images(30, ())}, "image_train has shape (30,), expected [n, h, w]"),
        ({"image_test": create_images(12, (6, 6, 3))}, "images have different shapes, (6, 5, 3) and (6, 6, 3)"),
        ({"image_test": create_images(0)}, "image_test is empty"),
        ({"label_train": np.zeros(0, int)}, "label_train is empty"),
        ({"label_train": np.zeros(29, int)}, "image_train has 30 images but {path}: label_train has 29"),
        ({"label_train": np.zeros(30)}, "label_train is float64 of shape (30,), expected integers"),
        ({"label_train": np.zeros((30, 2), int)}, "label_train is int64 of shape (30, 2), expected integers"),
        ({"label_train": np.full(30, -2)}, "label_train has the label -2, expected 0 to"),
        ({"label_train": np.full(30, 2**40)}, "label_train has the label 1099511627776, expected 0 to"),
        ({"label_test": np.arange(12) % 5}, "label_test has the label 4, expected 0 to 3"),
        ({"label_train": np.zeros(30, int)}, "label_train holds the label 0 alone: expected 2 or more classes"),
        ({"label_train": np.full(30, 3)}, "label_train holds the label 3 alone: expected 2 or more classes"),
        (
            {"label_train": np.array([{}] * 30)},
            "label_train cannot be read as a plain array: ValueError: Object",
        ),
    ],
)
def test_arrays_that_are_no_data_set(npz, changes, expected):
    path = npz(**changes)
    text = message(data.load, path, validation_size=5)
    assert path in text
    assert expected.replace("{path}", path) in text


def truncated_npz():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays())
    return buffer.getvalue()[:-400]


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", pickle.dumps([1]), truncated_npz(), npy()],
    ids=["empty", "text", "pickle", "cut", "npy"],
)
def test_files_that_are_no_npz(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    text = message(data.load, str(path))
    assert f"{path} is not an .npz file as numpy.savez writes it" in text


def test_a_damaged_array_is_named(npz):
    path = npz()
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    assert "image_train cannot be read" in message(data.load, path, validation_size=5)


def test_missing_npz(tmp_path):
    text = message(data.load, str(tmp_path / "no.npz"))
    assert "no.npz: no such file, or not readable" in text
    assert "image_train, label_train, image_test and label_test (or x_train, y_train ..., or train_images, t" in text


@pytest.mark.parametrize("name", ["a" * 300 + ".npz", "~nobody-here/set.npz", "\0.npz", "set.npz/set.npz"])
def test_names_that_are_no_files(name):
    assert "no such file, or not readable" in message(data.load, name)


@pytest.mark.parametrize("directory", ["a" * 300, "~nobody-here"])
def test_names_that_are_no_directories(directory, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"is not prepared in {directory} (data.data_dir" in message(data.load, "cifar10", data_dir=directory)


# TFDS


CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_tfds(root, splits, file_format="array_record"):
    """Prepares a small cifar10."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(32, 32, 3)), "id": tfds.features.Text()}
    features["label"] = tfds.features.ClassLabel(names=CLASSES)
    examples = {
        name: [
            {"image": png(image), "label": int(label), "id": f"example {index}"}
            for index, (image, label) in enumerate(zip(*split, strict=True))
        ]
        for name, split in splits.items()
    }
    tfds_files.prepare(root, "Cifar10", "3.0.2", features, examples, file_format)


def png(image: np.ndarray) -> io.BytesIO:
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(image).save(written, "PNG")
    written.seek(0)
    return written


CIFAR = {
    "train": data.Split(create_images(23, (32, 32, 3)), np.arange(23) % 9),  # class 9 is in no example
    "test": data.Split(create_images(7, (32, 32, 3), seed=1), np.arange(7) % 9),
}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    write_tfds(root, CIFAR)
    return root


@pytest.fixture
def tfds_root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "tfds")


@pytest.fixture
def version(tfds_root):
    return tfds_root / "cifar10" / "3.0.2"


def check_cifar(loaded):
    assert loaded.num_classes == 10
    assert loaded.class_names == tuple(CLASSES)
    assert sorted(rows(loaded.train) + rows(loaded.validation)) == rows(CIFAR["train"])
    assert rows(loaded.test) == rows(CIFAR["test"])


def test_prepared_tfds(tfds_root, monkeypatch):
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_root))
    check_cifar(data.load("cifar10", validation_size=5))
    assert "tensorflow" not in sys.modules


def test_splits_longer_than_one_read(tfds_root, monkeypatch):
    monkeypatch.setattr(records, "READ_CHUNK", 4)
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))


def test_the_newest_version_is_read_whatever_lies_beside_it(tfds_root, version):
    version.rename(version.parent / "3.0.10")
    for leftover in ("3.0.9", "incomplete.AB12_3.0.2"):
        (version.parent / leftover).mkdir()
    check_cifar(data.load("cifar10", data_dir=str(tfds_root), validation_size=5))


def test_the_download_host_is_not_asked_for_what_is_there(tfds_root, monkeypatch):
    monkeypatch.setattr(prepared, "reachable", pytest.fail)
    data.load("cifar10", data_dir=str(tfds_root), validation_size=5)


def shard(version):
    return next(version.glob("cifar10-test.array_record*"))


def rewrite_info(version, **changes):
    path = version / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "incomplete": (
        lambda v: v.rename(v.parent / "incomplete.AB12_3.0.2"),
        "an unfinished preparation was left",
    ),
    "no info": (lambda v: (v / "dataset_info.json").unlink(), "dataset_info.json is missing"),
    "no features": (lambda v: (v / "features.json").unlink(), "features.json is missing"),
    "cut info": (lambda v: (v / "dataset_info.json").write_text("{"), "dataset_info.json is damaged"),
    "no splits": (lambda v: rewrite_info(v, splits=[]), "its split train is missing"),
    "no shards": (lambda v: shard(v).unlink(), "0 of 1 array_record files of test are there"),
    "empty shard": (lambda v: shard(v).write_bytes(b""), "RuntimeError: ArrayRecord file should be at least"),
    "zeros": (lambda v: shard(v).write_bytes(bytes(200_000)), "RuntimeError: Corrupted Riegeli/records file"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tfds(tfds_root, version, damage):
    apply, expected = DAMAGES[damage]
    apply(version)
    text = message(data.load, "cifar10", data_dir=str(tfds_root))
    assert f"'cifar10' in {version.parent}" in text
    assert "half prepared or damaged: " + expected in text
    assert "delete it and run `tfds build cifar10 --file_format=array_record`" in text
    assert ".npz" in text


def test_a_flipped_byte_is_found(tfds_root, version):
    content = bytearray(shard(version).read_bytes())
    content[3000:3003] = b"bad"
    shard(version).write_bytes(content)
    assert "Corrupted Riegeli/records file" in message(data.load, "cifar10", data_dir=str(tfds_root))


def test_another_file_format(version, tfds_root):
    for split in ("train", "test"):
        next(version.glob(f"cifar10-{split}.*")).rename(version / f"cifar10-{split}.tfrecord-00000-of-00001")
    rewrite_info(version, fileFormat="tfrecord")
    text = message(data.load, "cifar10", data_dir=str(tfds_root))
    assert "has the format tfrecord, but only array_record can be read" in text


def test_an_error_in_seconds_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    start = time.monotonic()
    text = message(data.load, "svhn_cropped", data_dir=str(tmp_path))
    assert time.monotonic() - start < 15
    assert f"'svhn_cropped' is not prepared in {tmp_path}" in text
    assert "TensorFlow, which prepares it, is not installed" in text
    for way in (
        "tfds build svhn_cropped --file_format=array_record",
        ".npz with image_train",
        "or to digits",
    ):
        assert way in text


@pytest.fixture
def with_tensorflow(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


def test_an_error_in_seconds_without_network(tmp_path, monkeypatch, with_tensorflow):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(60))
    start = time.monotonic()
    text = message(data.load, "cifar100", data_dir=str(tmp_path))
    assert time.monotonic() - start < 5
    assert "www.cs.toronto.edu, its origin, cannot be reached" in text


class FakeBuilder:
    """Stands for the builder that TFDS makes where TensorFlow is installed."""

    def __init__(self, root, error=None):
        self.root, self.error = root, error

    def download_and_prepare(self):
        if self.error:
            raise self.error
        write_tfds(self.root, CIFAR)


def test_preparing_on_the_way(tmp_path, monkeypatch, with_tensorflow):
    import tensorflow_datasets as tfds

    def builder(name, *, data_dir, file_format):
        assert (name, file_format) == ("cifar10", "array_record")
        return FakeBuilder(data_dir)

    monkeypatch.setattr(prepared, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", builder)
    check_cifar(data.load("cifar10", data_dir=str(tmp_path), validation_size=5))


def test_a_preparation_that_fails(tmp_path, monkeypatch, with_tensorflow):
    import tensorflow_datasets as tfds

    broken = FakeBuilder(tmp_path, OSError("No space left\non device"))
    monkeypatch.setattr(prepared, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: broken)
    text = message(data.load, "cifar10", data_dir=str(tmp_path))
    assert "preparing it failed (OSError: No space left)" in text


@pytest.fixture
def server(monkeypatch):
    """Serves 200 at /there, 404 elsewhere, and yields its address."""
    monkeypatch.setenv("no_proxy", "*")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        thread = threading.Thread(target=instance.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{instance.server_port}"
        instance.shutdown()
        thread.join()


def test_reachable(server):
    assert prepared.reachable(f"{server}/there")
    assert not prepared.reachable(f"{server}/gone", seconds=0.5)


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not prepared.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - start < 2


def test_importing_data_imports_nothing_heavy():
    names = ("tensorflow", "tensorflow_datasets", "sklearn", "PIL")
    code = f"import sys, infofeat_jax.data; print([m for m in {names} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("cifar10", "tensorflow_datasets")])
def test_a_missing_package_is_named(tfds_root, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    text = message(data.load, name, data_dir=str(tfds_root))
    assert module in text
    assert installation.command("train") in text


# Batches

SIZES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 300), n=SIZES, batch_size=SIZES)
def test_an_epoch_visits_every_example_once(seed, epoch, n, batch_size):
    batch_size = min(batch_size, n)
    steps = batches.steps_per_epoch(n, batch_size)
    assert 0 <= n - steps * batch_size < batch_size
    order = batches.epoch_order(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    visited = [batches.batch_indices(seed, epoch * steps + i, n, batch_size) for i in range(steps)]
    np.testing.assert_array_equal(np.concatenate(visited), order[: steps * batch_size])


def test_order_is_a_function_of_seed_and_epoch():
    code = "from infofeat_jax.data.batches import epoch_order as o; print(o(3, 5, 50).tolist())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = batches.epoch_order(3, 5, 50).tolist()
    assert elsewhere.stdout.strip() == str(here)
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert batches.epoch_order(seed, epoch, 50).tolist() != here
    with pytest.raises(ValueError, match="read-only"):
        batches.epoch_order(3, 5, 50)[0] = 1


@given(n=SIZES, batch_size=SIZES)
def test_padded_batches_hold_every_example_once(n, batch_size):
    split = data.Split(create_images(n, (2, 2, 1)), np.arange(n, dtype=np.int32))
    seen = []
    for images, labels, mask in batches.padded_batches(split, batch_size):
        assert images.shape == (batch_size, 2, 2, 1)
        assert (images.dtype, labels.dtype, mask.dtype) == (np.uint8, np.int32, np.bool_)
        np.testing.assert_array_equal(images, split.images[labels])
        assert (labels[~mask] == n - 1).all()
        seen += labels[mask].tolist()
    assert seen == list(range(n))


def test_batch_sizes_that_do_not_fit():
    split = data.Split(create_images(3), np.zeros(3, np.int32))
    assert message(batches.padded_batches, split, 0) == "batch_size=0: expected 1 or more"
    assert message(batches.steps_per_epoch, 10, -1) == "batch_size=-1: expected 1 or more"
    assert message(batches.batch_indices, 0, 0, 10, 11).endswith("larger than the training set: expected 1 to 10")
