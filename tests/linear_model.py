"""A linear classifier, whose robustness is known exactly: the oracle of the attacks' tests."""

import jax
import jax.numpy as jnp
import numpy as np


def problem(num_classes: int = 6, count: int = 24, size: int = 4, seed: int = 0):
    """(forward giving bare logits, images in [0.3, 0.7], labels: most of them the predictions, weights)."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(size * size * 2, num_classes)).astype(np.float32)
    images = rng.uniform(0.3, 0.7, (count, size, size, 2)).astype(np.float32)
    bias = -0.5 * weights.sum(0)
    forward = jax.tree_util.Partial(_logits, jnp.asarray(weights), jnp.asarray(bias))
    labels = np.array(forward(images).argmax(-1), np.int32)
    labels[:2] = (labels[:2] + 1) % num_classes
    return forward, jnp.asarray(images), jnp.asarray(labels), weights


def distances(forward, images, labels, weights, norm: str) -> np.ndarray:
    """[b] distance to the nearest other class, where the box does not matter; negative if misclassified."""
    logits, weights = np.asarray(forward(images), np.float64), weights.astype(np.float64)
    rows = np.arange(len(labels))
    margins = logits[rows, labels][:, None] - logits
    normals = weights.T[np.asarray(labels)][:, None] - weights.T[None]
    dual = np.linalg.norm(normals, ord={"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=-1)
    ratio = margins / np.maximum(dual, 1e-12)
    ratio[rows, labels] = np.inf
    return ratio.min(1)


def _logits(weights, bias, images):
    return images.reshape(images.shape[0], -1) @ weights + bias
