"""Training targets: distributions over the classes, [b, k]."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infofeat_jax.types import Labels, Probabilities

Logits = Float[Array, "b k"]

# Bilateral: keeps the least likely class's share and a uniform prediction's spread above zero.
_FLOOR = 0.01


def smooth(labels: Labels, num_classes: int, strength: float) -> Probabilities:
    """1 - strength for the label, the rest evenly for the others, as in Feature Scattering and Bag of Tricks.

    >>> smooth(jnp.array([1]), 3, 0.5)
    Array([[0.25, 0.5 , 0.25]], dtype=float32)
    """
    others = strength / (num_classes - 1)
    return jax.nn.one_hot(labels, num_classes) * (1 - strength - others) + others


def interpolate(labels: Labels, num_classes: int, strength: float) -> Probabilities:
    """Adversarial Interpolation (Zhang & Xu, 2020): (1 - strength) y + strength (1 - y') / (k - 1).

    y' is the label of the partner, the batch reversed: the one class that is not raised.
    """
    one_hot = jax.nn.one_hot(labels, num_classes)
    return (1 - strength) * one_hot + strength * (1 - one_hot[::-1]) / (num_classes - 1)


def bilateral(logits: Logits, labels: Labels, strength: float) -> Probabilities:
    """Bilateral Adversarial Training's adversarial labels in closed form (Wang & Zhang, 2019).

    Of the clean images' `logits`: wrong classes share mass in proportion to their -log p above the smallest.
    The label's probability is a fixed multiple of the largest of them, (k - 1)(1 - strength) / strength, such
    that equally likely wrong classes give label smoothing by `strength`.
    """
    num_classes = logits.shape[-1]
    is_label = jax.nn.one_hot(labels, num_classes, dtype=bool)
    probabilities = jax.nn.softmax(logits) + 1e-8
    likeliest = jnp.where(is_label, 0.0, probabilities).max(-1, keepdims=True)
    # The logarithm of the ratio: the difference of logarithms cancels where both are near log 1e-8.
    excess = jnp.where(is_label, 0.0, jnp.log(likeliest / probabilities) + _FLOOR)
    share = excess / excess.sum(-1, keepdims=True)
    largest = share.max(-1, keepdims=True)
    wrong = strength / (strength + (num_classes - 1) * (1 - strength) * largest)
    return jnp.where(is_label, 1 - wrong, wrong * share)


def most_confusing(logits: Logits, labels: Labels) -> Labels:
    """The most likely wrong class, [b]."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.where(is_label, -jnp.inf, logits).argmax(-1).astype(labels.dtype)
