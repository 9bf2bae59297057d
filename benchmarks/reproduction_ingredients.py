"""The tables on EMA and AWP in docs/how-to/recipes.md, from the runs of configs/studies/ingredients.py."""

from reproduction_records import MEASURED, SHOWN, Difference, compared, outcomes, over_seeds, table

from infofeat_jax.report import paper

METHODS = {name: paper.NAMES.get(name, name.upper()) for name in ("madry", "trades", "infofeature")}
ADDED = {"": "", "+ema": "EMA", "+awp": "AWP", "+both": "EMA and AWP"}
HEAD = ("", *(SHOWN[attack] for attack in MEASURED))


def added(study: str) -> str:
    """Accuracies of each method with each ingredient, and what it adds to the method alone, over seeds."""
    lines = []
    for method, name in METHODS.items():
        for row, ingredients in ADDED.items():
            label = f"{name} with {ingredients}" if ingredients else name
            lines.append([label, *(cell(study, method + row, method, attack) for attack in MEASURED)])
    lines.append(["N-FGSM (above Madry)", *(cell(study, "n_fgsm", "madry", attack) for attack in MEASURED)])
    return table(HEAD, lines)


def between(study: str) -> str:
    """InfoFeature and TRADES minus Madry with the same ingredients, over seeds."""
    lines = [
        [f"{name} - Madry, {ingredients or 'plain'}"]
        + [str(apart(study, method + row, "madry" + row, attack)) for attack in MEASURED]
        for method, name in METHODS.items() if method != "madry"
        for row, ingredients in ADDED.items()
    ]  # fmt: skip
    return table(HEAD, lines)


def cell(study: str, row: str, plain: str, attack: str) -> str:
    """The accuracy in %, and in brackets what it is above the plain row's."""
    mean = f"{100 * outcomes(study, row, attack).mean():.1f}"
    return mean if row == plain else f"{mean} ({apart(study, row, plain, attack)})"


def apart(study: str, one: str, other: str, attack: str) -> Difference:
    """The difference of two rows over seeds, +- Student's interval."""
    return over_seeds(compared(study, one, other, attack).seeds)
