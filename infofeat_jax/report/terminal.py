"""The table of a run, or of a study, on the terminal: as wide as that is, in several parts if it has to be."""

import shutil
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from infofeat_jax.report import notes, tables
from infofeat_jax.report.cells import Cell
from infofeat_jax.report.finding import finding
from infofeat_jax.report.runs import Study

BETWEEN = "  "
BROAD = 14  # characters of a heading that go into one line although the values are narrower


class Column(NamedTuple):
    """A column of text."""

    heading: list[str]  # lines
    values: list[str]

    @property
    def width(self) -> int:
        """In characters."""
        return max(map(len, (*self.heading, *self.values)))


def show(study: Study) -> None:
    """Prints one line for each row of the study, what is missing, and the warnings. The rest is on the page."""
    accuracy, width = tables.create(study)[0], shutil.get_terminal_size().columns
    gaps = [f"{line.label}: {line.gap}" for line in accuracy.lines if line.gap]
    found = [finding(study)] if sum(bool(row.runs) for row in study.rows) > 1 else []
    warnings = [f"warning: {remark}" for remark in (*notes.warnings(accuracy.notes), *notes.flags(study))]
    remarks = [line for remark in (*of_own(study), *found, *gaps, *warnings) for line in wrapped(remark, width)]
    print(*wrapped(accuracy.title, width), "", *lay_out(create_columns(study, accuracy), width), *remarks, sep="\n")


def of_own(study: Study) -> list[str]:
    """What evaluators of one's own found, in a line for each row of the study."""
    table = tables.evaluator_table(study)
    if table is None:
        return []
    names = table.columns
    pairs = [(line.label, zip(names, line.cells, strict=True)) for line in table.lines]
    return [f"{label}: {', '.join(f'{name} {cell.value}' for name, cell in cells)}" for label, cells in pairs]


def create_columns(study: Study, accuracy: tables.Table) -> list[Column]:
    """The table's columns, that of the methods first; that of the seeds only if a row has several."""
    shown = [line for line in accuracy.lines if line.kind != "part" and not line.gap]
    columns = [Column(["method"], ["  " * (line.kind == "subset") + one_line(line.label) for line in shown])]
    for index, name in enumerate(accuracy.columns):
        if index or any(len(row.runs) > 1 for row in study.rows):
            values = [text(line.cells[index]) for line in shown]
            broad = max(BROAD, *map(len, (*values, "")))
            columns.append(Column(wrapped(name, broad), values))
    return columns


def lay_out(columns: list[Column], width: int) -> Iterator[str]:
    """Lines of at most `width` characters, if no column is wider: parts below each other, the first column in each."""
    first, *rest = columns
    while rest:
        part = [first, rest.pop(0)]
        while rest and sum(one.width + len(BETWEEN) for one in (*part, rest[0])) - len(BETWEEN) <= width:
            part.append(rest.pop(0))
        height = max(len(one.heading) for one in part)
        headings = [[""] * (height - len(one.heading)) + one.heading for one in part]
        total = sum(one.width + len(BETWEEN) for one in part) - len(BETWEEN)
        yield from (line(part, [heading[index] for heading in headings]) for index in range(height))
        yield "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * total
        yield from (line(part, [one.values[index] for one in part]) for index in range(len(first.values)))
        yield ""


def line(part: list[Column], texts: list[str]) -> str:
    """One line: the first column from the left, the others from the right."""
    cells = [texts[0].ljust(part[0].width)]
    cells += [text.rjust(column.width) for column, text in zip(part[1:], texts[1:], strict=True)]
    return BETWEEN.join(cells).rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, broken between words only."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def one_line(text: str) -> str:
    """A name from outside without line breaks."""
    return " ".join(text.split())


def text(cell: Cell) -> str:
    """The value; with its interval if that is over seeds."""
    return f"{cell.value} {cell.detail}" if cell.detail.startswith("\N{PLUS-MINUS SIGN}") else cell.value
