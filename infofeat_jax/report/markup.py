"""The tables as Markdown and as LaTeX."""

import re
from collections.abc import Callable

from infofeat_jax.report.cells import Cell
from infofeat_jax.report.lines import Line
from infofeat_jax.report.tables import Table

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "|": r"$|$", "\N{PLUS-MINUS SIGN}": r"$\pm$", "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--", "\N{MULTIPLICATION SIGN}": r"$\times$", **{c: f"\\{c}" for c in "&%$#_"},
}  # fmt: skip


def to_markdown(title: str, finding: str, tables: list[Table]) -> str:
    """A Markdown page of the finding and all tables with their notes."""
    return f"# {_markdown(title)}\n\n{_markdown(finding)}\n" + "".join(map(_markdown_table, tables))


def to_latex(title: str, tables: list[Table]) -> str:
    """Plain tabular environments, which need no package; to be \\input."""
    return f"% {' '.join(title.split())}\n" + "".join(map(_latex_table, tables))


def _markdown_table(table: Table) -> str:
    width = len(table.columns)
    lines = [["method", *map(_markdown, table.columns)], ["---", *["---:"] * width]]
    lines += [[_label(line, "\N{EN DASH} ", _markdown), *map(_markdown, _fill(line, width))] for line in table.lines]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n- {_markdown(note)}" for note in table.notes)
    return f"\n## {_markdown(table.title)}\n\n{text}\n{notes}\n"


def _latex_table(table: Table) -> str:
    width = len(table.columns)
    lines = [" & ".join(["", *map(_latex, table.columns)]) + r" \\ \hline"]
    for line in table.lines:
        label = _label(line, r"\quad ", _latex)
        if line.gap:
            cells = [rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_latex(line.gap)}}}}}"]
        else:
            cells = [_latex(_text(cell)) for cell in line.cells]
        lines.append(" & ".join([label, *cells]) + r" \\")
    rows = "\n".join(lines)
    caption = " ".join(_latex(text) for text in (f"{table.title}.", *table.notes))
    return (
        f"\n\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{l{'r' * width}}}\n\\hline\n{rows}\n\\hline\n"
        f"\\end{{tabular}}\n\\caption{{{caption}}}\n\\end{{table}}\n"
    )


def _fill(line: Line, width: int) -> list[str]:
    """The cells as text; a gap's reason goes into the first one."""
    texts = [line.gap] if line.gap else [_text(cell) for cell in line.cells]
    return texts + ["\N{EN DASH}"] * (width - len(texts))


def _label(line: Line, indent: str, escape: Callable[[str], str]) -> str:
    return (indent if line.kind != "row" else "") + escape(line.label)


def _text(cell: Cell) -> str:
    return f"{cell.value} {cell.detail}".rstrip()


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))
