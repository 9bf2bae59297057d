"""Which runs must not be shown beside the others, and why: damaged files, unfinished runs, differing settings."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeGuard

from infofeat_jax import config as configs
from infofeat_jax.report.runs import LEFT_OUT, RunRecord, accuracies

Number = int | float
# Settings without which an accuracy cannot be judged, and the types that they are stored as.
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "seed": int, "batch_size": int, "num_epochs": int, "model.name": str, "model.width": int, "data.name": str,
    "data.train_size": int, "method.name": str, "attack.norm": str, "attack.epsilon": (int, float),
    "attack.step_size": (int, float, type(None)), "attack.num_steps": (int, type(None)), "eval.attacks": list,
    "eval.step_size": (int, float, type(None)), "eval.validation_attack": str,
}  # fmt: skip
RESULTS: dict[str, type] = {"config": dict, "num_examples": int, "checkpoint": str}
# What results.json may lack, but not hold otherwise.
OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "examples": dict, "distances": dict, "evaluators": dict, "flags": list, "seconds_per_attack": dict,
    "latest": dict, "live": dict, "train_images": int,
    "common": dict, "worst_case": (int, float),
    "given": dict,
}  # fmt: skip
# Fields in which comparable runs may differ: what a recipe trains on is what its study compares; in runs of earlier
# versions each seed held out images of its own.
FREE_DATA = (
    "data.data_dir", "data.note", "data.split_seed", "data.mixup", "data.cutmix", "data.extra", "data.extra_share",
    "data.augment", "data.in_memory",
)  # fmt: skip


def find_gap(config: dict | str | None, results: dict | str | None, epochs: list[dict]) -> str:
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
    recorded = config or (results or {})["config"]
    total, done = recorded["num_epochs"], max((line["epoch"] for line in epochs), default=0)
    if not results:
        return "not evaluated" if done >= total else f"in training: epoch {done} of {total}"
    if total and not results.get("finished", done >= total or not epochs):  # 0 epochs: weights from a file
        return f"evaluated before the end of its training: epoch {done} of {total}"
    # Evaluated with another budget; weights from a file on whatever data.
    if total and (changed := changed_fields(config or {}, results["config"], free=("attack.",))):
        return f"results.json is of another configuration than config.json: {changed}"
    return ""


def find_damage(results: Mapping) -> str:
    """What makes results.json unusable: a missing setting, a value that is no accuracy; "" if nothing does."""
    for field, kind in RESULTS.items():
        if not isinstance(results.get(field), kind):
            return f"{field} = {_short(results.get(field))}"
    for field, kind in OPTIONAL.items():
        if results.get(field) is not None and not isinstance(results[field], kind):
            return f"{field} = {_short(results[field])}"
    if problem := find_missing(results["config"]):
        return problem
    if results["num_examples"] < 1:
        return f"num_examples = {results['num_examples']!r}"
    asked = [name for name in results["config"]["eval"]["attacks"] if name in results]
    counts, seconds = (results.get(field) or {} for field in ("examples", "seconds_per_attack"))
    shares = {name: results.get(name) for name in (*asked, *counts)}
    if results.get("worst_case") is not None:  # None: no attack is within the threat model
        shares["worst_case"] = results["worst_case"]
    for name, value in shares.items():
        if not (_is_finite(value) and 0 <= value <= 1):
            return f"{name} = {_short(value)}"
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            return f"examples = {{{name!r}: {_short(count)}}}"
    others = [results.get(field) or {} for field in ("distances", "evaluators")]
    for name, value in (pair for group in (seconds, *others) for pair in group.items()):
        if not _is_finite(value):
            return f"the seconds, distance or value of {name} = {_short(value)}"
    for part in ("latest", "live", "common"):
        own = results | (results.get(part) or {}) | {part: None}
        if results.get(part) and (problem := find_damage(own)):
            return f"{part}: {problem}"
    return "" if asked or counts else "it has none of the attacks of config.eval.attacks"


def find_missing(config: Mapping) -> str:
    """The settings that the report cannot do without and `config` lacks, or has of another type; "" if none."""
    fields = dict(configs.flatten(config))
    if absent := sorted(SETTINGS.keys() - fields.keys()):
        return f"config has no {', '.join(absent)}"
    wrong = [
        name
        for name, kind in SETTINGS.items()
        if not isinstance(value := fields[name], kind) or (isinstance(value, float) and not math.isfinite(value))
    ]
    if "eval.attacks" not in wrong and not all(isinstance(attack, str) for attack in config["eval"]["attacks"]):
        wrong.append("eval.attacks")
    if "optimizer" in fields:  # a section, not a value
        wrong.append("optimizer")
    return f"config.{wrong[0]} = {_short(fields.get(wrong[0]))}" if wrong else ""


def mark_disagreements(runs: list[RunRecord], own: str, *, with_model: bool) -> list[RunRecord]:
    """Turns runs into gaps whose data or evaluation differs from that of the run `own`, or else of most runs."""
    settings = {run.name: shared_setting(run, with_model=with_model) for run in runs if not run.gap or run.unfinished}
    finished = [settings[run.name] for run in runs if not run.gap] or list(settings.values())
    if not finished:
        return runs
    mine = settings.get(own, {})  # without what the evaluation says, where it is in training
    alike = [value for value in finished if all(value.get(name, part) == part for name, part in mine.items())]
    counts = Counter(json.dumps(value, sort_keys=True) for value in alike or [mine])
    common = json.loads(counts.most_common(1)[0][0])
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


def shared_setting(run: RunRecord, *, with_model: bool) -> dict:
    """What has to agree for two runs to share a table: data, threat model, evaluation, and perhaps the model."""
    config = dict(configs.flatten(run.results.get("config", run.config)))
    names = ["attack.norm", "attack.epsilon", "eval.step_size", "eval.validation_attack"]
    names += [name for name in config if name.startswith("data.") and name not in FREE_DATA]
    names += [name for name in config if name.startswith("model.") and with_model]
    fields = {name: config[name] for name in names}
    if not run.results:
        return fields
    checkpoint = "best" if config.get("eval.torch_checkpoint") else run.results["checkpoint"]  # a file is as given
    return fields | {"number of test images": run.results["num_examples"], "checkpoint": checkpoint}


def mark_rows(runs: list[RunRecord]) -> list[RunRecord]:
    """Turns into gaps the runs that differ from the first of their row in more than the seed, or not even in that."""
    first, seen, marked = {}, {}, []
    for run in runs:
        if not run.gap:
            earlier = first.setdefault(run.row, run)
            twin = seen.setdefault((run.row, run.seed), run)
            if changed := changed_fields(earlier.config, run.config, free=("seed",)):
                run = run._replace(gap=f"{LEFT_OUT}differs from {earlier.name} in {changed}")
            elif twin is not run:
                run = run._replace(gap=f"{LEFT_OUT}row and seed of {twin.name}")
        marked.append(run)
    return marked


def changed_fields(one: Mapping, other: Mapping, free: tuple[str, ...]) -> str:
    """The fields that alter training and differ, but for `free` and those that only one of them knows."""
    one, other = dict(configs.flatten(one)), dict(configs.flatten(other))
    return "; ".join(
        f"{name} ({one[name]!r}, {other[name]!r})"
        for name in one
        if name in other and one[name] != other[name] and not name.startswith(configs.FREE + free)
    )


def _disagreement(run: RunRecord, own: Mapping, common: Mapping, examples: Mapping[str, int]) -> str:
    pairs = {name: (own[name], common[name]) for name in own.keys() & common.keys()}
    if not run.gap:
        counts = {name: count for name, (_, count) in accuracies(run.results).items()}
        pairs |= {f"number of images under {name}": (n, examples.get(name, n)) for name, n in counts.items()}
    return "; ".join(
        f"{name} is {one!r}, elsewhere {other!r}" for name, (one, other) in sorted(pairs.items()) if one != other
    )


def _is_finite(value: Any) -> TypeGuard[Number]:
    return isinstance(value, Number) and math.isfinite(value)


def _short(value: object) -> str:
    return repr(value)[:60]
