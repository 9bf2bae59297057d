"""The table of a run beside its comparable neighbours, on the terminal."""

import json
import pathlib

from rich.console import Console
from rich.table import Table


def comparable_runs(workdir: pathlib.Path) -> list[dict]:
    """Results in the neighbouring directories of `workdir` (itself included) with the same data and evaluation."""
    runs = []
    for path in sorted(workdir.absolute().parent.glob("*/results.json")):
        try:
            runs.append(json.loads(path.read_text()) | {"path": path.parent.name})
        except (OSError, json.JSONDecodeError):
            continue
    own = next((run for run in runs if run["path"] == workdir.absolute().name), None)
    return [run for run in runs if own and setting(run) == setting(own)]


def setting(results: dict) -> tuple:
    """What has to agree for two rows to stand in one table."""
    config = results["config"]
    attack = {k: config["attack"][k] for k in ("norm", "epsilon")}
    data = {k: v for k, v in config["data"].items() if k != "data_dir"}
    return tuple(json.dumps(part, sort_keys=True) for part in (attack, data, config["eval"], config["model"]))


def attack_names(results: dict) -> list[str]:
    """The columns of a row: the attacks that were evaluated."""
    return [name for name in results["config"]["eval"]["attacks"] if name in results]


def show(workdir: pathlib.Path) -> None:
    """Prints the accuracies of `workdir`'s run and of its comparable neighbours."""
    runs = sorted(comparable_runs(workdir), key=lambda run: run.get("pgd20", 0.0))
    own = next(run for run in runs if run["path"] == workdir.absolute().name)
    data, attack = own["config"]["data"], own["config"]["attack"]
    table = Table(
        title=f"Accuracy in % on {own['num_examples']} test images of {data['name']};"
        f" {attack['norm']} epsilon {attack['epsilon']:g}/255; {own['checkpoint']} checkpoint"
    )
    table.add_column("method")
    for name in attack_names(own):
        table.add_column(name, justify="right")
    for run in runs:
        cells = [f"{100 * run[name]:.1f}" if name in run else "-" for name in attack_names(own)]
        table.add_row(label(run["config"]) + (f" ({run['path']})" if _ambiguous(run, runs) else ""), *cells)
    Console().print(table)


def label(config: dict) -> str:
    """The method, or the file of weights that were not trained here."""
    if config["num_epochs"]:
        return config["method"]["name"]
    return pathlib.Path(config["eval"]["torch_checkpoint"] or config["init_from"]).name


def _ambiguous(run: dict, runs: list[dict]) -> bool:
    return sum(label(other["config"]) == label(run["config"]) for other in runs) > 1
