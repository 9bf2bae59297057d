"""Golden data of the training methods' tests: see golden/README.md for where it comes from."""

import functools
from pathlib import Path

import golden_attacks
import golden_nets
import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax import models

ARRAYS = dict(np.load(Path(__file__).parent / "golden" / "methods.npz", allow_pickle=False))


def group(name: str) -> dict[str, np.ndarray]:
    """The arrays under `name`/, without that prefix."""
    return {key.removeprefix(name + "/"): value for key, value in ARRAYS.items() if key.startswith(name + "/")}


def unpack_signs(golden: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Recorded signs of a gradient, as +-1."""
    bits = np.unpackbits(golden["signs"], count=int(np.prod(shape)))
    return bits.reshape(shape).astype(np.int8) * 2 - 1


@functools.cache
def feature_scatter_batch():
    """(frozen forward, training, images, labels, noise of the start) of the attacks on `wrn10_1_fs`."""
    module, variables = models.from_torch(golden_nets.state_dict("wrn10_1_fs"), mean=0.5, std=0.5)
    images = jnp.asarray(ARRAYS["fs/images_u8"].astype(np.float32) / 255)
    frozen = jax.tree_util.Partial(module.apply, variables)
    return (
        frozen,
        training(frozen),
        images,
        jnp.asarray(ARRAYS["fs/labels"]),
        jnp.asarray(ARRAYS["fs/start_noise"]),
    )


@functools.cache
def trades_batch():
    """(frozen forward, training, images, labels) of the attack on the network of the AutoAttack runs."""
    frozen = golden_attacks.network()
    return frozen, training(frozen), golden_attacks.images("images_u8"), golden_attacks.labels("labels")


def training(frozen: jax.tree_util.Partial):
    """() -> (training-mode forward, [the statistics after each of its passes])."""

    def begin():
        variables, passes = frozen.args[0], [frozen.args[0]["batch_stats"]]

        def forward(images):
            state = {"params": variables["params"], "batch_stats": passes[-1]}
            outputs, moved = frozen.func(state, images, train=True, mutable=["batch_stats"])
            passes.append(moved["batch_stats"])
            return outputs

        return forward, passes

    return begin
