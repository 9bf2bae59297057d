"""The page that shows a study, in one file that needs nothing else."""

import base64
import pathlib
from functools import partial
from typing import NamedTuple

import jinja2

from infofeat_jax.report import cam_images, figures, notes, provenance, tables
from infofeat_jax.report.finding import finding
from infofeat_jax.report.runs import RunRecord, Study

HEADINGS = {
    "accuracy": "Accuracy", "latest": "Early stopping", "transfer": "Transferred attacks", "steps": "Number of steps",
    "distances": "Distance between perturbations",
}  # fmt: skip


CAM_FILES = ("cam_images.npz", "pictures.npz")  # the second of earlier runs


class Image(NamedTuple):
    """An image on the page, as data URIs; `dark` may be empty. `scale`: whether it may shrink with the page."""

    light: str
    dark: str
    alt: str
    caption: str
    scale: bool = True


class Drawing(NamedTuple):
    """A figure as files and as it appears on the page."""

    files: dict[str, bytes]  # by name
    image: Image


def draw_figures(study: Study) -> list[Drawing]:
    """The figures that there are results for."""
    drawings = []
    for name, caption, draw in figures.all_figures(study):
        svg, dark, png = (
            figures.render(draw, kind, theme) for kind, theme in (("svg", "light"), ("svg", "dark"), ("png", "light"))
        )
        if svg is None or dark is None or png is None:
            continue
        files = {f"{name}.svg": svg, f"{name}.png": png}
        drawings.append(Drawing(files, Image(data_uri(svg, "svg+xml"), data_uri(dark, "svg+xml"), caption, caption)))
    return drawings


def draw_cam_images(study: Study) -> list[tuple[RunRecord, Drawing]]:
    """The class activation maps of each run that kept some."""
    drawn = []
    for run in study.runs:
        candidates = (cam_images.load(study.directory / run.name / name) for name in CAM_FILES)
        if (arrays := next(filter(None, candidates), None)) is None:
            continue
        draw = partial(cam_images.draw, arrays)
        png, svg = (figures.render(draw, kind, "any", cam_images.DPI) for kind in ("png", "svg"))
        if png is None or svg is None:
            continue
        files = {f"maps-{run.name}.png": png, f"maps-{run.name}.svg": svg}
        alt = "; ".join(
            cam_images.predictions(arrays, index).replace("\n", ", ") for index in range(len(arrays["labels"]))
        )
        image = Image(data_uri(png, "png"), "", alt, cam_images.caption(arrays), scale=False)
        drawn.append((run, Drawing(files, image)))
    return drawn


def to_html(
    study: Study, all_tables: list[tables.Table], plots: list[Drawing], maps: list[tuple[RunRecord, Drawing]]
) -> str:
    """The page; every text from outside is escaped."""
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    warnings = list_warnings(study, all_tables)
    return environment.get_template("page.html").render(
        study=study,
        summary=f"{notes.setting_line(study)}. {len(study.runs)} finished runs in {study.directory.name}/.",
        finding=finding(study),
        flags=notes.flags(study),
        warnings=warnings,
        tables=[table._replace(notes=[note for note in table.notes if note not in warnings]) for table in all_tables],
        headings=HEADINGS,
        figures=[drawing.image for drawing in plots],
        cam_images=[(run, drawing.image) for run, drawing in maps],
        runs_table=provenance.runs_table(study),
        runs=[provenance.record(run) for row in study.rows for run in (*row.runs, *row.gaps)],
    )


def list_warnings(study: Study, all_tables: list[tables.Table]) -> list[str]:
    """What a reader needs before any of the numbers, besides the runs' flags: reduced settings, few images, gaps."""
    remarks = notes.warnings(note for table in all_tables for note in table.notes)
    gaps = [run for row in study.rows for run in row.gaps]
    if gaps:
        remarks.append(f"{len(gaps)} of {len(gaps) + len(study.runs)} runs do not count: see the marked lines.")
    return list(dict.fromkeys(remarks))


def data_uri(content: bytes, kind: str) -> str:
    """`content` as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
