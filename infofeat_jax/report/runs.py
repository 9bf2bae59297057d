"""The records of runs that a report is made of, and what is read from them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from infofeat_jax.training import records

UNFINISHED, LEFT_OUT = ("in training", "not evaluated"), "left out: "  # beginnings of reasons


class RunRecord(NamedTuple):
    """What the files of one run say. Its results count only if `gap`, the reason why they must not, is empty."""

    name: str
    row: str  # of the table; runs of one row differ in the seed alone
    seed: int | None
    gap: str
    config: dict  # config.json; {} if there is none
    results: dict  # results.json; {} if there is none
    epochs: list[dict]  # the epochs' lines of metrics.jsonl

    @property
    def unfinished(self) -> bool:
        """Whether its training may be shown although it has no results yet."""
        return self.gap.startswith(UNFINISHED) and LEFT_OUT not in self.gap


class Row(NamedTuple):
    """What the report aggregates over."""

    label: str
    runs: list[RunRecord]  # to aggregate, by seed
    gaps: list[RunRecord]  # to name with their reasons
    name: str  # how the paper writes the label, unless another row is called that


class Study(NamedTuple):
    """All that the report shows."""

    directory: pathlib.Path
    title: str
    paper: str  # the paper's table to compare with, "" for none
    notes: list[str]  # the user's remarks on the data
    rows: list[Row]

    @property
    def runs(self) -> list[RunRecord]:
        """The runs that count."""
        return [run for row in self.rows for run in row.runs]


def accuracies(results: Mapping) -> dict[str, tuple[float, int]]:
    """{attack: (accuracy in [0, 1], number of examples)}."""
    whole = dict.fromkeys(results["config"]["eval"]["attacks"], results["num_examples"])
    if limit := results["config"]["eval"].get("autoattack_examples") or 0:
        whole["autoattack"] = min(limit, results["num_examples"])
    counts = results.get("examples") or whole
    return {name: (results[name], count) for name, count in counts.items() if name in results}


def read_json(path: pathlib.Path) -> dict[str, Any] | str | None:
    """The file's JSON object; None without the file, the reason as text if it holds none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not even text
        return str(error)
    return value if isinstance(value, dict) else f"expected a JSON object, found {str(value)[:40]!r}"


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz; {} if it is missing or not readable as such."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return dict(saved)
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        return {}


def read_epochs(path: pathlib.Path) -> list[dict]:
    """The epochs' lines of metrics.jsonl, [] without the file; damaged lines are passed over."""
    try:
        found = records.read(path)
    except OSError:
        return []
    return [line for line in found if isinstance(line.get("epoch"), int)]
