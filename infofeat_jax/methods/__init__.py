"""Training methods: an attack on the frozen model, the training targets, and the loss of the update.

A loss takes the model in training mode as a function of images. Each call is one forward pass that updates
BatchNorm's running statistics: the number and order of passes are part of a method and are written in its loss.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from infofeat_jax import attacks, parts
from infofeat_jax.attacks.gradient import gaussian_start
from infofeat_jax.methods import labels, losses
from infofeat_jax.methods.labels import smooth
from infofeat_jax.methods.losses import Batch, Loss, Penalty, adversarial_cross_entropy
from infofeat_jax.types import (
    Attack,
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    PRNGKey,
    Probabilities,
    check_choice,
)

__all__ = ["METHODS", "VARIANTS", "Batch", "Method", "Options", "check_smoothing", "create", "smooth"]


class Method(NamedTuple):
    """A training method: all that the train step needs to know of it."""

    attack: Attack | None  # on the frozen model: BatchNorm on running statistics, or as make_step says
    targets: Callable[[Forward, Images, Labels], Probabilities]
    loss: Loss
    penalty: Penalty | None = None  # added to the loss


class Options(NamedTuple):
    """The options of a method; None is the method's own default."""

    num_classes: int
    attack: Mapping  # epsilon, step_size, num_steps, norm, in the images' units
    weight: float | None = None
    label_smoothing: float | None = None
    distance: str = "l2"
    classes: str = "all"
    variant: str | None = None  # where a paper and its code differ: one of VARIANTS, the first by default
    grad_align: float | None = None  # the weight of GradAlign's penalty, of any method
    epsilon: Budget | None = None  # of the threat model, where the attack goes beyond it (N-FGSM); None: the attack's


def create(name: str, options: Options) -> Method:
    """Builds the method `name` of METHODS, or what package.module:name returns. Raises InvalidInput."""
    if not parts.is_own(name):
        check_choice("method", name, METHODS)
    smoothing = options.label_smoothing
    if smoothing is not None and not 0 <= smoothing < 1:
        raise InvalidInput(f"label_smoothing {smoothing}: expected at least 0 and below 1")
    if options.weight is not None and not options.weight >= 0:
        raise InvalidInput(f"method weight {options.weight}: expected 0 or more")
    if options.variant is None:
        options = options._replace(variant=VARIANTS.get(name, (None,))[0])
    elif name not in VARIANTS:
        raise InvalidInput(f"method variant {options.variant!r}: {name} has none, leave it out")
    else:
        check_choice(f"variant of {name}", options.variant, VARIANTS[name])
    if parts.is_own(name):
        method = parts.call("config.method.name", name, Method, "a methods.Method", options)
    else:
        method = METHODS[name](options)
    if not options.grad_align:
        return method
    norm, epsilon = options.attack["norm"], options.attack["epsilon"] if options.epsilon is None else options.epsilon
    return method._replace(penalty=losses.grad_align(options.grad_align, norm, epsilon))


def check_smoothing(name: str, strength: float | None, num_classes: int) -> None:
    """Raises InvalidInput if label smoothing would leave the label no likelier than the other classes.

    Adversarial Interpolation's and Bilateral's strengths, and those of one's own methods, mean something else.
    """
    if name not in METHODS or name in ("adversarial_interpolation", "bilateral"):
        return
    value, most = (
        _default(strength, FEATURE_SCATTER_SMOOTHING if name == "feature_scatter" else 0.0),
        1 - 1 / num_classes,
    )
    if value >= most:
        raise InvalidInput(
            f"label_smoothing {value} of {name} on {num_classes} classes leaves the label no likelier than the others:"
            f" expected below {most:.3g}"
        )


def _default(value: float | None, default: float) -> float:
    return default if value is None else value


def _smoothed(options: Options, default: float = 0.0):
    strength = _default(options.label_smoothing, default)
    return lambda forward, images, labels: smooth(labels, options.num_classes, strength)


def _standard(options: Options) -> Method:
    """Training on clean images."""
    return Method(None, _smoothed(options), adversarial_cross_entropy)


def _madry(options: Options) -> Method:
    """Adversarial training with PGD (Madry et al., 2018)."""
    return Method(partial(attacks.pgd, **options.attack), _smoothed(options), adversarial_cross_entropy)


def _infofeature(options: Options) -> Method:
    """Adversarial training with the InfoFeature attack (Yan & Yeung, Eq. 8)."""
    attack = partial(
        attacks.infofeature, **options.attack, weight=_default(options.weight, 0.1),
        distance=options.distance, classes=options.classes,
    )  # fmt: skip
    return Method(attack, _smoothed(options), adversarial_cross_entropy)


def _alp(options: Options) -> Method:
    """Adversarial logit pairing (Kannan et al., 2018) on PGD; weight 0.1.

    Variant "paper": the InfoFeature paper's Eq. 1; "code": with cross-entropy of the clean images too.
    """
    loss = losses.logit_pairing(_default(options.weight, 0.1), clean_term=options.variant == "code")
    return Method(partial(attacks.pgd, **options.attack), _smoothed(options), loss)


def _feature_matching(options: Options) -> Method:
    """Feature Matching (Li et al., 2020) on PGD; weight 10.

    Variant "code": Grad-CAM matching and logit pairing as in the authors' code; "paper": the InfoFeature
    paper's Eq. 1, with `distance` and `classes` of the maps of Eq. 6.
    """
    weight = _default(options.weight, 10.0)
    if options.variant == "paper":
        loss = losses.cam_pairing(weight, options.distance, options.classes)
    else:
        loss = losses.map_matching(weight)
    return Method(partial(attacks.pgd, **options.attack), _smoothed(options), loss)


def _feature_scatter(options: Options) -> Method:
    """Feature Scattering (Zhang & Wang, 2019); label smoothing 0.5.

    Variant "code": the logits are transported; "paper": the features.
    """
    space = "features" if options.variant == "paper" else "logits"
    attack = partial(attacks.feature_scatter, **options.attack, space=space)
    return Method(attack, _smoothed(options, FEATURE_SCATTER_SMOOTHING), adversarial_cross_entropy)


def _adversarial_interpolation(options: Options) -> Method:
    """Adversarial Interpolation (Zhang & Xu, 2020); label_smoothing is its epsilon_y, 0.5."""
    strength = _default(options.label_smoothing, 0.5)
    return Method(
        partial(attacks.adversarial_interpolation, **options.attack),
        lambda forward, images, y: labels.interpolate(y, options.num_classes, strength),
        adversarial_cross_entropy,
    )


def _bilateral(options: Options) -> Method:
    """Bilateral Adversarial Training (Wang & Zhang, 2019): PGD to the most likely wrong class, adversarial labels.

    label_smoothing: the strength where the wrong classes are equally likely. None is the authors' factor of 9
    between the label's share and the largest of the wrong classes', that of the least likely: 0.5 for 10 classes.
    """
    strength = _default(options.label_smoothing, (options.num_classes - 1) / (options.num_classes - 1 + 9.0))

    def attack(forward: Forward, key: PRNGKey, images: Images, y: Labels) -> Images:
        rivals = labels.most_confusing(forward(images).logits, y)
        return attacks.pgd(forward, key, images, rivals, targeted=True, **options.attack)

    def targets(forward: Forward, images: Images, y: Labels) -> Probabilities:
        return labels.bilateral(forward(images).logits, y, strength)

    return Method(attack, targets, adversarial_cross_entropy)


def _trades(options: Options) -> Method:
    """TRADES (Zhang et al., 2019); weight 6."""
    loss = losses.trades(_default(options.weight, 6.0))
    return Method(partial(attacks.kl, **options.attack), _smoothed(options), loss)


def _mart(options: Options) -> Method:
    """MART (Wang et al., 2020); weight 5. Its PGD starts where TRADES' attack does."""
    attack = partial(attacks.pgd, **options.attack, start=gaussian_start, clip_start=False)
    return Method(attack, _smoothed(options), losses.mart(_default(options.weight, 5.0)))


FEATURE_SCATTER_SMOOTHING = 0.5  # by default, the authors'
METHODS = {
    "standard": _standard,
    "madry": _madry,
    "infofeature": _infofeature,
    "alp": _alp,
    "feature_matching": _feature_matching,
    "feature_scatter": _feature_scatter,
    "adversarial_interpolation": _adversarial_interpolation,
    "bilateral": _bilateral,
    "trades": _trades,
    "mart": _mart,
}

VARIANTS = {
    "alp": ("paper", "code"),
    "feature_matching": ("code", "paper"),
    "feature_scatter": ("code", "paper"),
}
