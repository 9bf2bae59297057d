"""The page that shows a study, in one file that needs nothing else."""

import base64
import pathlib
from functools import cache, partial
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from infofeat_jax.report import cam_images, compare, figures, notes, provenance, tables
from infofeat_jax.report.finding import finding
from infofeat_jax.report.runs import Study

HERE = pathlib.Path(__file__).parent
HEADINGS = {
    "accuracy": "Accuracy", "latest": "Early stopping", "live": "Averaged weights", "transfer": "Transfer attacks",
    "steps": "Number of steps", "distances": "Distance between perturbations",
    "evaluators": "Evaluators of one's own",
}  # fmt: skip


# (media query, whether narrow, theme) of the images that stand in for a light, wide one.
OTHER_IMAGES = (
    ("screen and (max-width: 32rem) and (prefers-color-scheme: dark)", True, "dark"),
    ("screen and (max-width: 32rem)", True, "light"),
    ("screen and (prefers-color-scheme: dark)", False, "dark"),
)
CAM_FILES = ("cam_images.npz", "pictures.npz")  # the second of earlier runs


class Image(NamedTuple):
    """A figure on the page, as data URIs."""

    main: str
    others: list[tuple[str, str]]  # (media query, data URI) of what is shown instead, in order
    caption: str


class Drawing(NamedTuple):
    """A figure as files and as it appears on the page."""

    files: dict[str, bytes]  # by name
    image: Image


class Panel(NamedTuple):
    """A run's test images, before and after the attack, with their class activation maps."""

    run: str
    caption: str
    titles: list[str]
    examples: list[tuple[str, str]]  # (what it is taken for, its tiles as a data URI)
    files: dict[str, bytes]  # by name


def draw_figures(study: Study) -> list[Drawing]:
    """The figures that there are results for."""
    drawings = []
    for name, caption, draw in figures.all_figures(study):
        png, svg = (figures.render(partial(draw, False), kind) for kind in ("png", "svg"))
        if svg is None or png is None:
            continue
        others = []
        for media, narrow, theme in OTHER_IMAGES:
            other = figures.render(partial(draw, narrow), "svg", theme)
            others += [] if other is None else [(media, data_uri(other, "svg+xml"))]
        drawings.append(
            Drawing({f"{name}.svg": svg, f"{name}.png": png}, Image(data_uri(svg, "svg+xml"), others, caption))
        )
    return drawings


def draw_panels(study: Study) -> list[Panel]:
    """The images and maps of each run that kept some."""
    panels = []
    for run in study.runs:
        candidates = (cam_images.load(study.directory / run.name / name) for name in CAM_FILES)
        if (arrays := next(filter(None, candidates), None)) is None:
            continue
        arrays = {"class_names": np.array(cam_images.CLASS_NAMES.get(run.config["data"]["name"], ()))} | arrays
        draw, examples = partial(cam_images.draw, arrays), []
        for index in range(len(arrays["labels"])):
            png = cam_images.to_png(cam_images.strip(cam_images.tiles(arrays, index)))
            examples.append((cam_images.predictions(arrays, index), data_uri(png, "png")))
        rendered = {kind: figures.render(draw, kind, "any", cam_images.DPI) for kind in ("png", "svg")}
        files = {f"maps-{run.name}.{kind}": content for kind, content in rendered.items() if content is not None}
        panels.append(Panel(run.name, cam_images.caption(arrays), cam_images.titles(arrays), examples, files))
    return panels


@cache
def _template() -> jinja2.Template:
    """Compiled once: a process may write many pages."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("page.html")


def to_html(study: Study, all_tables: list[tables.Table], plots: list[Drawing], panels: list[Panel]) -> str:
    """The page; every text from outside is escaped."""
    warnings = list_warnings(study, all_tables)
    shown = [table._replace(notes=[note for note in table.notes if note not in warnings]) for table in all_tables]
    return _template().render(
        style=Markup((HERE / "page.css").read_text()),
        script=Markup((HERE / "page.js").read_text()),
        study=study,
        finding=finding(study),
        summary=f"{notes.setting_line(study)}. {_count(study)} in {study.directory.name}/.",
        flags=notes.flags(study),
        warnings=warnings,
        tables=[table for table in shown if table.name != "images"],
        images_table=next((table for table in shown if table.name == "images"), None),
        headings=HEADINGS,
        figures=[drawing.image for drawing in plots],
        panels=panels,
        outcomes=Markup(compare.to_json(study)),
        runs_table=provenance.runs_table(study),
        runs=[provenance.record(run) for row in study.rows for run in (*row.runs, *row.gaps)],
    )


def _count(study: Study) -> str:
    return "1 finished run" if len(study.runs) == 1 else f"{len(study.runs)} finished runs"


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
