"""The table of a run beside its comparable neighbours, or of a study, on the terminal."""

import pathlib

import rich.table
from rich.console import Console
from rich.markup import escape

from infofeat_jax.report import collect, notes, tables
from infofeat_jax.report.cells import Cell


def show(directory: pathlib.Path) -> None:
    """Prints the study in `directory`, or the run there beside its comparable neighbours. Raises InvalidInput."""
    show_study(collect.collect(directory))


def show_study(study: collect.Study) -> None:
    """Prints one line a row of the study, what is missing, and the flags. The rest is for the page."""
    accuracy = tables.accuracy_table(study)
    table = rich.table.Table(title=escape(accuracy.title))
    table.add_column("method", no_wrap=True)
    for column in accuracy.columns:
        table.add_column(escape(column), justify="right")
    for line in accuracy.lines:
        if line.kind == "row" and not line.gap:
            table.add_row(escape(line.label), *(text(cell) for cell in line.cells))
    console = Console()
    console.print(table)
    for line in accuracy.lines:
        if line.gap:
            console.print(escape(f"{line.label}: {line.gap}"), highlight=False)
    for flag in notes.flags(study):
        console.print(escape(f"warning: {flag}"), highlight=False)


def text(cell: Cell) -> str:
    """The figure; with its interval if that is over seeds."""
    return escape(f"{cell.value} {cell.detail}" if cell.detail.startswith("\N{PLUS-MINUS SIGN}") else cell.value)
