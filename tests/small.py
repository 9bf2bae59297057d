"""A small network and batch that many tests share; everything here is quick to compile."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_net import TinyNet

from infofeat_jax import cam, convolution, models
from infofeat_jax.types import Outputs


@cache
def network(name: str = "wrn_10_1", num_classes: int = 5, width: int = 4, size: int = 8):
    """(module, variables) with running statistics that differ from their initial values."""
    module = models.create(name, num_classes=num_classes, width=width)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(0)

    def move(leaf):
        return jnp.asarray(leaf + 0.1 * rng.uniform(size=leaf.shape), jnp.float32)

    return module, {
        "params": variables["params"],
        "batch_stats": jax.tree.map(move, variables["batch_stats"]),
    }


def forward(num_classes: int = 5):
    """One convolution, ReLU, pooling, one linear layer: all outputs that an attack can need, compiled quickly."""
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 6)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(6, num_classes)), jnp.float32)

    def apply(images):
        maps = jax.nn.relu(convolution.convolve(images - 0.5, kernel, 2))
        features = maps.mean((1, 2))
        return Outputs(3 * features @ head, features, maps, cam.positive_cam(maps, head))

    return apply


def batch(count: int = 6, size: int = 8, num_classes: int = 5, seed: int = 1):
    """(images in [0, 1] with some pixels at the bounds, labels)."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.1, 1.1, (count, size, size, 3)), 0, 1).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, num_classes, count), jnp.int32)


@pytest.fixture(scope="module")
def tiny_model():
    """TinyNet by the name of "tiny" in configurations."""

    def create(*, num_classes, mean, std, dtype, remat=False, width=0):
        return TinyNet(num_classes, dtype=dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", create)
        yield
