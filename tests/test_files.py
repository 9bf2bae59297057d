"""Folders of images that are decoded batch by batch: the same bits as in memory, from loading to resumed training."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps
from small import tiny_model
from test_data import message
from test_loop import in_directory, same, train_in_pieces

from infofeat_jax import cli, data
from infofeat_jax import config as configs
from infofeat_jax.data import decoding, folders
from infofeat_jax.data.files import FileImages
from infofeat_jax.evaluation.subject import digest
from infofeat_jax.training import loop
from infofeat_jax.types import InvalidInput

__all__ = ["tiny_model"]
SIZE = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 images of five classes, wide and tall, as PNG and JPEG."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(60):
        path = root / f"class{index % 5}" / f"{index}.{('png', 'jpg')[index % 2]}"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (*rng.integers(SIZE, 3 * SIZE, 2), 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return str(root)


def load(folder: str, **options) -> data.Dataset:
    return data.load(folder, validation_size=8, image_size=SIZE, **options)


@pytest.fixture
def decoded(monkeypatch):
    """The files that have been decoded."""
    return counted(monkeypatch, folders)


def counted(monkeypatch, reader) -> list[str]:
    """The names of the images that a module decodes from now on."""
    seen, decode = [], reader.decode

    def noted(image_size, name, file, out):
        seen.append(name)
        decode(image_size, name, file, out)

    monkeypatch.setattr(reader, "decode", noted)
    return seen


def test_the_same_images_in_the_same_order_and_none_before_its_batch(folder, decoded):
    there = load(folder, in_memory=False)
    assert decoded == []
    part = there.train.images[4:]
    assert isinstance(part, FileImages)
    assert part.shape == (36, SIZE, SIZE, 3)
    assert decoded == []
    rows = np.array([7, 2, 7])
    batch = part[rows]
    assert len(decoded) == 3
    here = load(folder)
    np.testing.assert_array_equal(batch, here.train.images[4:][rows])
    assert batch.dtype == np.uint8
    for ours, theirs in zip(there[:3], here[:3], strict=True):
        np.testing.assert_array_equal(np.asarray(ours.images), theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert there[3:] == here[3:]
    assert len(np.unique(here.train.images, axis=0)) == len(here.train.labels)


def test_the_square_in_the_middle_is_scaled(folder):
    """As Pillow's own fit does, which rounds where it cuts."""
    loaded, names = load(folder, in_memory=False).test, {}
    for file, image in zip(loaded.images.places, np.asarray(loaded.images), strict=True):
        with Image.open(file) as opened:
            fitted = np.asarray(ImageOps.fit(opened.convert("RGB"), (SIZE, SIZE), Image.Resampling.BILINEAR), int)
            names[Path(file).suffix] = opened.size
        assert np.abs(image - fitted).max() <= 1
    assert set(names) == {".png", ".jpg"}


def test_other_data_and_other_sizes_are_refused(folder):
    assert "'digits' is no folder of images" in message(data.load, "digits", in_memory=False)
    assert "data.image_size=8, data.in_memory=True: 'x.npz' is no" in message(data.load, "x.npz", image_size=8)
    assert "or set data.image_size" in message(data.load, folder, in_memory=False)


def test_more_than_memory_may_hold(folder, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 700)
    assert "GiB in memory: set data.in_memory=False" in message(load, folder)
    assert len(load(folder, in_memory=False).train.labels) == 40


def training(workdir: Path, folder: str, count: int = 1, *, in_memory: bool) -> loop.Training:
    return in_directory(workdir, count)._replace(data=load(folder, in_memory=in_memory).train)


def test_stopped_anywhere_it_goes_on_to_the_bits_of_training_in_memory(tmp_path, folder, monkeypatch, decoded):
    whole = jax.device_get(loop.train(training(tmp_path / "memory", folder, in_memory=True)))
    decoded.clear()
    state, stops = train_in_pieces(training(tmp_path / "files", folder, in_memory=False), monkeypatch)
    assert 4 <= stops < 9
    assert same(whole, state)
    assert len(decoded) == whole.step * 16  # each image when its batch was due, however often it was interrupted


def test_every_device_gets_its_part(tmp_path, folder):
    one = loop.load_batch(training(tmp_path / "one", folder, in_memory=True), 3)
    eight = loop.load_batch(training(tmp_path / "eight", folder, 8, in_memory=False), 3)
    assert same(jax.device_get(one), eight)
    assert all(len(part.sharding.device_set) == 8 for part in eight)


def test_a_file_that_is_damaged_when_its_batch_is_due_is_named(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    images = data.load(str(tmp_path), validation_size=1, in_memory=False).train.images
    images.places[1].write_bytes(b"")
    assert images[np.array([0, 2])].shape == (2, 4, 4, 3)
    with pytest.raises(InvalidInput, match=rf"{images.places[1]}' cannot be read as an image"):
        images[np.array([0, 1])]


@pytest.mark.usefixtures("tiny_model")
def test_from_the_configuration_to_the_results(tmp_path, folder, decoded):
    """A run that began in memory goes on with its images in files; both are evaluated alike."""
    config, found = configs.default(), {}
    config.update_from_flattened_dict({
        "method.name": "madry", "model.name": "tiny", "data.name": folder, "data.image_size": SIZE,
        "data.validation_size": 8, "data.test_size": 6, "batch_size": 16, "num_epochs": 1, "attack.num_steps": 1,
        "eval.attacks": ("clean", "fgsm"), "eval.validation_attack": "fgsm", "eval.batch_size": 8,
        "eval.cam_images": 2, "eval.probe_examples": 2, "optimizer.milestones": (),
    })  # fmt: skip
    for in_memory in (True, False):
        config.data.in_memory = in_memory
        resolved = configs.resolve(config)
        cli.check(resolved, tmp_path / "run", "train")
        for name in ("outcomes", "cam_images", "probes"):
            (tmp_path / "run" / f"{name}.npz").unlink(missing_ok=True)
        decoded.clear()
        cli.execute_run(resolved, tmp_path / "run", "train")
        for name in ("outcomes", "cam_images"):
            with np.load(tmp_path / "run" / f"{name}.npz", allow_pickle=False) as arrays:
                found[name, in_memory] = {key: arrays[key] for key in arrays if key != "seconds"}
    assert len(decoded) == 2 * 8 + 2 + 2  # clean and FGSM in padded batches, probes, maps
    for name in ("outcomes", "cam_images"):
        jax.tree.map(np.testing.assert_array_equal, found[name, True], found[name, False])
        assert '"image_size": 8' in str(found[name, True]["setting"])


def test_the_data_of_a_training_are_identified_without_decoding(folder, decoded):
    there = load(folder, in_memory=False)
    assert digest(there[:3]) == digest(load(folder, in_memory=False)[:3])
    moved = there.train._replace(images=there.train.images.select(np.arange(40)[::-1]))
    assert digest(there[:3]) != digest(there._replace(train=moved)[:3])
    assert decoded == []


def test_an_image_that_was_replaced_is_noticed_by_its_size(folder, tmp_path):
    """With the images in their files, whose names are the same."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    before = digest(load(str(moved), in_memory=False)[:3])
    Image.fromarray(np.zeros((2 * SIZE, SIZE, 3), np.uint8)).save(moved / "class0" / "0.png")
    assert digest(load(str(moved), in_memory=False)[:3]) != before
