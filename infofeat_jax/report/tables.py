"""The report's tables as text cells, the same for the terminal, the page, Markdown and LaTeX."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from infofeat_jax.report import estimate, notes, paper
from infofeat_jax.report.cells import (
    MINUS,
    NONE,
    Cell,
    cell,
    difference,
    display,
    display_series,
    number,
    paper_key,
)
from infofeat_jax.report.estimate import Estimate
from infofeat_jax.report.lines import Line, accuracy_lines
from infofeat_jax.report.runs import Row, RunRecord, Study

MOST_STEPS = 3  # of one family in the main table; more are in the table of step counts


class Table(NamedTuple):
    """A table with what a reader needs to judge it."""

    name: str
    title: str
    columns: list[str]
    lines: list[Line]
    notes: list[str]


def create(study: Study) -> list[Table]:
    """All tables that the runs have results for, each with the remarks on the data; the accuracies first."""
    creates = (
        accuracy_table, latest_table, live_table, transfer_table, steps_table, distance_table, evaluator_table,
    )  # fmt: skip
    found = [table for table in (create(study) for create in creates) if table is not None]
    return [table._replace(notes=[*notes.describe_data(study), *table.notes]) for table in found]


def accuracy_table(study: Study) -> Table:
    """Tables 1, 3, 4 and 5: methods x attacks, beside the paper's values."""
    measured = {row.label: estimate.estimates(row) for row in study.rows}
    columns = main_attacks(measured.values()) or list(paper.WHITE_BOX)
    sets = {frozenset(run_attacks(run)) for run in study.runs}
    if len(sets) == 1 and len(columns) > 2 and all(run.results.get("worst_case") is not None for run in study.runs):
        columns = [*columns, "worst_case"]
    published = paper.TABLES.get(study.paper)
    if published and published.columns != paper.WHITE_BOX:
        published = None
    lines, remarks = [], [*notes.describe_intervals(study.rows), *notes.few_images(study)]
    remarks += notes.worst_case(study, columns)
    for row in study.rows:
        lines += accuracy_lines(study, row, columns, published)
    remarks += notes.paper_notes(study, published)
    return Table(
        "accuracy",
        f"Accuracy in % on {notes.setting_line(study)}",
        ["seeds", *map(display, columns)],
        lines,
        remarks,
    )


def latest_table(study: Study) -> Table | None:
    """What early stopping does: the last checkpoint beside the best, and their difference within each run."""
    title = "Best (early stopping on validation images) and last checkpoint, accuracy in %"
    remark = "Last against best checkpoint of the same runs: a negative difference under attack is robust overfitting."
    return beside_table(study, "latest", ("last", "best"), title, remark)


def live_table(study: Study) -> Table | None:
    """What averaging does: the weights that training updates beside their average, of the same checkpoint."""
    title = "Averaged weights and the live ones that training updates, accuracy in %"
    remark = "Both of the same checkpoint: a negative difference is what averaging the weights gains."
    return beside_table(study, "live", ("live", "average"), title, remark)


def beside_table(study: Study, which: str, names: tuple[str, str], title: str, remark: str) -> Table | None:
    """A second model of each run beside the one that it is scored by, and their difference within each run.

    `which`: of results.json; `names`: of the second and the first.
    """
    rows = [row._replace(runs=[run for run in row.runs if run.results.get(which)], gaps=[]) for row in study.rows]
    rows = [row for row in rows if row.runs]
    if not rows:
        return None
    columns = main_attacks(estimate.estimates(row, which) for row in rows)
    lines = []
    for row in rows:
        first, second = estimate.estimates(row), estimate.estimates(row, which)
        cells, others = ([cell(one.get(attack), len(row.runs)) for attack in columns] for one in (first, second))
        lines.append(Line(row.name, [Cell(str(len(row.runs))), *cells]))
        lines.append(Line(names[0], [Cell(""), *others], "part"))
        apart = (differences(row, attack, which) for attack in columns)
        lines.append(Line(f" {MINUS} ".join(names), [Cell(""), *apart], "part"))
    columns = ["seeds", *map(display, columns)]
    return Table(which, title, columns, lines, [remark, *notes.describe_intervals(rows)])


def transfer_table(study: Study) -> Table | None:
    """Table 6: attacks crafted on other models."""
    measured = {row.label: estimate.estimates(row) for row in study.rows}
    crafted = sorted({attack for row in measured.values() for attack in row if _source(attack)}, key=_source_order)
    if not crafted:
        return None
    columns = [*(["noise"] if any("noise" in row for row in measured.values()) else []), *crafted]
    published = paper.TABLES["table6"] if study.paper in ("table3", "table6") else None
    lines = []
    for row in study.rows:
        if any(attack in measured[row.label] for attack in crafted):
            lines += accuracy_lines(study, row, columns, published)
    remarks = [
        "Crafted on the source without access to the target; the step size and epsilon are those of the evaluation."
    ]
    remarks += notes.own_sources(study)
    remarks += [*notes.few_images(study), *notes.paper_notes(study, published)]
    return Table("transfer", "Accuracy in % under transfer attacks", ["seeds", *map(display, columns)], lines, remarks)


def steps_table(study: Study) -> Table | None:
    """The values behind Figure 4: accuracy against the number of steps."""
    series = {row.label: estimate.step_series(estimate.estimates(row)) for row in study.rows}
    columns = sorted({steps for found in series.values() for points in found.values() for steps in points})
    if len(columns) <= MOST_STEPS:
        return None  # the accuracies already have them
    lines = [
        Line(f"{row.name}, {display_series(series_name)}", [cell(points.get(steps)) for steps in columns])
        for row in study.rows
        for series_name, points in series[row.label].items()
        if len(points) > 2
    ]
    title = "Accuracy in % against the number of steps"
    return Table("steps", title, [str(n) for n in columns], lines, []) if lines else None


def distance_table(study: Study) -> Table | None:
    """Table 2: the distance between other attacks' perturbations and PGD's."""
    measured = {row.label: [run.results.get("distances") or {} for run in row.runs] for row in study.rows}
    columns = sorted({attack for runs in measured.values() for run in runs for attack in run}, key=_distance_order)
    if not columns:
        return None
    lines = []
    for row in study.rows:
        values = [[run[attack] for run in measured[row.label] if attack in run] for attack in columns]
        if any(values):
            lines.append(Line(row.name, [Cell(f"{np.mean(v):.3f}" if v else NONE) for v in values]))
            if published := paper.DISTANCES.get(row.label) if study.paper == "table1" else None:
                lines.append(Line("paper, x 1e-5", [number(published.get(attack)) for attack in columns], "part"))
    remarks = [
        "Mean over test images (and seeds) of the Euclidean norm, over pixels and channels in [0, 1], of the difference"
        " between the two perturbations after equally many steps from the same random start."
    ]
    if any(line.kind == "part" for line in lines):
        remarks.append(
            "The paper does not state the normalisation of its Table 2: only the order within a line compares."
        )
    title = "Distance of perturbations to PGD's"
    return Table("distances", title, [display(attack) for attack in columns], lines, remarks)


def evaluator_table(study: Study) -> Table | None:
    """What evaluators of one's own found, on average."""
    measured = {row.label: [run.results.get("evaluators") or {} for run in row.runs] for row in study.rows}
    columns = list(dict.fromkeys(name for runs in measured.values() for run in runs for name in run))
    lines = []
    for row in study.rows:
        values = [[run[name] for run in measured[row.label] if name in run] for name in columns]
        if any(values):
            lines.append(Line(row.name, [Cell(f"{np.mean(v):.4g}" if v else NONE) for v in values]))
    remarks = ["Mean over test images (and seeds) of the value that the evaluator gives each image."]
    return Table("evaluators", "Evaluators of one's own", columns, lines, remarks) if columns else None


def main_attacks(measured: Iterable[Mapping[str, Estimate]]) -> list[str]:
    """The attacks of the main table, in the paper's order: not the transferred ones, nor many steps of one family."""
    found = {attack for row in measured for attack in row}
    series: dict[str, list[str]] = {}
    for attack in sorted(found, key=estimate.attack_order):
        if not (parts := estimate.split_steps(attack)).source:
            series.setdefault(parts.series, []).append(attack)
    kept = []
    for attacks in series.values():
        usual = [attack for attack in attacks if attack in paper.WHITE_BOX] or attacks[-1:]
        kept += attacks if len(attacks) <= MOST_STEPS else usual
    return kept


def differences(row: Row, attack: str, which: str) -> Cell:
    """The model `which` minus the one that the run is scored by, within each run, over seeds."""
    pairs = [(estimate.own_accuracies(run, which), estimate.own_accuracies(run)) for run in row.runs]
    values = [second[attack][0] - first[attack][0] for second, first in pairs if attack in second and attack in first]
    if len(values) < 2:
        return difference(*((values[0], 0.0) if values else (None, None)))
    mean, low, _ = estimate.over_seeds(values)
    return difference(mean, 0.0)._replace(detail=f"\N{PLUS-MINUS SIGN}{100 * (mean - low):.1f}")


def run_attacks(run: RunRecord) -> list[str]:
    """The attacks that a run was scored on."""
    return list(estimate.own_accuracies(run))


def _source_order(attack: str) -> tuple:
    """By the source, those that the paper names first, then by attack."""
    names, label = list(paper.NAMES), _source(paper_key(attack))
    return (names.index(label) if label in names else len(names), _source(attack), *estimate.attack_order(attack))


def _source(attack: str) -> str:
    return estimate.split_steps(attack).source


def _distance_order(attack: str) -> tuple:
    family, steps, options, _ = estimate.split_steps(attack)
    return steps or 0, family, options
