"""Data sets of any name as TFDS prepares them: images of many sizes, decoded batch by batch or held in memory."""

import io
import json
import shutil

import jax
import numpy as np
import pytest
import tfds_files
from PIL import Image, ImageOps
from test_data import message
from test_files import counted
from test_loop import in_directory, same, train_in_pieces

from infofeat_jax import data
from infofeat_jax.data import records
from infofeat_jax.data.files import FileImages
from infofeat_jax.training import loop

SIZE = 8
COUNTS = {"train": 48, "validation": 12, "test": 10}


def drawn(split: str) -> list[Image.Image]:
    """Wide and tall ones."""
    rng = np.random.default_rng(len(split))
    shapes = rng.integers(SIZE, 3 * SIZE, (COUNTS[split], 2))
    return [Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]


def label(split: str, index: int) -> int:
    return -1 if split == "test" else index % 5  # as ImageNet's test split, whose labels are not published


def encoded(image: Image.Image, index: int) -> io.BytesIO:
    """As PNG and JPEG in turn."""
    written = io.BytesIO()
    image.save(written, ("PNG", "JPEG")[index % 2])
    written.seek(0)
    return written


def prepare(root, features=None):
    """Writes the data set Flowers, version 1.2.3, with TFDS."""
    import tensorflow_datasets as tfds

    names = ["aster", "begonia", "crocus", "dahlia", "erica"]
    features = features or {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)}
    examples = {
        split: [
            {"image": encoded(image, index), "label": label(split, index), "caption": "a flower"}
            for index, image in enumerate(drawn(split))
        ]
        for split in COUNTS
    }
    kept = {split: [{name: one[name] for name in features} for one in each] for split, each in examples.items()}
    tfds_files.prepare(root, "Flowers", "1.2.3", features, kept)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    prepare(root)
    return root / "flowers"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the examples that have been decoded."""
    return counted(monkeypatch, records)


def load(path, **options) -> data.Dataset:
    return data.load(str(path), validation_size=8, image_size=SIZE, **options)


def scaled(split: str) -> list[np.ndarray]:
    """Its images as Pillow scales them."""
    found = []
    for index, image in enumerate(drawn(split)):
        with Image.open(encoded(image, index)) as opened:
            found.append(np.asarray(ImageOps.fit(opened, (SIZE, SIZE), Image.Resampling.BILINEAR), int))
    return found


def test_splits_that_are_joined_keep_their_labels(tmp_path, monkeypatch):
    """With a labelled test split, training has the validation split too."""
    told = {"train": 0, "validation": 1, "test": 2}
    monkeypatch.setitem(globals(), "label", lambda split, index: (index + told[split]) % 5)
    prepare(tmp_path)
    here, there = (load(tmp_path / "flowers", in_memory=in_memory) for in_memory in (True, False))
    for splits, found in ((("train", "validation"), [*here[:2]]), (("test",), [here.test])):
        left = {(split, index): image for split in splits for index, image in enumerate(scaled(split))}
        for one in found:
            for image, which in zip(one.images, one.labels, strict=True):
                nearest = min(left, key=lambda name: np.abs(left[name] - image).max())
                assert np.abs(left.pop(nearest) - image).max() <= 1
                assert which == label(*nearest)
        assert not left
    for ours, theirs in zip(here[:3], there[:3], strict=True):
        np.testing.assert_array_equal(ours.images, np.asarray(theirs.images))
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_every_image_is_there_once_with_its_label_scaled_as_pillow_does(flowers):
    loaded, expected = load(flowers), {split: scaled(split) for split in ("train", "validation")}
    assert loaded.class_names == ("aster", "begonia", "crocus", "dahlia", "erica")
    trained = [*zip(loaded.train.images, loaded.train.labels, strict=True)]
    trained += zip(loaded.validation.images, loaded.validation.labels, strict=True)
    for split, found in (
        ("train", trained),
        ("validation", [*zip(loaded.test.images, loaded.test.labels, strict=True)]),
    ):
        assert len(found) == COUNTS[split]  # the split without labels is left out
        left = dict(enumerate(expected[split]))
        for image, which in found:
            nearest = min(left, key=lambda index: np.abs(left[index] - image).max())
            assert np.abs(left.pop(nearest) - image).max() <= 1  # Pillow's fit rounds where it cuts
            assert which == label(split, nearest)


def test_the_same_images_in_the_same_order_and_none_before_its_batch(flowers, decoded):
    there = load(flowers / "1.2.3", in_memory=False)
    assert isinstance(there.train.images, FileImages)
    assert decoded == []
    batch = there.train.images[np.array([7, 2, 7])]
    assert len(decoded) == 3
    here = load(flowers)
    np.testing.assert_array_equal(batch, here.train.images[[7, 2, 7]])
    for ours, theirs in zip(there[:3], here[:3], strict=True):
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert there[3] == here[3]
    names = there.train.images.identity() + there.validation.images.identity() + there.test.images.identity()
    assert len({*names}) == COUNTS["train"] + COUNTS["validation"]
    about = json.loads((flowers / "1.2.3" / "dataset_info.json").read_text())
    sizes = {split["name"]: split["numBytes"] for split in about["splits"]}
    for name in names:  # so that another preparation of the data is noticed
        split = name.split()[0]
        assert name.startswith(f"{split} of {sizes[split]} bytes, ")


def test_stopped_anywhere_it_goes_on_to_the_bits_of_training_in_memory(tmp_path, flowers, monkeypatch, decoded):
    def training(name, *, in_memory):
        return in_directory(tmp_path / name, 1)._replace(data=load(flowers, in_memory=in_memory).train)

    whole = jax.device_get(loop.train(training("memory", in_memory=True)))
    decoded.clear()
    state, stops = train_in_pieces(training("files", in_memory=False), monkeypatch)
    assert 4 <= stops < 9
    assert same(whole, state)
    assert len(decoded) == whole.step * 16


def test_images_of_many_sizes_need_one(flowers):
    assert "of different sizes: set data.image_size, such as 224" in message(data.load, str(flowers))


def test_features_of_another_task_are_named(tmp_path):
    import tensorflow_datasets as tfds

    prepare(tmp_path, {"image": tfds.features.Image(), "caption": tfds.features.Text()})
    text = message(load, tmp_path / "flowers")
    assert text == f"{tmp_path / 'flowers' / '1.2.3'} has the features caption, image: expected image and label"


def test_labels_without_classes_are_named(tmp_path):
    import tensorflow_datasets as tfds

    prepare(tmp_path, {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)})
    text = message(load, tmp_path / "flowers")
    assert text == f"{tmp_path / 'flowers' / '1.2.3'}: label is a feature of type Scalar: expected ClassLabel"


def test_a_file_that_is_damaged_when_its_batch_is_due_is_named(tmp_path, flowers):
    copied = shutil.copytree(flowers, tmp_path / "flowers")
    images = load(copied, in_memory=False).train.images
    shard = next(copied.glob("1.2.3/flowers-train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[2000:-2000] = bytes(len(content) - 4000)
    with shard.open("r+b") as same_file:
        same_file.write(content)
    text = message(images.read, np.arange(len(images)))
    assert f"{copied / '1.2.3'}: examples of train cannot be read: " in text


def test_images_of_16_bits_are_not_cut_to_8():
    written, out = io.BytesIO(), np.zeros((SIZE, SIZE, 1), np.uint8)
    Image.fromarray(np.full((SIZE, SIZE), 40_000, np.uint16)).save(written, "PNG")
    assert "'example 3' cannot be read as an image: ValueError: more than 8 bits" in message(
        records.decode, 0, "example 3", written, out
    )
