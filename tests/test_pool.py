"""A second pool of training images: mapped from its file, a fixed share of each batch, resumed, on several devices."""

import re
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
from test_loop import in_directory, same, train_in_pieces
from test_recipes import configured
from test_step import distance

from infofeat_jax import cli, data, run
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.data import batches
from infofeat_jax.data.mapped import mapped
from infofeat_jax.training import loop
from infofeat_jax.types import InvalidInput

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.arange(40) % 5


@pytest.fixture
def pool(tmp_path):
    """An .npz with another array before the images, so that they begin anywhere."""
    np.savez(tmp_path / "pool.npz", label=LABELS, image=IMAGES)
    return str(tmp_path / "pool.npz")


def test_images_are_mapped_where_they_are_in_the_file(pool):
    found = mapped(pool, 5)
    np.testing.assert_array_equal(found.images, IMAGES)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert isinstance(found.images.base, np.memmap)
    assert found.images.dtype == np.uint8
    with zipfile.ZipFile(pool) as archive:
        start = archive.getinfo("image.npy").header_offset
    with open(pool, "r+b") as file:  # what is read later is what is there then
        file.seek(start + 1000)
        file.write(b"\x00\x01\x02\x03")
    assert b"\x00\x01\x02\x03" in found.images.tobytes()


def test_a_compressed_pool_is_refused_with_the_command_that_rewrites_it(tmp_path):
    path = str(tmp_path / "it's.npz")
    np.savez_compressed(path, image=IMAGES, label=LABELS)
    with pytest.raises(InvalidInput, match="its images are compressed and cannot be mapped") as caught:
        mapped(path)
    (code,) = re.findall(r'python -c "(.*)"', str(caught.value))
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(mapped(str(tmp_path / "it's-uncompressed.npz")).images, IMAGES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": IMAGES}, "lacks label; it has 'image'"),
        ({"image": IMAGES.astype(np.float32), "label": LABELS}, "image has dtype float32, expected uint8"),
        ({"image": IMAGES, "label": LABELS + 1}, "label has the label 5, expected 0 to 4"),
        ({"image": IMAGES, "label": LABELS[1:]}, "image has 40 images but .*label has 39 labels"),
        ({"image": np.asfortranarray(IMAGES), "label": LABELS}, "image cannot be mapped as a plain array"),
        ({"image": np.array([None, 1]), "label": LABELS}, "image cannot be mapped as a plain array"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "is empty"),
    ],
)
def test_what_is_no_pool_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "pool.npz", **arrays)
    with pytest.raises(InvalidInput, match=message):
        mapped(str(tmp_path / "pool.npz"), 5)


def test_a_damaged_pool_is_refused_or_read_in_any_case(pool):
    """Every 37th byte outside the pixels changed in turn: one line, or the same shape."""
    whole, damaged = Path(pool).read_bytes(), Path(pool).with_name("damaged.npz")
    for at in chain(range(0, 700, 37), range(len(whole) - 400, len(whole), 37)):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert mapped(str(damaged)).images.shape == IMAGES.shape
        except InvalidInput as error:
            assert str(error).isprintable()  # noqa: PT017 - either outcome is right
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"is not an \.npz"):
        mapped(str(damaged))


def test_the_share_is_that_of_every_batch_and_each_pool_is_passed_through():
    """8 of 10 examples of a pool of 24: three batches, then another order; 2 of a training set of 10."""
    rows = [batches.pooled_indices(3, step, (10, 24), (2, 8)) for step in range(15)]
    passes = [np.concatenate([one.extra for one in rows[start : start + 3]]) for start in range(0, 15, 3)]
    assert all(sorted(one) == list(range(24)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    own = [np.concatenate([one.own for one in rows[start : start + 5]]) for start in range(0, 15, 5)]
    assert all(sorted(one) == list(range(10)) for one in own)
    assert all(sorted(one.order) == list(range(10)) for one in rows)
    assert len({tuple(one.order) for one in rows}) == 15
    equal = batches.pooled_indices(3, 0, (24, 24), (8, 8))
    assert equal.own.tolist() != equal.extra.tolist()  # orders of their own
    again = batches.pooled_indices(3, 7, (10, 24), (2, 8))
    assert all(np.array_equal(*pair) for pair in zip(again, rows[7], strict=True))
    alone = batches.pooled_indices(3, 7, (10, 0), (10, 0))
    np.testing.assert_array_equal(alone.own, batches.batch_indices(3, 7, 10, 10))  # as without a second pool


def test_a_batch_has_the_labels_of_its_images():
    own = data.Split(np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1), np.arange(10, dtype=np.int32))
    extra = data.Split(100 + np.arange(24, dtype=np.uint8).reshape(-1, 1, 1, 1), 100 + np.arange(24, dtype=np.int32))
    found = batches.take(own, extra, batches.pooled_indices(3, 1, (10, 24), (2, 8)))
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], found.labels)
    assert (found.labels >= 100).sum() == 8
    assert found.images.dtype == np.uint8


def pooled(workdir, pool: str, count: int = 1) -> loop.Training:
    training = in_directory(workdir, count)
    return training._replace(extra=mapped(pool), settings=training.settings._replace(extra=6))


def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path, pool, monkeypatch):
    whole = jax.device_get(loop.train(pooled(tmp_path / "whole", pool)))
    training = pooled(tmp_path / "stopped", pool)
    state, stops = train_in_pieces(training, monkeypatch)
    assert 4 <= stops < 9
    assert same(whole, state)
    assert distance(jax.device_get(training.initial()).params, whole.params) > 1e-3


def test_the_pool_reaches_every_device_as_one(tmp_path, pool):
    one, eight = (loop.load_batch(pooled(tmp_path / str(count), pool, count), 3) for count in (1, 8))
    assert same(jax.device_get(one), eight)
    plain = loop.load_batch(in_directory(tmp_path / "plain"), 3)
    assert not same(jax.device_get(plain), one)
    assert all(len(part.sharding.device_set) == 8 for part in eight)


def test_from_the_configuration_to_the_loop(tmp_path, pool):
    experiment = configured()
    config = experiment.config
    config.data.update({"extra": pool, "extra_share": 0.7})
    experiment = experiment._replace(extra=experiments.load_extra(config, experiment.data), workdir=tmp_path)
    config.eval.validation_attack = "fgsm"
    training = run.create_training(experiment)
    assert (training.settings.extra, len(training.extra.labels)) == (11, 40)
    narrow = experiment.data._replace(train=experiment.data.train._replace(images=IMAGES[:, :4]))
    with pytest.raises(InvalidInput, match=r"has images \[8, 8, 3\]: expected \[4, 8, 3\]"):
        experiments.load_extra(config, narrow)
    config.batch_size = 1000
    with pytest.raises(InvalidInput, match="has fewer images than a batch takes from it"):
        experiments.load_extra(config, experiment.data)


def test_only_training_needs_the_file(tmp_path):
    """A missing one is refused before the run's directory is made."""
    config = configs.default()
    config.update_from_flattened_dict({
        "data.name": "digits", "data.extra": str(tmp_path / "absent.npz"), "data.extra_share": 0.5, "batch_size": 16,
        "model.name": "wrn_10_1",
    })  # fmt: skip
    config = configs.resolve(config)
    with pytest.raises(InvalidInput, match=r"absent\.npz: no such file"):
        cli.execute_run(config, tmp_path / "run", "train")
    assert not (tmp_path / "run").exists()
    assert experiments.create(config, tmp_path / "run", to_train=False).extra is None
