"""Distances between the perturbations of other attacks and PGD's: Table 2 of the paper."""

import numpy as np
from jaxtyping import Float

from infofeat_jax import streams, threat
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.robustness import in_fitting_batches
from infofeat_jax.evaluation.subject import Subject, Tell
from infofeat_jax.runtime import devices
from infofeat_jax.types import InvalidInput


def check(name: str) -> None:
    """Raises InvalidInput unless `name` is an iterated attack on the attacked model itself."""
    spec = attack_names.parse(name)
    if spec.steps is None or spec.source:
        raise InvalidInput(f"config.eval.distances: {name!r} is not an iterated attack: expected names such as 'cw5'")


def measure(subject: Subject, name: str, tell: Tell) -> Float[np.ndarray, " n"]:
    """Euclidean distance, in [0, 1] pixel units, between the perturbations of the iterated attack `name` and of PGD.

    Both take equally many steps of equal size from the same random start, within the box unless `name` says otherwise
    (`kl` has a start of its own), and have its other options that PGD knows. The paper's Table 2 does not state its
    normalisation; this is the plain norm over all pixels and channels of an example.
    """
    spec = attack_names.parse(name)
    options = {"clip_start": True} | dict(spec.options)
    shared = {option: value for option, value in options.items() if option in attack_names.allowed_options("pgd")}
    specs = spec._replace(options=tuple(options.items())), spec._replace(attack="pgd", options=tuple(shared.items()))
    attack, pgd = (attack_names.create(one, subject.budget) for one in specs)

    def one_batch(forward, key, batch):
        images, labels = to_unit(batch[0]), batch[1]
        return threat.size("l2", attack(forward, key, images, labels) - pgd(forward, key, images, labels))

    one_batch = devices.parallelize_batch(one_batch, subject.mesh)
    key = streams.key(subject.seed, "evaluation")
    return np.concatenate(list(in_fitting_batches(one_batch, subject, subject.forward, key, tell)))
