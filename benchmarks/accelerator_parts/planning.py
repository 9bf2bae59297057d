"""How many epochs and images of AutoAttack fit the time: arithmetic on measured rates. Needs no JAX."""

from collections.abc import Mapping
from typing import NamedTuple

METHODS = ("madry", "infofeature")
PAPER_EPOCHS, PAPER_MILESTONES = 120, (60, 90)
# Forward passes' worth of arithmetic for an image; a step of an attack, forward and to the input, costs 2.
PASSES = {"standard": 3, "madry": 3 + 7 * 2, "infofeature": 3 + 7 * 2 + 1, "clean": 1, "pgd20": 20 * 2 + 1}
# AutoAttack on an image that survives it: APGD-CE, APGD-T (9 targets), FAB-T (9, with a forward pass), Square.
SURVIVOR = 100 * 2 + 9 * 100 * 2 + 9 * 100 * 3 + 5000
SURVIVING = 0.5  # share of the images: about what adversarial training reaches on CIFAR-10
SLOWER = 1.1  # the loop's steps, compared with those measured on one batch
MARGIN = 0.05  # of the time, left for what is not foreseen
EVALUATION = 0.35  # of the time, at most


class Rates(NamedTuple):
    """What was measured, or follows from what was measured."""

    training: Mapping[str, float]  # {method: images a second}
    clean: float  # images a second
    pgd20: float
    survivor: float  # seconds of AutoAttack on an image that survives it
    compiling: float = 0.0  # seconds, of all that is still to be compiled
    epoch_end: float = 0.0  # seconds, to validate and to save a checkpoint


class Plan(NamedTuple):
    """What is to be done with the time that is left."""

    epochs: int  # of each method
    milestones: tuple[float, ...]
    autoattack_images: int
    training_seconds: float  # of all methods, estimated
    evaluation_seconds: float


def rates(images_per_second: Mapping[str, float], found: Mapping[str, float] | None = None) -> Rates:
    """All rates, from those of the methods' steps; `found` are those of the others that were measured."""
    passes = min(rate * PASSES[method] for method, rate in images_per_second.items())
    derived = {"clean": passes / PASSES["clean"], "pgd20": passes / PASSES["pgd20"], "survivor": SURVIVOR / passes}
    return Rates(images_per_second, **{**derived, **(found or {})})


def plan(
    rates: Rates, seconds: float, *, train_images: int, test_images: int, epochs: int, autoattack_images: int
) -> Plan:
    """At most `epochs` epochs of each method and `autoattack_images`, as many as fit in `seconds`.

    The evaluation takes at most EVALUATION of the time, if need be with fewer images for AutoAttack; the rest is for
    training. 0 epochs: not even one fits.
    """
    usable, models = seconds * (1 - MARGIN) - rates.compiling, len(rates.training)
    whole = models * test_images * (1 / rates.clean + 1 / rates.pgd20)
    one = models * SURVIVING * rates.survivor
    images = min(autoattack_images, test_images, max(int((usable * EVALUATION - whole) / one), 0))
    images = images if images < 100 else images // 50 * 50
    evaluation = whole + images * one
    epoch = sum(SLOWER * train_images / rate + rates.epoch_end for rate in rates.training.values())
    count = max(min(epochs, int((usable - evaluation) / epoch)), 0)
    return Plan(count, scaled(count), images, count * epoch, evaluation)


def scaled(epochs: int) -> tuple[float, ...]:
    """The paper's milestones, at the same shares of the training."""
    return tuple(epochs * milestone / PAPER_EPOCHS for milestone in PAPER_MILESTONES)
