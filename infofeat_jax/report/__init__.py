"""Finished runs as tables, figures and a page for people."""

import pathlib

from infofeat_jax import installation
from infofeat_jax.runtime import files
from infofeat_jax.types import InvalidInput

try:
    from infofeat_jax.report import collect, terminal
    from infofeat_jax.report.runs import Study
except ModuleNotFoundError as error:
    message = f"reports need more than the library ({error}): {installation.command('train')}"
    raise ModuleNotFoundError(message, name=error.name) from None


def write(directory: str | pathlib.Path) -> pathlib.Path:
    """Writes the report of a study, or of a run and its neighbours, into report/ beside the runs; prints the table.

    index.html, which needs no other file; table.md; table.tex; figures/. Each file is replaced as a whole, the page
    last. Returns the page's path. Raises InvalidInput.
    """
    study = collect.collect(pathlib.Path(directory))
    terminal.show(study)
    output = study.directory / "report"
    try:
        (output / "figures").mkdir(parents=True, exist_ok=True)
        written = create_files(study)
        for name, content in written.items():
            files.write_atomically(output / name, content)
    except OSError as error:
        raise InvalidInput(f"the report cannot be written to {output} ({error}): make room or permit it") from None
    for stale in (output / "figures").glob("*.[ps][nv]g"):
        if f"figures/{stale.name}" not in written:
            stale.unlink()
    print(f"report: {output / 'index.html'}")
    return output / "index.html"


def create_files(study: Study) -> dict[str, str | bytes]:
    """{path: content} of the report, the page last."""
    from infofeat_jax.report import (
        compare,
        finding,
        markup,
        page,
        tables,
    )  # here: Matplotlib and SciPy take a second to import

    all_tables = [*tables.create(study), *compare.tables(study)]
    plots, panels = page.draw_figures(study), page.draw_panels(study)
    return {f"figures/{name}": content for drawing in (*plots, *panels) for name, content in drawing.files.items()} | {
        "table.md": markup.to_markdown(study.title, finding.finding(study), all_tables),
        "table.tex": markup.to_latex(study.title, all_tables),
        "index.html": page.to_html(study, all_tables, plots, panels),
    }
