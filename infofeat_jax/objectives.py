"""Attack objectives, which attacks ascend: functions (perturbed outputs, clean outputs, labels) -> [b].

Each example's value depends on that example alone. All are finite, with finite gradients, for finite logits. A class
whose logit is -inf is masked: it is treated as if the model did not have it.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from infofeat_jax.types import InvalidInput, Labels, Objective, Outputs, PerExample, check_choice, check_number


def cross_entropy(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
    """-log softmax(z)_y, the objective of PGD (Madry et al., 2018).

    >>> outputs = Outputs(jnp.array([[2.0, 2.0]]))
    >>> cross_entropy(outputs, outputs, jnp.array([0]))
    Array([0.6931472], dtype=float32)
    """
    del clean
    return optax.softmax_cross_entropy_with_integer_labels(perturbed.logits, labels)


def margin(confidence: float = 50.0, *, targeted: bool = False) -> Objective:
    """-max(z_y - max_{j != y} z_j + confidence, 0): Carlini & Wagner's (2017) loss as used with PGD.

    With `targeted`, for target labels t: -max(max_{j != t} z_j - z_t + confidence, 0). Either saturates once the margin
    of the wrong class, or of the target, reaches `confidence`. Raises InvalidInput for a negative or non-finite one.
    """
    confidence = check_number("confidence", confidence)
    sign = -1.0 if targeted else 1.0

    def objective(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
        del clean
        return -jax.nn.relu(sign * logit_margin(perturbed.logits, labels) + confidence)

    return objective


def misclassified(logits: Float[Array, "b k"], labels: Labels) -> Bool[Array, " b"]:
    """Whether the prediction differs from the label. A NaN among the logits counts as a misclassification."""
    return (logits.argmax(-1) != labels) | jnp.isnan(logits).any(-1)


def logit_margin(logits: Float[Array, "b k"], labels: Labels) -> PerExample:
    """z_y - max_{j != y} z_j: negative where the example is misclassified.

    >>> logit_margin(jnp.array([[3.0, 1.0], [0.0, 2.0]]), jnp.array([0, 0]))
    Array([ 2., -2.], dtype=float32)
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return label_logit(logits, labels) - jnp.where(is_label, -jnp.inf, logits).max(-1)


def label_logit(logits: Float[Array, "b k"], labels: Labels) -> PerExample:
    """z_y."""
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def dlr(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), the difference of logits ratio (Croce & Hein, 2020).

    Invariant to shift and scale of the logits. With two classes, which have no third logit, the plain margin.
    """
    del clean
    return -logit_margin(perturbed.logits, labels) / _spread(perturbed.logits, 3)


def dlr_targeted(targets: Labels) -> Objective:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2) for `targets` t [b] (Croce & Hein, 2020).

    With three classes the third logit stands for the fourth; with two, the plain margin.
    """

    def objective(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
        del clean
        gap = label_logit(perturbed.logits, labels) - label_logit(perturbed.logits, targets)
        return -gap / _spread(perturbed.logits, 4)

    return objective


def _spread(logits: Float[Array, "b k"], last: int) -> PerExample | float:
    """z_(1) - (z_(3) + z_(last)) / 2, the lowest logit replacing missing or masked ones; 1 with two classes."""
    top = jax.lax.top_k(logits, min(last, logits.shape[-1]))[0]
    if top.shape[1] < 3:
        return 1.0
    there = top > -jnp.inf
    top = jnp.where(there, top, jnp.where(there, top, jnp.inf).min(-1, keepdims=True))
    return jnp.where(there.sum(-1) > 2, top[:, 0] - (top[:, 2] + top[:, -1]) / 2 + 1e-12, 1.0)


def kl_divergence(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
    """KL(p_clean || p_perturbed), the inner objective of TRADES (Zhang et al., 2019)."""
    del labels
    log_perturbed = jax.nn.log_softmax(perturbed.logits)
    log_clean = jax.nn.log_softmax(clean.logits)
    # p log p at p = 0 (underflowed, or of a masked class) is 0, and so is its gradient.
    p = jnp.exp(log_clean)
    return (p * jnp.where(p > 0, log_clean - log_perturbed, 0.0)).sum(-1)


def cam_distance(distance: str = "l2", classes: str = "all") -> Objective:
    """D(CAM(x), CAM(x + delta)) of Eq. 7, with the maps of Eq. 6.

    `distance`: "l2" (the paper's; Euclidean norm over all pixels and classes), "l1" or "cosine".
    `classes`: "all" maps together, or the "label"'s map alone; the paper does not say which.
    Zero, with zero gradient, where the maps are equal (cosine of two maps of zeros: 1, with zero gradient). Raises
    InvalidInput if the forward returns no CAM.
    """
    check_choice("CAM distance", distance, DISTANCES)
    check_choice("CAM classes", classes, ("all", "label"))

    def objective(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
        if perturbed.cam is None:
            raise InvalidInput(
                "the forward function returned no class activation maps: return types.Outputs with `cam` set"
                " (see cam.positive_cam), or use an attack on logits such as pgd"
            )
        maps = (perturbed.cam, clean.cam)
        if classes == "label":
            maps = tuple(jnp.take_along_axis(m, labels[:, None, None, None], axis=-1) for m in maps)
        return DISTANCES[distance](*(m.reshape(m.shape[0], -1) for m in maps))

    return objective


def weighted_sum(*terms: tuple[float, Objective]) -> Objective:
    """sum_i weight_i objective_i, per example. Raises InvalidInput for a non-finite weight."""
    terms = tuple((check_number("weight", weight, least=-1e15), term) for weight, term in terms)

    def objective(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
        return sum(weight * term(perturbed, clean, labels) for weight, term in terms)

    return objective


def infofeature(
    weight: float = 0.1, distance: str = "l2", classes: str = "all", *, targeted: bool = False
) -> Objective:
    """Eq. 7: cross-entropy + weight * CAM distance; with `targeted`, minus the cross-entropy to the target."""
    sign = -1.0 if targeted else 1.0
    return weighted_sum((sign, cross_entropy), (weight, cam_distance(distance, classes)))


# A norm's gradient at zero is NaN without the guard, and sign(NaN) would destroy the image.
DISTANCES = {
    "l2": lambda a, b: optax.safe_norm(a - b, 1e-12, axis=-1),
    "l1": lambda a, b: jnp.abs(a - b).sum(-1),
    "cosine": lambda a, b: optax.cosine_distance(a, b, epsilon=1e-12),
}
