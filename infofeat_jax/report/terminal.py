"""The table of a run beside its comparable neighbours, or of a study, on the terminal."""

import pathlib

import rich.box
import rich.table
from rich.console import Console
from rich.markup import escape

from infofeat_jax.report import collect, notes, tables
from infofeat_jax.report.cells import Cell
from infofeat_jax.report.runs import Study


def show(directory: pathlib.Path) -> None:
    """Prints the study in `directory`, or the run there beside its comparable neighbours. Raises InvalidInput."""
    show_study(collect.collect(directory))


def show_study(study: Study) -> None:
    """Prints one line for each row of the study, what is missing, and the warnings. The rest is on the page."""
    accuracy = tables.create(study)[0]
    start = 0 if any(len(row.runs) > 1 for row in study.rows) else 1  # no column of seeds if there is one each
    table = rich.table.Table(title=escape(accuracy.title), box=rich.box.SIMPLE_HEAD, pad_edge=False)
    shown = [line for line in accuracy.lines if line.kind != "part" and not line.gap]
    rows = [
        [" " * 2 * (line.kind == "subset") + escape(line.label), *(text(cell) for cell in line.cells[start:])]
        for line in shown
    ]
    for index, column in enumerate(("method", *accuracy.columns[start:])):
        width = max((len(row[index]) for row in rows), default=0)  # headings may be broken, numbers not
        justify = "right" if index else "left"
        table.add_column(escape(column), justify=justify, overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table, crop=False)
    gaps = [f"{line.label}: {line.gap}" for line in accuracy.lines if line.gap]
    warnings = [f"warning: {remark}" for remark in (*notes.warnings(accuracy.notes), *notes.flags(study))]
    for remark in (*gaps, *warnings):
        console.print(escape(remark), highlight=False)


def text(cell: Cell) -> str:
    """The value; with its interval if that is over seeds."""
    return escape(f"{cell.value} {cell.detail}" if cell.detail.startswith("\N{PLUS-MINUS SIGN}") else cell.value)
