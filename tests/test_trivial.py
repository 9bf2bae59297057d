"""TrivialAugment against Pillow, which its authors use; whom it chooses, and that a choice concerns one image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from infofeat_jax import checks, data
from infofeat_jax import config as configs
from infofeat_jax.data import to_unit, trivial
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)
NAMES, HEIGHT, WIDTH = list(trivial.OPERATIONS), 40, 36  # enough pixels for histograms of several a level
AFFINE = {
    "shear_x": lambda s, d: (1, s, 0, 0, 1, 0), "shear_y": lambda s, d: (1, 0, 0, s, 1, 0),
    "translate_x": lambda s, d: (1, 0, d, 0, 1, 0), "translate_y": lambda s, d: (1, 0, 0, 0, 1, d),
}  # fmt: skip
ENHANCED = {
    "color": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}  # fmt: skip


def pixels(count: int, channels: int = 3) -> np.ndarray:
    """Smooth images that do not use all levels, as photographs."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 230, (count, 5, 4, channels), np.uint8)
    images = [Image.fromarray(one.squeeze()).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for one in coarse]
    return np.stack([np.asarray(image).reshape(HEIGHT, WIDTH, channels) for image in images])


def by_pillow(name: str, strength: int, negative: bool, image: Image.Image) -> Image.Image:
    """As the authors call it, for the wide space of 31 strengths."""
    part, sign = strength / 30, -1 if negative else 1
    if name in AFFINE:
        given = AFFINE[name](sign * 0.99 * part, sign * int(32 * part))
        return image.transform(image.size, Image.Transform.AFFINE, given)
    if name in ENHANCED:
        return ENHANCED[name](image).enhance(part * (2.0 - 0.01) + 0.01)
    return {
        "identity": lambda: image,
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "rotate": lambda: image.rotate(sign * int(135 * part)),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(256 * part)),
        "posterize": lambda: ImageOps.posterize(image, 8 - int(6 * part)),
    }[name]()


applied = jax.jit(trivial.apply)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_pillows(name, channels):
    """At every strength and in both directions.

    But for automatic contrast, where Pillow's product of doubles falls below an integer that is the exact result.
    """
    strengths, images = np.repeat(np.arange(31), 2), pixels(62, channels)
    negative = np.tile([False, True], 31)
    operations = jnp.full(62, NAMES.index(name))
    found = np.asarray(applied(jnp.asarray(images, jnp.int32), operations, jnp.asarray(strengths), negative))
    for strength, sign, image, ours in zip(strengths, negative, images, found, strict=True):
        expected = np.asarray(by_pillow(name, strength, sign, Image.fromarray(image.squeeze())), int)
        low, high = image.min((0, 1)).astype(int), image.max((0, 1))
        below = (name == "auto_contrast") & ((image - low) * 255 % (high - low) == 0)
        difference = ours - expected.reshape(ours.shape)
        assert ((difference == 0) | (difference == below)).all(), (strength, sign)
    if name not in ("identity", "color" if channels == 1 else ""):
        assert (found != images).any((1, 2, 3)).mean() > 0.8


def test_flat_images_stay_as_they_are():
    flat = jnp.full((2, HEIGHT, WIDTH, 3), 77)
    for name in ("auto_contrast", "equalize"):
        index = jnp.full(2, NAMES.index(name))
        np.testing.assert_array_equal(applied(flat, index, jnp.array([0, 30]), jnp.array([False, True])), flat)


def test_operations_are_equally_likely_and_an_example_depends_neither_on_its_batch_nor_on_the_devices():
    original = pixels(1)[:, :24, :24]
    images, same = jnp.asarray(to_unit(np.repeat(original, 704, 0))), {original.tobytes()}
    augmented = jax.jit(trivial.trivial)
    found = np.asarray(augmented(KEY, images))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, to_unit(np.rint(found * 255).astype(np.uint8)))  # levels, as they are read
    np.testing.assert_array_equal(found[:5], augmented(KEY, images[:5]))
    split = NamedSharding(jax.sharding.Mesh(jax.devices(), "data"), PartitionSpec("data"))
    np.testing.assert_array_equal(found, augmented(KEY, jax.device_put(images, split)))
    kinds = {
        name: {by_pillow(name, s, n, Image.fromarray(original[0])).tobytes() for s in range(31) for n in (0, 1)} - same
        for name in ("equalize", "rotate", "posterize", "translate_x")
    }
    seen = [np.rint(255 * image).astype(np.uint8).tobytes() for image in found]
    for name, results in kinds.items():
        assert 25 < sum(image in results for image in seen) < 80, name  # of 50, those that are not the same
    assert len(set(seen)) > 200
    assert not np.array_equal(found, augmented(jax.random.key(1), images))


def test_other_channels_are_refused():
    config = configs.default()
    config.data.augment = "trivial"
    split = data.Split(np.zeros((200, 4, 4, 4), np.uint8), np.zeros(200, np.int32))
    with pytest.raises(
        InvalidInput, match=r"config\.data\.augment = 'trivial' with images of 4 channels: expected 1 or"
    ):
        checks.check_data(config, data.Dataset(split, split, split, 2, "zeros"))
    with pytest.raises(InvalidInput, match="trivial augmentation of 4 channels: expected 1 or 3"):
        trivial.trivial(KEY, jnp.zeros((2, 4, 4, 4)))
