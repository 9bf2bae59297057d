"""Folders of images as data sets."""

import builtins

import jax
import numpy as np
import pytest
from PIL import Image
from test_data import message

from infofeat_jax import data
from infofeat_jax.data import decoding, folders


def plain(value, size=(5, 4), mode="RGB"):
    """An image of one colour; size is (width, height)."""
    return Image.new(mode, size, (value,) * len(Image.new(mode, (1, 1)).getbands()))


@pytest.fixture
def write(tmp_path):
    """Writes images below a folder, by their paths; returns the folder's path."""

    def save(**images):
        for name, image in images.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        return str(tmp_path)

    return save


def split(name, classes=("cat", "dog"), count=3, start=0, **options):
    """Images of value 100 * class + index + start, as {path: image}."""
    return {
        f"{name}/{folder}/{index}.png": plain(100 * label + index + start, **options)
        for label, folder in enumerate(classes)
        for index in range(count)
    }


def seen(part):
    """(first pixel, label) of each image, sorted."""
    return sorted((int(image[0, 0, 0]), int(label)) for image, label in zip(*part, strict=True))


def test_train_and_test_with_the_folders_names(write):
    loaded = data.load(write(**split("train"), **split("test", count=2, start=50)), validation_size=2)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.train.images.shape == (4, 4, 5, 3)
    assert sorted(seen(loaded.train) + seen(loaded.validation)) == seen_all(3, 0)
    assert seen(loaded.test) == seen_all(2, 50)


def test_the_first_test_images_are_not_all_of_one_class(write):
    """AutoAttack takes the first 1000 of them."""
    path = write(**split("train", count=20), **split("test", count=20))
    first, second = (data.load(path, validation_size=5, split_seed=seed).test for seed in (0, 1))
    assert {*first.labels[:10]} == {0, 1}
    jax.tree.map(np.testing.assert_array_equal, first, second)


def seen_all(count, start):
    return [(100 * label + index + start, label) for label in (0, 1) for index in range(count)]


def test_a_published_validation_split_is_trained_on(write):
    three = {**split("train"), **split("val", count=2, start=20), **split("test", count=2, start=50)}
    loaded = data.load(write(**three), validation_size=1)
    assert sorted(seen(loaded.train) + seen(loaded.validation)) == sorted(seen_all(3, 0) + seen_all(2, 20))
    assert seen(loaded.test) == seen_all(2, 50)


def test_or_tested_on_where_there_is_no_other(write):
    loaded = data.load(write(**split("training"), **split("valid", count=2, start=50)), validation_size=1)
    assert seen(loaded.test) == seen_all(2, 50)


def test_a_folder_of_classes_is_split(write):
    """Deeper folders, other files, hidden ones and capital letters are no obstacle; numbers are sorted as such."""
    path = write(**split(".", ("10", "9"), count=40), **{"9/deep/er/x.PNG": plain(99)})
    for name in ("9/._0.png", "9/notes.txt", "labels.csv"):
        (folders.pathlib.Path(path) / name).write_text("no image")
    (folders.pathlib.Path(path) / ".git").mkdir()
    first, second = (data.load(path, validation_size=10, split_seed=seed) for seed in (0, 1))
    assert first.class_names == ("9", "10")
    everything = sorted([(100 + i, 0) for i in range(40)] + [(i, 1) for i in range(40)] + [(99, 0)])
    assert sorted(seen(first.train) + seen(first.validation) + seen(first.test)) == everything
    assert sorted(np.bincount(first.test.labels)) == [8, 8]
    assert list(first.test.labels) != sorted(first.test.labels)
    jax.tree.map(np.testing.assert_array_equal, first.test, second.test)


@pytest.mark.parametrize(
    ("modes", "pixel"),
    [
        (("L", "L"), [200]),
        (("1", "L"), [200]),
        (("L", "RGB"), [200, 200, 200]),
        (("RGBA", "RGB"), [200, 200, 200]),
        (("CMYK", "L"), [200, 200, 200]),
    ],
)
def test_grey_if_all_are_and_rgb_otherwise(write, modes, pixel):
    images = {**split("train", mode=modes[0]), **split("test", mode=modes[0])}
    images["test/dog/0.png"] = plain(200, mode=modes[1])
    if "CMYK" in modes:
        images = {name.replace("png", "tif"): image for name, image in images.items()}
    test = data.load(write(**images), validation_size=1).test
    assert any((image == pixel).all() for image in test.images)
    assert test.images.shape[-1] == len(pixel)


def test_a_palette_with_transparency(write):
    palette = plain(3, mode="P")
    palette.putpalette([10, 20, 30] * 4)
    palette.info["transparency"] = b"\x00\x01"
    images = dict.fromkeys((*split("train"), *split("test")), palette)
    loaded = data.load(write(**images), validation_size=1)
    assert loaded.test.images[0, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({}, "has no folders of classes: expected FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or FOLDER/CL"),
        ({"a.png": plain(1)}, "has no folders of classes: expected FOLDER/train/"),
        (split(".", ("cat",)), "has the classes 'cat': expected FOLDER/train/"),
        (split("train"), "has 'train', but no folder test or val beside it: expected FOLDER/train/"),
        (split("test") | split("."), "has 'test', but no folder train beside it: expected FOLDER/train/"),
        (split("training_set") | split("test_set"), "each of 'test_set', 'training_set' has the folders 'cat', 'dog'"),
        (split("train") | split("test", ("cat", "cow")), "class 'cow' of test is not in train: expected FOLDER/"),
        (split(".", tuple("abcdefg")) | {"cow/x/y.webm": None}, "'d' ..., but class 'cow' has no images: expected"),
        ({"train/cat/0.png": plain(0), "train/dog/0.png": plain(1), "test/cat/x.md": None}, "'cat', 'dog': exp"),
        (split("train") | split("test", size=(4, 5)), "0.png' 5 x 4 and '"),
        (split("train") | split("test", size=(4, 5)), "test/cat/0.png' 4 x 5: resize them to one size"),
        (split("train") | split("test", mode="I;16"), "has more than 8 bits (mode I;16): convert it to 8 bits"),
        (split("train") | {"test/cat/0.png": None}, "test/cat/0.png' cannot be read as an image: UnidentifiedImageE"),
        (split("train") | split("test") | {"train/dog/z.png": b"cut"}, "z.png' cannot be read as an image: OSError"),
        (split(".", ("a", "two\nlines"), count=5), "class_names has 'two\\nlines', expected text"),
    ],
)
def test_mistakes_show_what_is_expected(tmp_path, images, expected):
    for name, image in images.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if image == b"cut":
            plain(1, (5, 4)).save(path)
            path.write_bytes(path.read_bytes()[:50])
        elif isinstance(image, Image.Image):
            image.save(path)
        else:
            path.write_bytes(image or b"")
    assert expected in message(data.load, str(tmp_path), validation_size=1)


@pytest.mark.parametrize(
    ("written", "arrays"),
    [
        (
            ["dataset_dict.json", "train/state.json", "test/state.json", "train/data.arrow"],
            "image_train=d['train']['im",
        ),
        (["state.json", "dataset_info.json", "data-00000-of-00001.arrow"], "numpy.savez('data.npz', images=d['image']"),
    ],
)
def test_a_hugging_face_data_set_is_recognised(tmp_path, written, arrays):
    """As DatasetDict.save_to_disk and Dataset.save_to_disk write it (datasets 5.2)."""
    for name in written:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    text = message(data.load, tmp_path)
    assert text.startswith(f"{tmp_path} is a Hugging Face data set, which is not read directly: write an .npz of it")
    assert f"datasets.load_from_disk('{tmp_path}')" in text
    assert arrays in text


def test_postscript_is_not_opened(write):
    """Pillow recognises it by its content, and hands it to Ghostscript."""
    path = write(**split("train"), **split("test"))
    plain(1).save(f"{path}/test/dog/9.png", "EPS")
    text = message(data.load, path, validation_size=1)
    assert "test/dog/9.png' cannot be read as an image: UnidentifiedImageError" in text


def test_it_would_not_fit_in_memory(write, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 700)
    text = message(data.load, write(**split("train"), **split("test")), validation_size=1)
    assert "12 images [4, 5, 3]: expected at most 0 GiB" in text


def test_pillow_is_named_where_it_is_missing(write, monkeypatch):
    path, found = write(**split("train"), **split("test")), builtins.__import__

    def without(name, *rest, **more):
        if name == "PIL":
            raise ImportError("No module named 'PIL'")
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "images need Pillow (No module named 'PIL'): run pip install" in message(data.load, path)


def test_split_folders_in_any_case_and_none_for_a_class(write):
    loaded = data.load(write(**split("Train"), **split("TEST", count=2, start=50)), validation_size=2)
    assert loaded.class_names == ("cat", "dog")
    assert seen(loaded.test) == seen_all(2, 50)


def test_a_training_split_alone_is_no_class(write):
    assert "'train', but no folder test or val beside it" in message(
        data.load, write(**split("train"), **split("holdout")), validation_size=2
    )
