"""Attacks: pure functions (forward, key, images, labels, *, epsilon, ...) -> perturbed images."""

from infofeat_jax.attacks.gradient import cw, fgsm, infofeature, pgd
from infofeat_jax.attacks.projected import projected_ascent

ATTACKS = {
    "fgsm": fgsm,
    "pgd": pgd,
    "cw": cw,
    "infofeature": infofeature,
}

__all__ = ["ATTACKS", "cw", "fgsm", "infofeature", "pgd", "projected_ascent"]
