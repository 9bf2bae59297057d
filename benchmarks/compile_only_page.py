"""The tables of docs/compile_only.md, from the lines that compile_only.py has written."""

import pathlib
from collections.abc import Callable, Iterator

from programs import Setting

BEGIN, END = "<!-- python benchmarks/compile_only.py --report -->\n", "<!-- end -->\n"


CELLS: dict[str, Callable[[dict], str]] = {
    "memory": lambda row: f"{row['memory'] / 2**20:,.0f}",
    "collectives": lambda row: (
        f"{row['collectives']}, {row['collective_bytes'] / 1e6:.1f} MB" if row["chips"] > 1 else ""
    ),
    "kernels": lambda row: f"{row['kernels']}",
    "seconds": lambda row: f"{1e3 * row['seconds']:.2f}" if "share" in row else "",
    "share": lambda row: f"{100 * row['share']:.0f} %" if "share" in row else "",
}


PLAIN = {"program": "step", "dtype": "bfloat16", "images": 128, "parallel": "jit", "accumulate": 1, "remat": 0}
# A table for each question, of the rows that no table before it has.
SECTIONS: dict[str, Callable[[Setting], bool]] = {
    "Devices: a step of InfoFeature": lambda one: (PLAIN | {"method": "infofeature"}).items() <= one._asdict().items(),
    "Methods: a step of each": lambda one: PLAIN.items() <= one._asdict().items(),
    "Options: steps in float32, with pmap, in parts, with remat, of fewer images": lambda one: one.program == "step",
    "Evaluation": lambda one: True,
}


def tables(rows: list[dict]) -> Iterator[str]:
    """Markdown: a line for each setting, with the values of all labels in the order of the file."""
    left: dict[Setting, list[dict]] = {}
    for row in rows:
        left.setdefault(Setting(*(row[field] for field in Setting._fields)), []).append(row)
    for title, belongs in SECTIONS.items():
        if here := sorted(filter(belongs, left)):
            yield from (f"**{title}**", "")
            yield "| target | program | images a chip | MiB | collectives | kernels | ms | of peak | spent in |"
            yield "|---|---|---|---|---|---|---|---|---|"
            yield from (line(setting, left.pop(setting)) for setting in here)
            yield ""


def line(setting: Setting, group: list[dict]) -> str:
    """A table's; what its time is spent in is of the last label."""
    cells = [arrow(group, form) for form in CELLS.values()] + [spent(group[-1]) if "share" in group[-1] else ""]
    return " | ".join([f"| {setting.chips} x {setting.target}", program(setting), str(setting.images), *cells]) + " |"


def arrow(group: list[dict], form: Callable[[dict], str]) -> str:
    """A cell: "before → after", or one value where they are the same."""
    return " → ".join(dict.fromkeys("does not fit" if "error" in row else form(row) for row in group))


def spent(row: dict) -> str:
    """Where an estimate's time goes, the most first: "products 60 %, other 40 %"."""
    parts = sorted(row["spent"].items(), key=lambda part: -part[1])
    shares = {name: round(100 * value / row["seconds"]) for name, value in parts}
    return ", ".join(f"{name} {share} %" for name, share in shares.items() if share)


def program(setting: Setting) -> str:
    """A setting's program in words."""
    options = [setting.parallel] if setting.parallel != "jit" else []
    options += [f"{setting.accumulate} parts"] if setting.accumulate > 1 else []
    options += ["remat"] if setting.remat else []
    name = setting.method if setting.program == "step" else setting.program
    return ", ".join([f"`{setting.config}`", name, setting.dtype, *options])


def write_page(rows: list[dict], page: pathlib.Path) -> None:
    """Replaces the tables of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + "\n".join(["", *tables(rows), ""]) + END + rest.partition(END)[2])
