"""The page that shows a study, in one file that needs nothing else."""

import base64
import pathlib
from functools import partial
from typing import NamedTuple

import jinja2

from infofeat_jax.report import cam_images, figures, notes, provenance, tables
from infofeat_jax.report.collect import Run, Study

HEADINGS = {
    "accuracy": "Accuracy", "latest": "Early stopping", "transfer": "Transferred attacks", "steps": "Number of steps",
    "distances": "Distance between perturbations",
}  # fmt: skip


class Image(NamedTuple):
    """A picture on the page, as data URIs; `dark` may be empty. `scale`: whether it may shrink with the page."""

    light: str
    dark: str
    alt: str
    caption: str
    scale: bool = True


class Drawing(NamedTuple):
    """A figure as files and as it stands on the page."""

    files: dict[str, bytes]  # by name
    image: Image


def draw_figures(study: Study) -> list[Drawing]:
    """The plots that there are figures for."""
    drawings = []
    for name, caption, draw in figures.all_figures(study):
        svg = figures.render(draw, "svg")
        if svg is None:
            continue
        dark = figures.render(draw, "svg", "dark")
        files = {f"{name}.svg": svg, f"{name}.png": figures.render(draw, "png")}
        drawings.append(Drawing(files, Image(data_uri(svg, "svg+xml"), data_uri(dark, "svg+xml"), caption, caption)))
    return drawings


def draw_pictures(study: Study) -> list[tuple[Run, Drawing]]:
    """The class activation maps of each run that kept some."""
    drawn = []
    for run in study.runs:
        arrays = cam_images.load(study.directory / run.name / "pictures.npz")
        if not arrays:
            continue
        draw = partial(cam_images.draw, arrays)
        png, svg = (figures.render(draw, kind, "any", cam_images.DPI) for kind in ("png", "svg"))
        files = {f"maps-{run.name}.png": png, f"maps-{run.name}.svg": svg}
        alt = "; ".join(
            cam_images.describe(arrays, index).replace("\n", ", ") for index in range(len(arrays["labels"]))
        )
        image = Image(data_uri(png, "png"), "", alt, cam_images.caption(arrays), scale=False)
        drawn.append((run, Drawing(files, image)))
    return drawn


def to_html(study: Study, all_tables: list[tables.Table], plots: list[Drawing], maps: list[tuple[Run, Drawing]]) -> str:
    """The page; every text from outside is escaped."""
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html").render(
        study=study,
        summary=f"{notes.describe_setting(study)}. {len(study.runs)} finished runs in {study.directory.name}/.",
        warnings=list_warnings(study, all_tables),
        tables=all_tables,
        headings=HEADINGS,
        figures=[drawing.image for drawing in plots],
        pictures=[(run, drawing.image) for run, drawing in maps],
        runs_table=provenance.runs_table(study),
        runs=[provenance.record(run) for row in study.rows for run in (*row.runs, *row.gaps)],
    )


def list_warnings(study: Study, all_tables: list[tables.Table]) -> list[str]:
    """What must be known before any figure is read: reduced settings, few images, gaps, the runs' own flags."""
    remarks = notes.warnings(note for table in all_tables for note in table.notes)
    gaps = [run for row in study.rows for run in row.gaps]
    if gaps:
        remarks.append(f"{len(gaps)} of {len(gaps) + len(study.runs)} runs do not count: see the marked lines.")
    return [*dict.fromkeys(remarks), *notes.flags(study)]


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
