"""Augmentation against plain NumPy."""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax.data import augment
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)


def images(n=64, height=6, width=5, channels=3):
    """Images without black and without equal pixels, so every place is recognised."""
    pixels = np.arange(1, n * height * width * channels + 1, dtype=np.float32)
    return jnp.asarray((pixels / (len(pixels) + 1)).reshape(n, height, width, channels))


def pairs(clean, result):
    return zip(np.asarray(clean), np.asarray(result), strict=True)


def windows(image, padding):
    """Every window that a crop may cut out, {(top, left): window}, with Python loops."""
    height, width, _ = image.shape
    result = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = np.zeros_like(image)
            for i in range(height):
                for j in range(width):
                    row, column = i + top - padding, j + left - padding
                    if 0 <= row < height and 0 <= column < width:
                        window[i, j] = image[row, column]
            result[top, left] = window
    return result


def offsets(clean, cropped, padding):
    """Where each crop was cut out; fails if a crop is no window of its image."""
    found = []
    for image, crop in pairs(clean, cropped):
        matches = [at for at, window in windows(image, padding).items() if np.array_equal(window, crop)]
        assert len(matches) == 1
        found += matches
    return found


@pytest.mark.parametrize("padding", [1, 2])
def test_a_crop_is_a_window_of_the_padded_image_at_every_offset(padding):
    clean = images(256)
    found = offsets(clean, augment.random_crop(KEY, clean, padding), padding)
    places = (2 * padding + 1) ** 2
    assert len(set(found)) == places
    counts = np.unique(found, axis=0, return_counts=True)[1]
    expected = 256 / places
    assert ((counts - expected) ** 2 / expected).sum() < places + 6 * (2 * places) ** 0.5  # chi-squared, 6 sigma


def test_a_flip_mirrors_about_half_of_the_images():
    clean = images(400)
    result = augment.random_flip(KEY, clean)
    mirrored = [np.array_equal(out, image[:, ::-1]) for image, out in pairs(clean, result)]
    kept = [np.array_equal(out, image) for image, out in pairs(clean, result)]
    assert np.logical_xor(mirrored, kept).all()
    assert 150 < sum(mirrored) < 250


def test_crop_and_flip_have_a_key_each():
    crop_key, flip_key = jax.random.split(KEY)
    expected = augment.random_flip(flip_key, augment.random_crop(crop_key, images(), 2))
    np.testing.assert_array_equal(augment.crop_and_flip(KEY, images(), padding=2, flip=True), expected)


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True), (0, False)])
def test_crop_and_flip_composes_both(padding, flip):
    clean = images()
    result = augment.crop_and_flip(KEY, clean, padding=padding, flip=flip)
    straight, mirrored = 0, 0
    for image, out in pairs(clean, result):
        choices = windows(image, padding).values()
        straight += any(np.array_equal(window, out) for window in choices)
        mirrored += any(np.array_equal(window[:, ::-1], out) for window in choices)
    assert straight + mirrored == len(clean)
    assert (mirrored > 0) == flip
    changed = not np.array_equal(result, clean)
    assert changed == bool(padding or flip)


@pytest.mark.parametrize(
    "function",
    [
        lambda key, x: augment.random_crop(key, x, 2),
        augment.random_flip,
        lambda key, x: augment.crop_and_flip(key, x, padding=2, flip=True),
    ],
    ids=["crop", "flip", "both"],
)
class TestEveryAugmentation:
    def test_is_pure_and_the_same_under_jit(self, function):
        clean = images()
        eager = function(KEY, clean)
        np.testing.assert_array_equal(eager, function(KEY, clean))
        np.testing.assert_array_equal(eager, jax.jit(function)(KEY, clean))
        assert not np.array_equal(eager, function(jax.random.key(1), clean))
        assert eager.shape == clean.shape
        assert eager.dtype == clean.dtype

    def test_an_example_does_not_depend_on_its_batch(self, function):
        clean = images()
        np.testing.assert_array_equal(function(KEY, clean)[:5], function(KEY, clean[:5]))

    def test_keeps_the_dtype(self, function):
        assert function(KEY, jnp.asarray(images(), jnp.bfloat16)).dtype == jnp.bfloat16


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from infofeat_jax.data.augment import crop_and_flip
assert jax.device_count() == 4
images = jax.random.uniform(jax.random.key(1), (16, 6, 5, 3))
def augment(key, images):
    return crop_and_flip(key, images, padding=2, flip=True)
one = jax.jit(augment)(jax.random.key(0), images)
split = NamedSharding(Mesh(jax.devices(), "data"), P("data"))
many = jax.jit(augment, out_shardings=split)(jax.random.key(0), jax.device_put(images, split))
assert len(many.sharding.device_set) == 4
np.testing.assert_array_equal(one, many)
"""


def test_the_result_does_not_depend_on_the_device_count(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_applied_first_has_a_key_of_its_own():
    """Crop and flip are the same with it and without."""
    crop_and_flip = partial(augment.crop_and_flip, KEY, padding=1, flip=True)
    first = jax.jit(augment.trivial)(jax.random.fold_in(KEY, augment.BEFORE), images(8))
    found = jax.jit(partial(crop_and_flip, first="trivial"))(images(8))
    np.testing.assert_array_equal(found, crop_and_flip(first))
    assert not np.array_equal(found, crop_and_flip(images(8)))


@pytest.mark.parametrize("crop", [augment.random_crop, partial(augment.crop_and_flip, flip=False)])
def test_negative_padding(crop):
    with pytest.raises(InvalidInput, match="padding=-1: expected 0 or more pixels on each side"):
        crop(KEY, images(2), padding=-1)
