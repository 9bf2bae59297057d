"""A JAX model as a classifier of the Adversarial Robustness Toolbox."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from art.experimental.estimators.classification.jax import JaxClassifier

from infofeat_jax.adapters.padded import Padded
from infofeat_jax.types import Forward, InvalidInput


class ArtClassifier(JaxClassifier):
    """See `infofeat_jax.adapters.art`. Implements the methods that ART's attacks need and its own class leaves open."""

    def __init__(self, forward: Forward, image_shape, num_classes: int, bounds):
        self._padded = padded = Padded(forward)

        def loss(_, images, labels):
            return optax.softmax_cross_entropy(padded.logits(images), labels).sum()

        super().__init__(
            model=[], predict_func=lambda _, images: np.asarray(padded.logits(images)), loss_func=loss,
            update_func=_untrainable, input_shape=tuple(image_shape), nb_classes=num_classes, clip_values=bounds,
        )  # fmt: skip

    def loss_gradient(self, x, y, **_) -> np.ndarray:
        """The gradient of each example's cross-entropy with `y`, one-hot [b, k] or classes [b]."""
        logits, pull = self._padded.vjp(x)
        return pull(np.asarray(jax.nn.softmax(logits) - self._one_hot(y)))

    def compute_loss(self, x, y, reduction: str = "none", **_) -> np.ndarray:
        """Cross-entropy with `y`, one-hot [b, k] or classes [b]: one value per example [b], or their mean or sum."""
        losses = np.asarray(optax.softmax_cross_entropy(self._padded.logits(x), jnp.asarray(self._one_hot(y))))
        return losses if reduction == "none" else getattr(losses, reduction)()

    def _one_hot(self, y) -> np.ndarray:
        return np.eye(self.nb_classes, dtype=np.float32)[y] if np.ndim(y) == 1 else np.asarray(y)

    def class_gradient(self, x, label=None, **_) -> np.ndarray:
        """Gradients of the logits: of all classes [b, k, h, w, c], or of `label`, an int or [b]: [b, 1, h, w, c]."""
        _, pull = self._padded.vjp(x)
        classes = range(self.nb_classes) if label is None else [label]
        one_hot = np.eye(self.nb_classes, dtype=np.float32)
        return np.stack([pull(one_hot[np.broadcast_to(each, len(x))]) for each in classes], axis=1)


def _untrainable(*_):
    raise InvalidInput("this classifier is for attacks: train with main.py")
