"""A compiled forward and its derivatives for batches of any size, compiled for a few padded sizes only."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax.attacks.inputs import as_forward
from infofeat_jax.types import Forward


class Padded:
    """Pads batches with zeros to the next power of two, and truncates the results."""

    def __init__(self, forward: Forward):
        outputs = as_forward(forward)
        self._logits = jax.jit(lambda images: outputs(images).logits)
        self._linearize = jax.jit(lambda images: jax.vjp(self._logits, images))
        self._pull = jax.jit(lambda pullback, cotangent: pullback(cotangent)[0])

    def logits(self, images) -> jax.Array:
        """[b, h, w, c] -> [b, k]. Differentiable by JAX; then the batch is not padded."""
        if isinstance(images, jax.core.Tracer):
            return self._logits(images.astype(jnp.float32))
        return self._logits(_pad(images))[: len(images)]

    def vjp(self, images) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """(logits [b, k], function of a cotangent [b, k] that gives the images' gradient [b, h, w, c])."""
        count = len(images)
        logits, pullback = self._linearize(_pad(images))
        return np.asarray(logits)[:count], lambda g: np.asarray(self._pull(pullback, _pad(g)))[:count]


def _pad(batch) -> jax.Array:
    batch = np.asarray(batch, np.float32)
    size = 1 << max(len(batch) - 1, 0).bit_length()
    padded = np.zeros((size, *batch.shape[1:]), np.float32)  # a copy: PyTorch may change its own in place
    padded[: len(batch)] = batch
    return jnp.asarray(padded)
