"""Batches of any size on any number of devices: as many as can be used, and results that do not depend on them."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from test_step import create_experiment

from configs import cifar10_wrn, svhn_resnet18
from infofeat_jax import config as configs
from infofeat_jax import data, experiment, threat
from infofeat_jax.data import Split, to_unit
from infofeat_jax.evaluation import robustness
from infofeat_jax.runtime import compilation, devices
from infofeat_jax.types import InvalidInput


def random_values(count: int, batch_size: int) -> np.ndarray:
    """A random number for each of 13 examples, evaluated on the first `count` devices."""
    split = Split(np.zeros((13, 4, 4, 3), np.uint8), np.zeros(13, np.int32))
    mesh, ball = devices.mesh(count), threat.threat("linf", 0.1)
    draw = lambda _, key, batch: threat.random_start(ball, key, to_unit(batch[0])).sum((1, 2, 3))  # noqa: E731
    one_batch = devices.parallelize_batch(draw, mesh)
    return np.concatenate(list(robustness.in_batches(one_batch, mesh, {}, jax.random.key(0), split, batch_size)))


@pytest.mark.parametrize("batch_size", [5, 8, 13])
def test_random_starts_do_not_depend_on_the_number_of_devices(batch_size):
    one = random_values(1, batch_size)
    assert len(one) == len(np.unique(one)) == 13
    for count in (3, 8):
        np.testing.assert_array_equal(random_values(count, batch_size), one)


@pytest.mark.parametrize(
    ("size", "parts", "count", "used"),
    [(128, 1, 1, 1), (128, 1, 8, 8), (128, 1, 256, 128), (128, 4, 8, 8), (128, 4, 64, 32), (6, 1, 8, 6)],
)
def test_as_many_devices_as_a_batch_can_use(monkeypatch, size, parts, count, used):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    assert devices.count_for(size, parts) == used


@pytest.mark.parametrize(
    ("size", "parts", "count", "message"),
    [
        (12, 1, 8, "config.batch_size = 12: expected a multiple of the 8 devices, such as 16"),
        (
            12,
            8,
            2,
            "12: expected a multiple of the 2 devices, times 8 accumulated steps, such as 16",
        ),
    ],
)
def test_a_batch_that_leaves_devices_uneven_is_refused(monkeypatch, size, parts, count, message):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    with pytest.raises(InvalidInput, match=re.escape(message)):
        devices.count_for(size, parts)


def test_several_processes_need_a_batch_for_all_their_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 256)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InvalidInput, match="128: expected a multiple of the 256 devices, such as 256"):
        devices.count_for(128)


@pytest.mark.parametrize("get_config", [cifar10_wrn.get_config, svhn_resnet18.get_config])
def test_the_papers_configurations_start_on_eight_devices_as_they_are(get_config):
    assert jax.device_count() == 8
    split = Split(np.zeros((256, 32, 32, 3), np.uint8), np.zeros(256, np.int32))
    config = configs.resolve(get_config())
    made = experiment.create(config, pathlib.Path("unused"), data.Dataset(split, split, split, 10, "none"))
    assert made.mesh.size == 8


def test_the_command_for_several_devices_runs_as_it_ships(main, tmp_path):
    """But for a tiny network, few images and one epoch. Its evaluation's batches of 250 are no multiple of 8."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 256), ("test", 260)):
        arrays[f"image_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        arrays[f"label_{part}"] = rng.integers(0, 10, count, np.uint8)
    np.savez(tmp_path / "images.npz", **arrays)
    process = main(
        "--config=configs/cifar10_wrn.py", "--config.model.name=tiny_net:TinyNet", "--config.num_epochs=1",
        f"--config.data.name={tmp_path}/images.npz", "--config.data.validation_size=128",
        f"--workdir={tmp_path}/run", devices=8,
    )  # fmt: skip
    assert "training for 1 steps of 128 images; 8 cpu device(s)" in process.stdout
    assert configs.default().eval.batch_size == 250
    measured = json.loads((tmp_path / "run/results.json").read_text())
    assert {"clean", "pgd20", "autoattack"} <= measured.keys()


def test_a_program_that_runs_once_is_compiled_quickly_on_a_cpu(monkeypatch):
    """To the same values. XLA_FLAGS from outside win, and accelerators are left alone."""
    assert compilation.once("cpu") is None  # the suite's own flags
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compilation.once("cpu") == {"xla_backend_optimization_level": 1}
    assert compilation.once("gpu") is None
    draw = lambda key: jax.random.normal(key, (3, 3, 4))  # noqa: E731
    quick = jax.jit(draw, compiler_options=compilation.once("cpu"))
    np.testing.assert_allclose(quick(jax.random.key(0)), draw(jax.random.key(0)), rtol=1e-6)


def test_the_initial_state_is_such_a_program(monkeypatch):
    monkeypatch.setattr(compilation, "once", lambda platform: {"no_such_option": 1})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        experiment.create_state(create_experiment("standard"))
