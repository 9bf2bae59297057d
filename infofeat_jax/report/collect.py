"""The runs of a directory, those whose results are comparable, and a stated reason for leaving out any other."""

import pathlib
import re
from collections.abc import Mapping

from infofeat_jax.report import paper
from infofeat_jax.report.gaps import find_gap, mark_disagreements, mark_rows
from infofeat_jax.report.runs import Row, RunRecord, Study, read_epochs, read_json
from infofeat_jax.types import InvalidInput, check_choice


def collect(directory: pathlib.Path) -> Study:
    """The study in `directory`; for the directory of a run: the runs beside it. Raises InvalidInput."""
    directory, own = directory.absolute(), ""
    if (directory / "config.json").exists() or (directory / "results.json").exists():
        directory, own = directory.parent, directory.name
    description = read_description(directory / "study.json")
    runs = [read_run(directory / name, row, seed) for name, (row, seed) in find_runs(directory, description).items()]
    if not runs:
        raise InvalidInput(f"no run in {directory}: train first, or give the directory of a run or a study")
    runs = mark_rows(mark_disagreements(runs, own, with_model=not description))
    study = create(directory, description, runs)
    if not description:  # as good as any order, and the best are next to each other
        study.rows.sort(key=lambda row: [run.results.get("pgd20", 0.0) for run in row.runs] or [2.0])
    return study


def collect_run(directory: pathlib.Path) -> Study:
    """The run in `directory` alone."""
    directory = directory.absolute()
    return create(directory.parent, {}, [read_run(directory, row_of(directory.name), None)])


def create(directory: pathlib.Path, description: Mapping, runs: list[RunRecord]) -> Study:
    """A study of these runs, with the remarks on their data."""
    data = [run.config.get("data") for run in runs]
    notes = [description.get("note"), *(fields.get("note") for fields in data if isinstance(fields, dict))]
    return Study(
        directory, str(description.get("title") or directory.name), description.get("paper", ""),
        list(dict.fromkeys(str(note) for note in notes if note)), group(runs),
    )  # fmt: skip


def row_of(name: str) -> str:
    """The row that a run belongs to by its name."""
    return re.sub(r"-seed\d+$", "", name)


def group(runs: list[RunRecord]) -> list[Row]:
    """The rows, in the order of their first runs; within each, the runs that count by seed."""
    labels, rows = dict.fromkeys(run.row for run in runs), []
    for label in labels:
        counted = sorted((run for run in runs if run.row == label and not run.gap), key=lambda run: run.seed or 0)
        gaps, written = [run for run in runs if run.row == label and run.gap], paper.NAMES.get(label, label)
        rows.append(Row(label, counted, gaps, label if written in labels else written))
    return rows


def read_description(path: pathlib.Path) -> dict:
    """study.json, {} without one. Raises InvalidInput if it does not say which runs there are to be."""
    description = read_json(path)
    if description is None:
        return {}
    runs = description.get("runs") if isinstance(description, dict) else None
    complete = isinstance(runs, dict) and all(
        isinstance(run, dict) and isinstance(run.get("row"), str) and isinstance(run.get("seed"), int)
        for run in runs.values()
    )
    if not isinstance(description, dict) or not complete:
        raise InvalidInput(
            f'{path}: expected JSON with "runs": {{"NAME": {{"row": ..., "seed": ...}}}}: remove it, do the study again'
        )
    if description.get("paper"):
        check_choice(f"table of the paper in {path}", str(description["paper"]), paper.TABLES)
    return description


def find_runs(directory: pathlib.Path, description: Mapping) -> dict[str, tuple[str, int | None]]:
    """{name: (row, seed)} of the runs that are to be there, or else of those that are, their seeds unknown."""
    if description:
        return {name: (run["row"], run["seed"]) for name, run in description["runs"].items()}
    names = sorted({path.parent.name for file in ("config", "results") for path in directory.glob(f"*/{file}.json")})
    return {name: (row_of(name), None) for name in names}


def read_run(directory: pathlib.Path, row: str, seed: int | None) -> RunRecord:
    """A run with what its files say; `seed` as expected, None for the one that it was trained with."""
    config, results = read_json(directory / "config.json"), read_json(directory / "results.json")
    epochs = read_epochs(directory / "metrics.jsonl")
    gap = find_gap(config, results, epochs)
    config, results = (value if isinstance(value, dict) else {} for value in (config, results))
    evaluated = results.get("config")
    config = config or (evaluated if isinstance(evaluated, dict) else {})
    trained_with = config.get("seed")
    if not gap and seed not in (None, trained_with):
        gap = f"trained with seed {trained_with}, not {seed}"
    return RunRecord(directory.name, row, trained_with if seed is None else seed, gap, config, results, epochs)
