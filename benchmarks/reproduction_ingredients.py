"""The tables on EMA and AWP in docs/how-to/recipes.md, from the runs of configs/studies/ingredients.py."""

from reproduction_records import MEASURED, SHOWN, outcomes, over_seeds, paired, table

from infofeat_jax.report import paper

METHODS = ("madry", "trades", "infofeature")
ADDED = {"": "", "+ema": "EMA", "+awp": "AWP", "+both": "EMA and AWP"}


def added(study: str) -> str:
    """Accuracies of each method with each ingredient, and what it adds to the method alone, over seeds."""
    lines = []
    for method in METHODS:
        for row, name in ADDED.items():
            label = f"{paper.NAMES.get(method, method.upper())}{' with ' if name else ''}{name}"
            lines.append([label, *(cell(study, method + row, method, attack) for attack in MEASURED)])
    lines.append(["N-FGSM (above Madry)", *(cell(study, "n_fgsm", "madry", attack) for attack in MEASURED)])
    return table(("", *(SHOWN[attack] for attack in MEASURED)), lines)


def between(study: str) -> str:
    """InfoFeature and TRADES minus Madry with the same ingredients, over seeds."""
    lines = [
        [f"{paper.NAMES.get(method, method.upper())} - Madry, {name or 'plain'}"]
        + [str(apart(study, method + row, "madry" + row, attack)) for attack in MEASURED]
        for method in METHODS[1:]
        for row, name in ADDED.items()
    ]
    return table(("", *(SHOWN[attack] for attack in MEASURED)), lines)


def cell(study: str, row: str, plain: str, attack: str) -> str:
    """The accuracy in %, and in brackets what it is above the plain row's."""
    mean = f"{100 * outcomes(study, row, attack).mean():.1f}"
    return mean if row == plain else f"{mean} ({apart(study, row, plain, attack)})"


def apart(study: str, one: str, other: str, attack: str) -> str:
    """The difference of two rows over seeds, +- Student's interval."""
    rows = paired(study, (one, other), attack)
    each = 100 * (rows[one].mean(1) - rows[other].mean(1))
    found = over_seeds(list(each))
    return f"{found.mean:+.1f} +- {found.half:.1f}"
