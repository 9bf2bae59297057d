"""The tables and figures of docs/reproduction.md, and tables of docs/how-to/recipes.md, from the records in results/.

  python benchmarks/reproduction.py           # writes them into the pages and docs/figures
  python benchmarks/reproduction.py --check   # exit status 1 if a page's tables are not what the records say

A table stands between <!-- NAME --> and <!-- end -->. Differences are paired: of the same test images, of runs with one
seed. Their +- is a 95 % interval over the test images of the mean over seeds; what each seed gave stands beside it.
"""

import argparse
import json
import re
import sys
from functools import partial

import numpy as np
import paper_readings
import reproduction_figures
import reproduction_ideas as ideas
import reproduction_ingredients as ingredients
from reproduction_records import (
    MEASURED,
    QUICK,
    RESULTS,
    ROOT,
    SHOWN,
    Difference,
    Outcomes,
    by_seed,
    compared,
    difference,
    matched,
    outcomes,
    over_seeds,
    paired,
    table,
    validation,
)  # fmt: skip

from infofeat_jax.report import paper

PAGES = (ROOT / "docs/reproduction.md", ROOT / "docs/how-to/recipes.md")

ROWS = {"madry": "Madry", "lambda0.1": "InfoFeature, lambda 0.1", "lambda0.5": "InfoFeature, lambda 0.5"}
SMOOTHINGS = (0.0, 0.5)
HALF_STEPS = {"madry-half-step": "Madry, half steps", "lambda0.1-half-step": "InfoFeature, lambda 0.1, half steps"}
# {row of an overfitting study: its label}
TRAINED = {f"{row}-smoothing{smoothing}": f"{name}, smoothing {smoothing:g}"
           for smoothing in SMOOTHINGS for row, name in ROWS.items()}  # fmt: skip


def of_full_width(attack: str) -> dict[str, Outcomes]:
    """{method: outcomes}, of one seed, after 22 epochs."""
    with np.load(RESULTS / "h200/outcomes.npz", allow_pickle=False) as found:
        return {method: found[f"{method}/{attack}"][None] for method in ("infofeature", "madry")}


def full_width() -> str:
    """Madry and InfoFeature at full width, 22 epochs."""
    found = [of_full_width(attack) for attack in COLUMNS]
    lines = [
        [paper.NAMES[method], *(f"{100 * values[method].mean():.1f}" for values in found)]
        for method in ("madry", "infofeature")
    ]
    apart = ["difference on the same images", *(difference(*values.values()) for values in found)]
    return table(("method", "clean", "PGD20", "AutoAttack (500)"), [*lines, apart])


COLUMNS = ("clean", "pgd20", "autoattack")


METHODS = ("infofeature", "alp", "feature_matching")


def eight_epochs(study: str) -> str:
    """Four methods after 8 epochs: accuracy, and minus Madry of the same seed; the seeds measured on all."""
    found = {attack: paired(study, ("madry", *METHODS), attack) for attack in MEASURED}
    lines = [
        [paper.NAMES[method], *(f"{100 * rows[method].mean():.1f}" for rows in found.values())]
        for method in ("madry", *METHODS)
    ]
    for method in METHODS:
        apart = [difference(rows[method], rows["madry"]) for rows in found.values()]
        lines.append([f"{paper.NAMES[method]} - Madry, over images", *apart])
        lines.append(["over seeds", *(over_seeds(each.seeds) if len(each.seeds) > 2 else "" for each in apart)])
    counts = [len(rows["madry"]) for rows in found.values()]
    return table(("", *(f"{SHOWN[name]} ({count} seeds)" for name, count in zip(MEASURED, counts, strict=True))), lines)


def overfitting(study: str) -> str:
    """Best and last checkpoint of each row, and what the last epochs cost."""
    counts, lines = {row: len(by_seed(study, row, "clean")) for row in TRAINED | HALF_STEPS}, []
    for row, label in (TRAINED | HALF_STEPS).items():
        if not counts[row]:
            continue
        if len({*counts.values()} - {0}) > 1:
            label += f" ({counts[row]} seed{'s' * (counts[row] > 1)})"
        for which in ("best", "last"):
            found = [outcomes(study, row, attack, which) for attack in MEASURED]
            lines.append([label if which == "best" else "", which, *(f"{100 * each.mean():.1f}" for each in found)])
        lines.append(["", "last - best", *(compared_checkpoints(study, row, attack) for attack in MEASURED)])
    return table(("row", "checkpoint", *(SHOWN[name] for name in MEASURED)), lines)


def compared_checkpoints(study: str, row: str, attack: str) -> Difference:
    """Last minus best checkpoint."""
    return difference(*matched(by_seed(study, row, attack, "last"), by_seed(study, row, attack)))


def curves(study: str) -> dict[str, list[np.ndarray]]:
    """{row: (epoch, robust validation accuracy) of each seed} of an overfitting study."""
    return {row: validation(study, row) for row in TRAINED}


def against_madry(study: str) -> str:
    """InfoFeature minus Madry with the same smoothing, and Madry with smoothing minus Madry without."""
    pairs = [
        (f"{name} - Madry, smoothing {smoothing:g}", f"{row}-smoothing{smoothing}", f"madry-smoothing{smoothing}")
        for smoothing in SMOOTHINGS for row, name in ROWS.items() if row != "madry"
    ]  # fmt: skip
    pairs.append(("Madry, smoothing 0.5 - smoothing 0", "madry-smoothing0.5", "madry-smoothing0.0"))
    if by_seed(study, "madry-half-step", "clean"):
        pairs.append(("InfoFeature, lambda 0.1 - Madry, both with half steps", *reversed(HALF_STEPS)))
    lines = []
    for label, one, other in pairs:
        for which in ("best", "last"):
            found = [compared(study, one, other, attack, which) for attack in MEASURED]
            lines.append([label if which == "best" else "", which, *found])
        lines.append(["", "last - best", *(apart_in_falls(study, one, other, attack) for attack in MEASURED)])
    return table(("rows", "checkpoint", *(SHOWN[name] for name in MEASURED)), lines)


def apart_in_falls(study: str, one: str, other: str, attack: str) -> Difference:
    """What the last epochs change in one row, minus what they change in the other."""
    checkpoints = [by_seed(study, row, attack, which) for row in (one, other) for which in ("last", "best")]
    last, best, other_last, other_best = (found.astype(float) for found in matched(*checkpoints))
    return difference(last - best, other_last - other_best)


READINGS = {name: paper_readings.READINGS[name][:3] for name in ("step", "half step")}  # measured in the studies


def readings_in_training() -> str:
    """Models trained with whole and with half steps, last checkpoint, under both readings."""
    lines = []
    for method, runs in (
        ("madry", {"step": "madry-smoothing0.0", "half step": "madry-half-step"}),
        ("infofeature", {"step": "lambda0.1-smoothing0.0", "half step": "lambda0.1-half-step"}),
    ):
        published = paper.TABLES["table1"].rows[method]["mean"][:4]
        lines.append([paper.NAMES[method], "the paper", "the paper", *falls(published)])
        for training, run in runs.items():
            for reading, names in READINGS.items():
                values = [100 * outcomes("overfitting", run, name, "last").mean() for name in ("clean", *names)]
                lines.append([paper.NAMES[method], training, reading, *falls(values)])
    head = ("", "training", "evaluation", "clean", "FGSM", "PGD7", "PGD20", "FGSM - PGD7", "PGD7 - PGD20")
    return table(head, lines)


def readings_of_eight_epochs() -> str:
    """The four methods of 8 epochs, mean over seeds, under both readings."""
    lines = []
    for method in ("madry", *METHODS):
        for reading, names in READINGS.items():
            values = [100 * outcomes("table1_full", method, name).mean() for name in ("clean", *names)]
            lines.append([paper.NAMES[method], reading, *falls(values)])
    return table(("", "evaluation", "clean", "FGSM", "PGD7", "PGD20", "FGSM - PGD7", "PGD7 - PGD20"), lines)


def falls(values) -> list[str]:
    """The values and the falls from one attack to the next."""
    return [f"{value:.1f}" for value in (*values, values[1] - values[2], values[2] - values[3])]


def small() -> str:
    """Differences to Madry at width 16, 8 epochs."""
    return table(
        ("", "clean", "PGD20", "CW20", "AutoAttack (200)"),
        [
            [paper.NAMES[method], *(of_small(method, attack) for attack in ("clean", "pgd20", "cw20", "autoattack"))]
            for method in ("infofeature", "alp", "feature_matching", "feature_scatter", "adversarial_interpolation")
        ],
    )


def of_small(method: str, attack: str) -> Difference:
    """The difference to Madry of a run of results/cifar10_small."""
    return compared("cifar10_small", method, "madry", attack)


def digits() -> str:
    """Methods minus Madry on digits, seeds paired: InfoFeature as first measured, and with later versions."""
    lines = []
    for row in ("lambda0.1-smoothing0.0", "lambda0.5-smoothing0.0"):
        cells = [on_digits(row, attack) for attack in ("clean", "pgd20", "cw20", "autoattack")]
        lines.append([ROWS[row.partition("-")[0]], *cells, ""])
    again = {"infofeature": ("ideas", f"{ROWS['lambda0.1']}, again"), "alp": ("digits_terms", "ALP"),
             "feature_matching": ("digits_terms", "FM")}  # fmt: skip
    for method, (study, label) in again.items():
        found = [over_seeds(compared(study, method, "madry", attack).seeds) for attack in MEASURED]
        lines.append([label, *found[:3], "", found[3]])
    return table(("", "clean", "PGD20", "CW20", "AutoAttack (100)", "AutoAttack, quick (500)"), lines)


def on_digits(row: str, attack: str) -> Difference:
    """Of a digits row and Madry of the same seed, over seeds."""

    def values(name: str) -> list[float]:
        paths = sorted((RESULTS / "digits_attribution").glob(f"{name}-seed*/results.json"))
        return [100 * json.loads(path.read_text())[attack] for path in paths]

    return over_seeds([a - b for a, b in zip(values(row), values("madry-smoothing0.0"), strict=True)])


OVERFITTING = {"overfitting": "full width, 4,000 images x 60", "overfitting_thousand": "width 16, 1,000 images x 100"}
# {title in the figure: study}
INGREDIENTS = {"CIFAR-10, 1,000 images x 99": "ingredients_thousand", "digits": "ingredients"}


def under_quick(study: str, one: str, other: str, which: str = "best") -> dict[str, Difference]:
    """{attack: one - other} of two rows of a study, for the figure."""
    return {attack: compared(study, one, other, attack, which) for attack in ("pgd20", QUICK)}


def forest() -> list[reproduction_figures.Line]:
    """InfoFeature (lambda 0.1) minus Madry, setting by setting, for the figure."""
    published = paper.TABLES["table1"]
    gains = np.subtract(*(published.rows[method]["mean"] for method in ("infofeature", "madry")))
    lines = {
        "the paper": {"pgd20": Difference(gains[published.columns.index("pgd20")], 0.0)},
        "full width, 22 epochs": {attack: difference(*of_full_width(attack).values()) for attack in COLUMNS[1:]},
        "full width, 8 epochs": under_quick("table1_full", "infofeature", "madry"),
    }
    for study, setting in OVERFITTING.items():
        for which in ("best", "last"):
            for smoothing in SMOOTHINGS:
                rows = study, f"lambda0.1-smoothing{smoothing}", f"madry-smoothing{smoothing}"
                lines[f"{setting}, {which}, smoothing {smoothing:g}"] = under_quick(*rows, which)
    lines["width 16, 8 epochs"] = {attack: of_small("infofeature", attack) for attack in COLUMNS[1:]}
    lines["width 16, 5,000 images x 8"] = under_quick("table1_small", "infofeature", "madry")
    lines["digits, over 6 seeds"] = {attack: on_digits("lambda0.1-smoothing0.0", attack) for attack in COLUMNS[1:]}
    again = under_quick("ideas", "infofeature", "madry")
    lines["digits, over 6 seeds, later version"] = {attack: over_seeds(found.seeds) for attack, found in again.items()}
    return [
        (title, [(found.mean, found.half, SHOWN[attack]) for attack, found in marks.items()])
        for title, marks in lines.items()
    ]


TABLES = {
    "full width": full_width,
    "eight epochs": partial(eight_epochs, "table1_full"),
    "eight epochs on five thousand": partial(eight_epochs, "table1_small"),
    "small": small,
    "digits": digits,
    "overfitting": partial(overfitting, "overfitting"),
    "against Madry": partial(against_madry, "overfitting"),
    "overfitting on a thousand": partial(overfitting, "overfitting_thousand"),
    "against Madry on a thousand": partial(against_madry, "overfitting_thousand"),
    "readings": paper_readings.table,
    "readings of all tables": paper_readings.of_all_tables,
    "readings of eight epochs": readings_of_eight_epochs,
    "readings in training": readings_in_training,
    "strength": ideas.strength,
    "ideas on digits": ideas.trained,
    "ingredients": partial(ingredients.added, "ingredients"),
    "with the same ingredients": partial(ingredients.between, "ingredients"),
    "ingredients on a thousand": partial(ingredients.added, "ingredients_thousand"),
    "with the same ingredients on a thousand": partial(ingredients.between, "ingredients_thousand"),
}


def renewed(page: str) -> str:
    """The page with the tables that the records give. Raises KeyError for a table that is not known."""

    def renew(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- ([\w ]+) -->\n.*?<!-- end -->", renew, page, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="writes nothing")
    args = parser.parse_args()
    pages = {path: path.read_text() for path in PAGES}
    if args.check:
        return int(any(renewed(page) != page for page in pages.values()))
    for path, page in pages.items():
        path.write_text(renewed(page))
    reproduction_figures.draw(
        ROOT / "docs/figures", forest(), {study: curves(study) for study in OVERFITTING},
        {title: ingredients.drawn(study) for title, study in INGREDIENTS.items()},
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
