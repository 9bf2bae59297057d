"""The tables on the ideas in docs/reproduction.md: as attacks, and as the attack in training."""

import numpy as np
import scipy.stats
from reproduction_records import (
    MEASURED,
    QUICK,
    RESULTS,
    SHOWN,
    Difference,
    compared,
    difference,
    over_seeds,
    table,
)  # fmt: skip

from infofeat_jax.configs.studies.ideas import IDEAS

LEVEL = 0.05
ATTACKS = {"pgd20": "PGD", "cw20": "CW", "infofeature20": "InfoFeature"}


def strength() -> str:
    """The ideas as attacks on trained digits models: accuracy, and the difference to PGD on the same images."""
    found = {}
    for method in ("madry", "infofeature"):
        with np.load(RESULTS / f"ideas_strength/{method}-seed0.npz", allow_pickle=False) as arrays:
            found[method] = {name.rpartition(":")[2]: arrays[name][None] for name in arrays.files}
    lines = []
    for attack in (name for name in found["madry"] if name != "clean"):
        cells = [f"{100 * of[attack].mean():.1f}" for of in found.values()]
        gaps = ["" if attack == "pgd20" else str(difference(of[attack], of["pgd20"])) for of in found.values()]
        lines.append([ATTACKS.get(attack, f"`{attack}`"), cells[0], gaps[0], cells[1], gaps[1]])
    return table(("attack, 20 steps", "on Madry's", "minus PGD20", "on InfoFeature's", "minus PGD20"), lines)


def trained() -> str:
    """Training on the digits with each idea as the attack, minus Madry of the same seed; the criterion decides."""
    measured = {attack: minus_madry(attack) for attack in MEASURED}
    probabilities = {row: scipy.stats.ttest_1samp(each, 0).pvalue for row, each in measured[QUICK].items()}
    corrected = holm({idea: probabilities[idea] for idea in IDEAS})
    lines = []
    for row in ("infofeature", *IDEAS):
        found = {attack: over_seeds(of[row]) for attack, of in measured.items()}
        cells = list(map(str, found.values()))
        name = "InfoFeature (control)" if row == "infofeature" else f"`{row}`"
        says = (f"{corrected[row]:.2f}", verdict(found[QUICK], corrected[row])) if row in corrected else ("", "")
        lines.append([name, *cells, *says])
    head = ("minus Madry", *(SHOWN[attack] for attack in measured), "p after Holm", "outcome")
    return table(head, lines)


def minus_madry(attack: str) -> dict[str, np.ndarray]:
    """{row: difference of accuracies to Madry in points, of each seed}."""
    return {row: np.array(compared("ideas", row, "madry", attack).seeds) for row in ("infofeature", *IDEAS)}


def holm(probabilities: dict[str, float]) -> dict[str, float]:
    """The probabilities corrected for their number (Holm, 1979): the smallest times n, the next times n - 1, ..."""
    largest, found = 0.0, {}
    for index, name in enumerate(sorted(probabilities, key=probabilities.get)):
        largest = max(largest, min(1.0, probabilities[name] * (len(probabilities) - index)))
        found[name] = largest
    return found


def verdict(found: Difference, probability: float) -> str:
    """By the criterion that was registered."""
    if probability >= LEVEL:
        return "nothing shown"
    return "works" if found.mean > 0 else "fails"
