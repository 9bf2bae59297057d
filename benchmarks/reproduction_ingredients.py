"""The tables on EMA and AWP in docs/how-to/recipes.md, from the runs of configs/studies/ingredients.py."""

import numpy as np
from reproduction_records import MEASURED, SHOWN, Difference, Seeds, by_seed, difference, matched, over_seeds, table

from infofeat_jax.report import paper

METHODS = {name: paper.NAMES.get(name, name.upper()) for name in ("madry", "trades", "infofeature")}
# {ingredients: (end of the row's label, model of its runs)}: an average changes nothing in training.
ADDED = {"": ("+ema", "live"), "EMA": ("+ema", "last"), "AWP": ("+both", "live"), "EMA and AWP": ("+both", "last")}
HEAD = ("", *(SHOWN[attack] for attack in MEASURED))


def added(study: str) -> str:
    """Accuracies of each method with each ingredient, and what it adds to the method alone, over seeds."""
    lines = []
    for method, name in METHODS.items():
        alone = of(study, method, "")
        lines.append([name, *(f"{accuracy(alone[attack]):.1f}" for attack in MEASURED)])
        for ingredients in filter(None, ADDED):
            lines.append([f"{name} with {ingredients}", *cells(of(study, method, ingredients), alone)])
    n_fgsm = {attack: by_seed(study, "n_fgsm", attack, "last") for attack in MEASURED}
    lines.append(["N-FGSM (above Madry)", *cells(n_fgsm, of(study, "madry", ""))])
    return table(HEAD, lines)


def between(study: str) -> str:
    """InfoFeature and TRADES minus Madry with the same ingredients, over seeds."""
    lines = []
    for method in ("trades", "infofeature"):
        for ingredients in ADDED:
            one, other = of(study, method, ingredients), of(study, "madry", ingredients)
            values = (str(apart(one[attack], other[attack])) for attack in MEASURED)
            lines.append([f"{METHODS[method]} - Madry, {ingredients or 'plain'}", *values])
    return table(HEAD, lines)


def of(study: str, method: str, ingredients: str) -> dict[str, Seeds]:
    """{attack: outcomes} of a method with these ingredients."""
    row, which = ADDED[ingredients]
    return {attack: by_seed(study, method + row, attack, which) for attack in MEASURED}


def cells(one: dict[str, Seeds], alone: dict[str, Seeds]) -> list[str]:
    """Accuracies in %, and in brackets what they are above the method alone."""
    return [f"{accuracy(one[attack]):.1f} ({apart(one[attack], alone[attack])})" for attack in MEASURED]


def accuracy(seeds: Seeds) -> float:
    """The mean over seeds, in %."""
    return 100 * float(np.mean(list(seeds.values())))


def apart(one: Seeds, other: Seeds) -> Difference:
    """The mean of one - other over the seeds of both, +- Student's interval; without the seeds' own."""
    return over_seeds(difference(*matched(one, other)).seeds)
