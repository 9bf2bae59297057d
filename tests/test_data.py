"""Loading data sets: what is returned, and the error messages when it fails."""

import importlib.util
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax import data
from infofeat_jax.data import sources
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
    [
        ("x_{}", "y_{}"),
        ("X_{}", "Y_{}"),
        ("{}_images", "{}_labels"),
        ("images_{}", "labels_{}"),
        ("{}_x", "{}_y"),
        ("{}_data", "{}_labels"),
    ],
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


@pytest.mark.parametrize(
    ("image", "label"),
    [("images", "labels"), ("image", "label"), ("X", "y"), ("data", "labels"), ("data", "target")],
)
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
