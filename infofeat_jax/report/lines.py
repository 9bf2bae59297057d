"""The lines of a table of accuracies: a row, its best and worst run, what is missing, and the paper's values."""

from collections.abc import Mapping
from typing import NamedTuple

from infofeat_jax.report import estimate, notes, paper
from infofeat_jax.report.cells import NONE, Cell, cell, difference, display, number, paper_key, percent
from infofeat_jax.report.estimate import Estimate
from infofeat_jax.report.runs import Row, RunRecord, Study


class Line(NamedTuple):
    """A line of a table. `gap`: why there are no cells.

    `kind`: "row"; "part" of the row above; "subset": the row above on the images that all attacks saw.
    """

    label: str
    cells: list[Cell]
    kind: str = "row"
    gap: str = ""


def accuracy_lines(study: Study, row: Row, columns: list[str], published: paper.PaperTable | None) -> list[Line]:
    """A row: mean over seeds, best and worst run, the paper's values with the difference, and what is missing."""
    whole, total = estimate.estimates(row), len(row.runs) + len(row.gaps)
    counted = f"{len(row.runs)} of {total}" if row.gaps and row.runs else str(total)
    measured: dict[str, dict[str, float | None]] = {"mean": {attack: value.mean for attack, value in whole.items()}}
    with_worst = columns[-1] == "worst_case" and bool(row.runs)
    subset = common_line(row, columns) if with_worst else None
    if with_worst and subset is None:
        whole["worst_case"] = worst_case(row.runs)
    lines = []
    if row.runs:
        cells = [cell(whole.get(attack), len(row.runs)) for attack in columns]
        lines += [Line(row.name, [Cell(counted), *cells]), *([subset] if subset else [])]
    extremes = estimate.extremes(row.runs)
    for which, run in extremes.items():
        measured[which] = {attack: value for attack, (value, _) in estimate.own_accuracies(run).items()}
        measured[which]["worst_case"] = None if subset else run.results.get("worst_case")
        cells = [percent(measured[which].get(attack)) for attack in columns]
        if len(row.runs) > 1 and any(one.value != NONE for one in cells):
            label = f"{which} by {display(estimate.judge(row.runs))}"
            lines.append(Line(label, [Cell(f"seed {run.seed}"), *cells], "part"))
    if row.runs:
        lines += [Line(gap.name, [], "part", gap.gap) for gap in row.gaps]
    else:
        named = [gap.gap if gap.name == row.name else f"{gap.name}: {gap.gap}" for gap in row.gaps]
        lines.append(Line(row.name, [], gap="; ".join(named)))
    if published and row.label in published.rows:
        lines += paper_lines(row, columns, published, measured, notes.deviations_of(study, row, published))
    return lines


def common_line(row: Row, columns: list[str]) -> Line | None:
    """The row on the images that all attacks saw, the worst case among them; None if each attack saw all images."""
    whole, runs = estimate.estimates(row, "common"), [run for run in row.runs if run.results.get("common")]
    if len(runs) < len(row.runs):
        return None
    whole["worst_case"] = worst_case(runs, "common")
    counts = sorted({value.examples for value in whole.values()})
    label = f"first {' to '.join(f'{count:,}' for count in counts)} images"
    return Line(label, [Cell(""), *(cell(whole.get(attack)) for attack in columns)], "subset")


def paper_lines(
    row: Row, columns: list[str], published: paper.PaperTable, measured: Mapping, deviations: list[paper.Deviation]
) -> list[Line]:
    """The paper's values, and measured minus paper, naming the setting if it is not the paper's."""
    setting, lines = paper.kind(deviations), []
    for which, values in published.rows[row.label].items():
        by_attack = dict(zip(published.columns, values, strict=True))
        of = "" if which == "mean" else f", {which}"
        lines.append(Line(f"paper{of}", [Cell(""), *(number(by_attack.get(paper_key(a))) for a in columns)], "part"))
        if row.runs:
            apart = [
                difference(measured.get(which, {}).get(attack), by_attack.get(paper_key(attack))) for attack in columns
            ]
            label = f"difference{of}" + (f" ({setting})" if setting else "")
            lines.append(Line(label, [Cell(""), *apart], "part"))
    return lines


def worst_case(runs: list[RunRecord], which: str = "") -> Estimate:
    """The accuracy under the worst of a run's attacks for each image, over seeds."""
    counts = (min(estimate.counts_within_budget(run, which)) for run in runs)
    return estimate.estimate([(run.results["worst_case"], count) for run, count in zip(runs, counts, strict=True)])
