"""What the tests of PyTorch checkpoints share. Imports no PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax import models


def small(name="wrn_10_2", **options):
    """A network of width 4 with random variables, statistics included."""
    module = models.create(name, num_classes=7, width=4, mean=0.0, std=1.0, **options)
    leaves, tree = jax.tree.flatten(jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    draw = np.random.default_rng(len(leaves))
    return module, tree.unflatten([jnp.asarray(draw.uniform(-0.3, 0.5, x.shape) ** 2) for x in leaves])


def small_state(name="wrn_10_2", **options):
    return models.to_torch(small(name, **options)[1])


def assert_equal_trees(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def package_for(suffix: str) -> None:
    """Skips the test where what reads and writes such files is not installed."""
    if suffix != ".npz":
        pytest.importorskip("safetensors.numpy" if suffix == ".safetensors" else "torch")
