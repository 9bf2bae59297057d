"""Attacks: pure functions (forward, key, images, labels, *, epsilon, ...) -> perturbed images."""

from infofeat_jax.attacks.apgd import apgd
from infofeat_jax.attacks.autoattack import autoattack
from infofeat_jax.attacks.coupled import adversarial_interpolation, feature_scatter
from infofeat_jax.attacks.fab import fab
from infofeat_jax.attacks.gradient import cw, fgsm, infofeature, kl, pgd
from infofeat_jax.attacks.projected import projected_ascent
from infofeat_jax.attacks.square import square

ATTACKS = {
    "fgsm": fgsm,
    "pgd": pgd,
    "cw": cw,
    "infofeature": infofeature,
    "kl": kl,
    "feature_scatter": feature_scatter,
    "adversarial_interpolation": adversarial_interpolation,
    "apgd": apgd,
    "fab": fab,
    "square": square,
    "autoattack": autoattack,
}

__all__ = [
    "ATTACKS",
    "adversarial_interpolation",
    "apgd",
    "autoattack",
    "cw",
    "fab",
    "feature_scatter",
    "fgsm",
    "infofeature",
    "kl",
    "pgd",
    "projected_ascent",
    "square",
]
