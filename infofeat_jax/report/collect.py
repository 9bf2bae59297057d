"""What lies in a directory of runs: those whose figures may stand side by side, and a stated reason for all others."""

import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from infofeat_jax import config as configs
from infofeat_jax.report import paper
from infofeat_jax.training import records
from infofeat_jax.types import InvalidInput, check_choice

UNFINISHED, LEFT_OUT = ("in training", "not evaluated"), "left out: "  # beginnings of reasons
# Fields without which a figure cannot be judged.
NEEDED = (
    "seed", "batch_size", "num_epochs", "model.name", "model.width", "data.name", "data.train_size", "method.name",
    "attack.norm", "attack.epsilon", "attack.step_size", "attack.num_steps", "eval.attacks", "eval.step_size",
    "eval.validation_attack",
)  # fmt: skip


class Run(NamedTuple):
    """One directory. Its figures count only if `gap`, the reason why they must not, is empty."""

    name: str
    row: str  # of the table; runs of one row differ in the seed alone
    seed: int
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
    runs: list[Run]  # to aggregate, by seed
    gaps: list[Run]  # to name with their reasons


class Study(NamedTuple):
    """All that the report shows."""

    directory: pathlib.Path
    title: str
    paper: str  # the paper's table to compare with, "" for none
    notes: list[str]  # what the user says of the data
    rows: list[Row]

    @property
    def runs(self) -> list[Run]:
        """The runs that count."""
        return [run for row in self.rows for run in row.runs]


def collect(directory: pathlib.Path) -> Study:
    """The study in `directory`; for the directory of a run: the runs beside it. Raises InvalidInput."""
    directory, own = directory.absolute(), ""
    if (directory / "config.json").exists() or (directory / "results.json").exists():
        directory, own = directory.parent, directory.name
    description = read_description(directory / "study.json")
    runs = [read_run(directory / name, **where) for name, where in find_runs(directory, description).items()]
    if not runs:
        raise InvalidInput(f"no run in {directory}: train first, or give the directory of a run or a study")
    runs = mark_rows(mark_disagreements(runs, own, with_model=not description))
    labels = dict.fromkeys(run.row for run in runs)
    rows = [
        Row(
            label,
            sorted((run for run in runs if run.row == label and not run.gap), key=lambda run: run.seed),
            [run for run in runs if run.row == label and run.gap],
        )
        for label in labels
    ]
    if not description:  # as good as any order, and the best stand together
        rows.sort(key=lambda row: [run.results.get("pgd20", 0.0) for run in row.runs] or [2.0])
    notes = [description.get("note", ""), *(run.config.get("data", {}).get("note", "") for run in runs)]
    return Study(
        directory, description.get("title") or directory.name, description.get("paper", ""),
        list(dict.fromkeys(filter(None, notes))), rows,
    )  # fmt: skip


def read_description(path: pathlib.Path) -> dict:
    """study.json, {} without one. Raises InvalidInput if it does not say which runs there are to be."""
    if not path.exists():
        return {}
    description = _read_json(path)
    runs = description.get("runs") if isinstance(description, dict) else None
    complete = isinstance(runs, dict) and all(
        isinstance(run, dict) and {"row", "seed"} <= set(run) for run in runs.values()
    )
    if not complete:
        raise InvalidInput(
            f'{path}: expected JSON with "runs": {{"NAME": {{"row": ..., "seed": ...}}}}: remove it, do the study again'
        )
    if description.get("paper"):
        check_choice(f"table of the paper in {path}", description["paper"], paper.TABLES)
    return description


def find_runs(directory: pathlib.Path, description: Mapping) -> dict[str, dict]:
    """{name: {"row", "seed"}} of the runs that are to be there, or else of those that are."""
    if description:
        return {name: {"row": run["row"], "seed": run["seed"]} for name, run in description["runs"].items()}
    names = sorted({path.parent.name for file in ("config", "results") for path in directory.glob(f"*/{file}.json")})
    return {name: {"row": re.sub(r"-seed\d+$", "", name), "seed": None} for name in names}


def read_run(directory: pathlib.Path, row: str, seed: int | None) -> Run:
    """A run with what its files say; `seed` as expected, None for the one that it was trained with."""
    config, results = _read_json(directory / "config.json"), _read_json(directory / "results.json")
    epochs = [line for line in records.read(directory / "metrics.jsonl") if "epoch" in line]
    gap = find_gap(config, results, epochs)
    config, results = (value if isinstance(value, dict) else {} for value in (config, results))
    config = config or results.get("config", {})
    trained_with = config.get("seed")
    if not gap and seed not in (None, trained_with):
        gap = f"trained with seed {trained_with}, not {seed}"
    return Run(directory.name, row, trained_with if seed is None else seed, gap, config, results, epochs)


def find_gap(config: object, results: object, epochs: list[dict]) -> str:
    """Why a run's results must not be used; "" if they may. None stands for a missing file, text for a broken one."""
    if isinstance(config, str):
        return f"config.json is damaged: {config}"
    if isinstance(results, str):
        return f"results.json is damaged: {results}"
    if not config and not results:
        return "missing"
    if config and (problem := find_missing(config)):
        return f"config.json is damaged: {problem}"
    if results and (problem := find_damage(results)):
        return f"results.json is damaged: {problem}"
    total, done = (config or results["config"])["num_epochs"], max((line["epoch"] for line in epochs), default=0)
    if not results:
        return "not evaluated" if done >= total else f"in training: epoch {done} of {total}"
    if total and not results.get("finished", done >= total or not epochs):  # 0 epochs: weights from a file
        return f"evaluated before the end of its training: epoch {done} of {total}"
    # Evaluated with another budget; weights from a file on whatever data.
    if total and (changed := _changed(config or {}, results["config"], free=("attack.",))):
        return f"results.json is of another configuration than config.json: {changed}"
    return ""


def find_damage(results: Mapping) -> str:
    """What makes results.json unusable: a setting that is missing, an accuracy that is none."""
    for field, kind in (("config", dict), ("num_examples", int), ("checkpoint", str)):
        if not isinstance(results.get(field), kind):
            return f"{field} = {results.get(field)!r}"
    if problem := find_missing(results["config"]):
        return problem
    if results["num_examples"] < 1:
        return f"num_examples = {results['num_examples']!r}"
    asked = [name for name in results["config"]["eval"]["attacks"] if name in results]
    for name in (*asked, *results.get("examples", {})):
        value = results.get(name)
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            return f"{name} = {value!r}"
    return "" if asked else "it has none of the attacks of config.eval.attacks"


def find_missing(config: Mapping) -> str:
    """The fields that the report cannot do without and `config` has not."""
    absent = sorted(set(NEEDED) - dict(configs.flatten(config)).keys())
    return f"config has no {', '.join(absent)}" if absent else ""


def accuracies(results: Mapping) -> dict[str, tuple[float, int]]:
    """{attack: (accuracy in [0, 1], number of examples)}."""
    whole = dict.fromkeys(results["config"]["eval"]["attacks"], results["num_examples"])
    if limit := results["config"]["eval"].get("autoattack_examples") or 0:
        whole["autoattack"] = min(limit, results["num_examples"])
    counts = results.get("examples") or whole
    return {name: (results[name], count) for name, count in counts.items() if name in results}


def mark_disagreements(runs: list[Run], own: str, *, with_model: bool) -> list[Run]:
    """Turns runs into gaps whose data or evaluation differs from that of the run `own`, or else of most runs."""
    settings = {run.name: setting(run, with_model=with_model) for run in runs if not run.gap or run.unfinished}
    finished = [settings[run.name] for run in runs if not run.gap] or list(settings.values())
    if not finished:
        return runs
    counts = Counter(json.dumps(value, sort_keys=True) for value in finished)
    common = settings.get(own) or json.loads(counts.most_common(1)[0][0])
    examples: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: run.name != own):
        if settings.get(run.name) == common and not run.gap:
            examples = {name: count for name, (_, count) in accuracies(run.results).items()} | examples
    marked = []
    for run in runs:
        if differing := _disagreement(run, settings.get(run.name, {}), common, examples):
            run = run._replace(gap=f"{run.gap}; " * bool(run.gap) + LEFT_OUT + differing)
        marked.append(run)
    return marked


def setting(run: Run, *, with_model: bool) -> dict:
    """What has to agree for two runs to stand in one table: data, threat model, evaluation, and perhaps the model."""
    config = dict(configs.flatten(run.results.get("config", run.config)))
    names = ["attack.norm", "attack.epsilon", "eval.step_size", "eval.validation_attack"]
    names += [name for name in config if name.startswith("data.") and name not in ("data.data_dir", "data.note")]
    names += [name for name in config if name.startswith("model.") and with_model]
    fields = {name: config[name] for name in names}
    if not run.results:
        return fields
    checkpoint = "best" if config.get("eval.torch_checkpoint") else run.results["checkpoint"]  # a file is as given
    return fields | {"number of test images": run.results["num_examples"], "checkpoint": checkpoint}


def mark_rows(runs: list[Run]) -> list[Run]:
    """Turns into gaps the runs that differ from the first of their row in more than the seed, or not even in that."""
    first, seen, marked = {}, {}, []
    for run in runs:
        if not run.gap:
            earlier = first.setdefault(run.row, run)
            twin = seen.setdefault((run.row, run.seed), run)
            if changed := _changed(earlier.config, run.config, free=("seed",)):
                run = run._replace(gap=f"{LEFT_OUT}differs from {earlier.name} in {changed}")
            elif twin is not run:
                run = run._replace(gap=f"{LEFT_OUT}row and seed of {twin.name}")
        marked.append(run)
    return marked


def _disagreement(run: Run, own: Mapping, common: Mapping, examples: Mapping[str, int]) -> str:
    pairs = {name: (own[name], common[name]) for name in own.keys() & common.keys()}
    if not run.gap:
        counts = {name: count for name, (_, count) in accuracies(run.results).items()}
        pairs |= {f"number of images under {name}": (n, examples.get(name, n)) for name, n in counts.items()}
    return "; ".join(
        f"{name} is {one!r}, elsewhere {other!r}" for name, (one, other) in sorted(pairs.items()) if one != other
    )


def _changed(one: Mapping, other: Mapping, free: tuple[str, ...]) -> str:
    """The fields that alter training and differ, but for `free` and those that only one of them knows."""
    one, other = dict(configs.flatten(one)), dict(configs.flatten(other))
    return "; ".join(
        f"{name} ({one[name]!r}, {other[name]!r})"
        for name in one
        if name in other and one[name] != other[name] and not name.startswith(configs.FREE + free)
    )


def _read_json(path: pathlib.Path) -> object:
    """The file's object; None without the file, the error's text if it is not readable."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not even text
        return str(error)
    return value if isinstance(value, dict) else "not a JSON object"
