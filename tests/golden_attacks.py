"""Golden data of the AutoAttack tests: see golden/README.md for where it comes from."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from infofeat_jax import models

FOLDER = Path(__file__).parent / "golden"
EPSILON = {"linf": 8 / 255, "l2": 1.0}
ARRAYS = dict(np.load(FOLDER / "autoattack.npz", allow_pickle=False))


@functools.cache
def network() -> jax.tree_util.Partial:
    """The small robust network of the golden runs, images -> Outputs; its weights are arguments under jit."""
    arrays = np.load(FOLDER / "resnet10_w16.npz", allow_pickle=False)
    variables = unflatten_dict({tuple(path.split("/")): jnp.asarray(value) for path, value in arrays.items()})
    module = models.create("resnet10", num_classes=10, width=16, mean=0.0, std=1.0)
    return jax.tree_util.Partial(module.apply, variables)


def images(name: str) -> jax.Array:
    """8-bit images as float32 in [0, 1]."""
    return jnp.asarray(ARRAYS[name].astype(np.float32) / 255)


def labels(name: str) -> jax.Array:
    return jnp.asarray(ARRAYS[name], jnp.int32)
