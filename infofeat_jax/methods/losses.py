"""The losses of the update: (training forward, batch) -> the loss [b], whose mean is descended, and logits [b, k].

The logits are those of the perturbed images, for the training accuracy. Each call of `forward` is one
training-mode pass that updates BatchNorm's running statistics, in the order written. Losses and gradients
are finite for finite logits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from infofeat_jax import objectives
from infofeat_jax.threat import NORMS, per_example
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    Outputs,
    PerExample,
    PRNGKey,
    Probabilities,
)


class Batch(NamedTuple):
    """The arguments of a loss besides the model."""

    images: Images  # augmented, unperturbed
    perturbed: Images  # the same without an attack
    labels: Labels
    targets: Probabilities


Logits = Float[Array, "b k"]
Loss = Callable[[Forward, Batch], tuple[PerExample, Logits]]
# (model on batch statistics, which leaves the running ones alone, key, images, labels) -> what the loss gains, [b].
Penalty = Callable[[Forward, PRNGKey, Images, Labels], PerExample]

# Feature Matching's code adds 1e-5 to the RMS of d(mean of 128 x 10 logits) / d(8 x 8 map). Here it is kept
# at that, as a number beside the RMS of the weights, so that the loss does not depend on the batch size.
_RMS_FLOOR = 1e-5 * (128 * 10) * (8 * 8)
_MATCHED_LOGITS = 2.0  # the weight of the logit pairing in Feature Matching's code for CIFAR-10


def adversarial_cross_entropy(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
    """Eq. 4 and 8: the cross-entropy of the perturbed images alone."""
    logits = forward(batch.perturbed).logits
    return optax.softmax_cross_entropy(logits, batch.targets), logits


def logit_pairing(weight: float, *, clean_term: bool = False) -> Loss:
    """Adversarial logit pairing (Kannan et al., 2018): cross-entropy + weight * mean_k (z_k - z'_k)^2.

    By default the cross-entropy of the perturbed images alone, the InfoFeature paper's Eq. 1: its Table 1 has
    ALP at Madry's clean accuracy (85.7 and 85.6), where a clean term would be expected to raise it.
    `clean_term`: the mean of clean and perturbed, the form of Kannan et al. and of their code. Clean and
    perturbed images pass as one batch, as there.
    """

    def loss(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
        clean, perturbed = _forward_both(forward, batch)
        pairing = jnp.square(clean.logits - perturbed.logits).mean(-1)
        return _cross_entropy(clean, perturbed, batch, clean_term=clean_term) + weight * pairing, perturbed.logits

    return loss


def map_matching(weight: float) -> Loss:
    """Feature Matching (Li et al., 2020) as its code for CIFAR-10.

    Mean cross-entropy of clean and perturbed images + weight * mean_hw (difference of the label's
    Grad-CAMs)^2 + 2 * mean_k (difference of logits)^2. Clean and perturbed images pass as one batch; nothing
    is detached.
    """

    def loss(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
        clean, perturbed = _forward_both(forward, batch)
        maps = [grad_cam(outputs, batch.labels) for outputs in (clean, perturbed)]
        matching = jnp.square(maps[0] - maps[1]).mean((1, 2))
        pairing = jnp.square(clean.logits - perturbed.logits).mean(-1)
        classification = _cross_entropy(clean, perturbed, batch, clean_term=True)
        return classification + weight * matching + _MATCHED_LOGITS * pairing, perturbed.logits

    return loss


def cam_pairing(weight: float, distance: str, classes: str) -> Loss:
    """Feature Matching as the InfoFeature paper describes it: Eq. 1 with the distance of Eq. 6's maps.

    Cross-entropy of the perturbed images + weight * D(CAM(x), CAM(x + delta)), as `objectives.cam_distance`.
    """
    between = objectives.cam_distance(distance, classes)

    def loss(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
        clean, perturbed = _forward_both(forward, batch)
        matching = between(perturbed, clean, batch.labels)
        return _cross_entropy(clean, perturbed, batch, clean_term=False) + weight * matching, perturbed.logits

    return loss


def grad_cam(outputs: Outputs, labels: Labels, *, normalize: bool = True) -> Float[Array, "b h w"]:
    """Grad-CAM (Selvaraju et al., 2017) of the label: relu(sum_d w_dy M_d), without a second backward pass.

    Behind average pooling and a linear head the logit's gradient with respect to the maps is w_y / (h w)
    everywhere. `normalize` divides it by its root mean square over batch and channels, as Feature Matching's
    code does for CIFAR-10 (with its guard against small gradients); False leaves Grad-CAM as it is.
    """
    if outputs.maps is None or outputs.kernel is None:
        raise InvalidInput("Grad-CAM needs Outputs with maps and kernel: this model returns logits alone")
    weights = outputs.kernel[:, labels].T
    if normalize:
        weights = weights / (optax.safe_root_mean_squares(weights, 1e-12) + _RMS_FLOOR)
    else:
        weights = weights / (outputs.maps.shape[1] * outputs.maps.shape[2])
    return jax.nn.relu(jnp.einsum("bhwd,bd->bhw", outputs.maps, weights))


def trades(weight: float) -> Loss:
    """TRADES (Zhang et al., 2019): CE(z, y) + weight * KL(p(x) || p(x')); nothing is detached.

    Passes of x, x', and x again as in the authors' code, the last for BatchNorm's running statistics alone: both terms
    take the first's outputs, where the code computes equal ones twice (with dropout in a model they would differ).
    """

    def loss(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
        clean, perturbed = forward(batch.images), forward(batch.perturbed)
        forward(batch.images)
        natural = optax.softmax_cross_entropy(clean.logits, batch.targets)
        return natural + weight * objectives.kl_divergence(perturbed, clean, batch.labels), perturbed.logits

    return loss


def mart(weight: float) -> Loss:
    """MART (Wang et al., 2020), with the constants of the authors' code; nothing is detached.

    CE(z', y) - log(1.0001 - max_{k != y} p'_k) + weight * KL(p || p') * (1 - p_y). Two passes: x, x'.
    """

    def loss(forward: Forward, batch: Batch) -> tuple[PerExample, Logits]:
        clean = jax.nn.log_softmax(forward(batch.images).logits)
        logits = forward(batch.perturbed).logits
        perturbed = jnp.exp(jax.nn.log_softmax(logits))
        is_label = jax.nn.one_hot(batch.labels, logits.shape[-1], dtype=bool)
        rival = jnp.where(is_label, 0.0, perturbed).max(-1)
        boosted = optax.softmax_cross_entropy(logits, batch.targets) - jnp.log(1.0001 - rival + 1e-12)
        divergence = (jnp.exp(clean) * (clean - jnp.log(perturbed + 1e-12))).sum(-1)
        doubt = 1.0000001 - jnp.exp(objectives.label_logit(clean, batch.labels))
        return boosted + weight * divergence * doubt, logits

    return loss


def grad_align(weight: float, norm: str, epsilon: Budget) -> Penalty:
    """GradAlign (Andriushchenko & Flammarion, 2020): weight * (1 - cos(g(x), g(x + noise))) for noise in the ball.

    g is the gradient of the cross-entropy to the image; as in the authors' code the one at x is detached, and examples
    with a zero gradient have no penalty. There the passes move BatchNorm's running statistics, here they do not.
    """

    def penalty(forward: Forward, key: PRNGKey, images: Images, labels: Labels) -> PerExample:
        def gradient(x: Images) -> Float[Array, "b d"]:
            entropy = lambda x: optax.softmax_cross_entropy_with_integer_labels(forward(x).logits, labels).sum()  # noqa: E731
            return jax.grad(entropy)(x).reshape(len(labels), -1)

        at_image = jax.lax.stop_gradient(gradient(images))
        at_noise = gradient(images + per_example(epsilon, images) * NORMS[norm].sample(key, images))
        sizes = [optax.safe_norm(found, 1e-12, axis=1) for found in (at_image, at_noise)]
        cosine = (at_image * at_noise).sum(1) / (sizes[0] * sizes[1])
        return weight * jnp.where(jnp.minimum(*sizes) > 1e-12, 1 - cosine, 0.0)

    return penalty


def _forward_both(forward: Forward, batch: Batch) -> tuple[Outputs, Outputs]:
    """Clean and perturbed outputs from one pass, in which BatchNorm's batch holds both."""
    both, count = forward(jnp.concatenate([batch.images, batch.perturbed])), len(batch.labels)
    per_example = both._replace(kernel=None)
    halves = (jax.tree.map(lambda x: x[:count], per_example), jax.tree.map(lambda x: x[count:], per_example))
    return tuple(half._replace(kernel=both.kernel) for half in halves)


def _cross_entropy(clean: Outputs, perturbed: Outputs, batch: Batch, *, clean_term: bool) -> PerExample:
    adversarial = optax.softmax_cross_entropy(perturbed.logits, batch.targets)
    if not clean_term:
        return adversarial
    return (adversarial + optax.softmax_cross_entropy(clean.logits, batch.targets)) / 2
