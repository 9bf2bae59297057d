"""The tables and the figure of docs/how-to/recipes.md on EMA and AWP: runs of configs/studies/ingredients.py."""

import numpy as np
from reproduction_figures import Line
from reproduction_records import (
    MEASURED,
    QUICK,
    SHOWN,
    Difference,
    Seeds,
    by_seed,
    difference,
    matched,
    over_seeds,
    table,
)

from infofeat_jax.report import paper

METHODS = {name: paper.NAMES.get(name, name.upper()) for name in ("madry", "trades", "infofeature")}
# {ingredients: (end of the row's label, model of its runs)}: an average changes nothing in training.
ADDED = {"": ("+ema", "live"), "EMA": ("+ema", "last"), "AWP": ("+both", "live"), "EMA and AWP": ("+both", "last")}
# {method that they are compared with: {(row, model of its runs): label}}
CONTROLS = {
    "madry": {("madry+half", "live"): "Madry with AWP, half of gamma", ("n_fgsm", "last"): "N-FGSM (against Madry)"}
}
Model = dict[str, Seeds]  # {attack: outcomes of each seed}
HEAD = ("", *(SHOWN[attack] for attack in MEASURED))


def added(study: str) -> str:
    """Accuracies of each method with each ingredient, and what it adds to the method alone, over seeds."""
    lines = []
    for label, (one, alone) in rows(study).items():
        if alone is None:
            lines.append([label, *(f"{accuracy(one[attack]):.1f}" for attack in MEASURED)])
        else:
            lines.append([label, *cells(one, alone)])
    return table(HEAD, lines)


def drawn(study: str) -> list[Line]:
    """What each ingredient adds under attack, for the figure."""
    lines = []
    for label, (one, alone) in rows(study).items():
        if alone is not None:
            marks = {attack: apart(one[attack], alone[attack]) for attack in ("pgd20", QUICK)}
            lines.append((label, [(found.mean, found.half, SHOWN[attack]) for attack, found in marks.items()]))
    return lines


def rows(study: str) -> dict[str, tuple[Model, Model | None]]:
    """{label: (the outcomes by attack, those of the model that it is compared with)}."""
    found = {}
    for method, name in METHODS.items():
        alone = of(study, method, "")
        found[name] = alone, None
        for ingredients in filter(None, ADDED):
            found[f"{name} with {ingredients}"] = of(study, method, ingredients), alone
        for (row, which), label in CONTROLS.get(method, {}).items():
            control = {attack: by_seed(study, row, attack, which) for attack in MEASURED}
            if all(control.values()):
                found[label] = control, alone
    return found


def between(study: str) -> str:
    """InfoFeature and TRADES minus Madry with the same ingredients, over seeds; with AWP also minus half its gamma."""
    pairs = {
        f"{METHODS[method]} - Madry, {ingredients or 'plain'}": (
            of(study, method, ingredients), of(study, "madry", ingredients)
        )
        for method in ("trades", "infofeature") for ingredients in ADDED
    }  # fmt: skip
    every = rows(study)
    half = "Madry with AWP, half of gamma"
    if half in every:
        pairs[f"InfoFeature with AWP - {half}"] = every["InfoFeature with AWP"][0], every[half][0]
    return table(HEAD, [[label, *(apart(a[name], b[name]) for name in MEASURED)] for label, (a, b) in pairs.items()])


def of(study: str, method: str, ingredients: str) -> Model:
    """{attack: outcomes} of a method with these ingredients."""
    row, which = ADDED[ingredients]
    return {attack: by_seed(study, method + row, attack, which) for attack in MEASURED}


def cells(one: Model, alone: Model) -> list[str]:
    """Accuracies in %, and in brackets what they are above the method alone."""
    return [f"{accuracy(one[attack]):.1f} ({apart(one[attack], alone[attack])})" for attack in MEASURED]


def accuracy(seeds: Seeds) -> float:
    """The mean over seeds, in %."""
    return 100 * float(np.mean(list(seeds.values())))


def apart(one: Seeds, other: Seeds) -> Difference:
    """The mean of one - other over the seeds of both, +- Student's interval; without the seeds' own."""
    return over_seeds(difference(*matched(one, other)).seeds)
