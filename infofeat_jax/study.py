"""Studies, several runs from one configuration: planning them, and running them one after the other."""

import ast
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import config_checks, run
from infofeat_jax.report import collect, paper
from infofeat_jax.runtime import files, processes
from infofeat_jax.types import InvalidInput, check_choice

EXAMPLE = "method.weight=0.5"


class Planned(NamedTuple):
    """A planned run of a study."""

    row: str  # of the report's table; runs of one row differ only in the seed
    config: ConfigDict  # resolved

    @property
    def name(self) -> str:
        """The name of its directory, and of its model in transfer attacks (config.eval.attacks)."""
        return f"{self.row}-seed{self.config.seed}"


def plan(config: ConfigDict) -> list[Planned]:
    """The runs of config.study, seed by seed, so that an interrupted study covers all rows. Raises InvalidInput."""
    config_checks.check_types(config, configs.default())
    if not config.study.seeds:
        raise InvalidInput("config.study.seeds is empty: expected seeds such as (0, 1, 2)")
    if config.study.paper:
        check_choice("config.study.paper", config.study.paper, paper.TABLES)
    planned = [Planned(*plan_run(config, text, seed)) for seed in config.study.seeds for text in config.study.rows]
    names = [one.name for one in planned]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput(f"config.study has {', '.join(twice)} twice: give the rows different labels")
    return planned


def plan_run(config: ConfigDict, text: str, seed: int) -> tuple[str, ConfigDict]:
    """(label, resolved configuration) for a row "METHOD" or "LABEL: FIELD=VALUE FIELD=VALUE". Raises InvalidInput."""
    label, _, changes = (part.strip() for part in text.partition(":"))
    if not re.fullmatch(r"[\w.+=-]{1,200}", label):
        raise InvalidInput(
            f"config.study.rows: label {label!r} becomes a directory: use up to 200 letters, digits and . _ + = -"
        )
    one = ConfigDict(config.to_dict())
    one.study = configs.default().study
    for change in changes.split() or [f"method.name={label}"]:
        field, equals, value = change.partition("=")
        fields = dict(configs.flatten(config.to_dict()))
        if not equals:
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: expected FIELD=VALUE, such as {EXAMPLE}")
        if field not in fields:
            unknown = config_checks.unknown(field, fields)
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: expected FIELD=VALUE: {unknown}")
        if field == "seed" or field.startswith("study."):
            raise InvalidInput(f"config.study.rows: {change!r} in {text!r}: give --config.study.seeds for all rows")
        try:
            one.update_from_flattened_dict({field: _literal(value)})
        except TypeError as error:
            raise InvalidInput(f"config.study.rows: {change!r}: {' '.join(str(error).split())}") from None
    one.seed = seed
    return label, configs.resolve(one)


def describe(config: ConfigDict, planned: list[Planned], directory: pathlib.Path) -> None:
    """Writes study.json, which tells the report which runs to expect.

    An existing file keeps its rows and title: such a study adds measurements to another's runs (Table 2, Figure 4).
    Raises InvalidInput if that file is damaged.
    """
    path = directory / "study.json"
    earlier = collect.read_description(path)
    runs = earlier.get("runs", {}) | {one.name: {"row": one.row, "seed": one.config.seed} for one in planned}
    values = {"title": config.study.title, "paper": config.study.paper, "note": config.data.note}
    values = {name: earlier.get(name) or value for name, value in values.items()} | {"runs": runs}
    directory.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(values, indent=2) + "\n")


def run_all(planned: list[Planned], directory: pathlib.Path, act: Callable[[ConfigDict, pathlib.Path], Any]) -> None:
    """Calls `act(config, workdir)`, which trains or evaluates, for each unfinished run."""
    for index, one in enumerate(planned):
        finished = run.is_finished(one.config, directory / one.name)
        if processes.is_writer():
            print(f"\n[{index + 1}/{len(planned)}] {one.name}{': finished' if finished else ''}", flush=True)
        if not finished:
            act(one.config, directory / one.name)


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # the last two: too many brackets
        return text
