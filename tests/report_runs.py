"""Runs and studies written by hand instead of by training, for the tests of the report."""

import json
import pathlib

import numpy as np
from sklearn.datasets import load_digits

from infofeat_jax import config as configs
from infofeat_jax.report import (
    collect,
    tables,
)  # fmt: skip
from infofeat_jax.report.lines import Line

MEASURED = {"clean": 0.85, "fgsm": 0.7, "pgd7": 0.55, "pgd20": 0.5, "cw20": 0.45}
EPOCHS = 3


def create_config(method: str = "madry", seed: int = 0, **changes) -> dict:
    config = configs.for_method(configs.default(), method)
    config.seed, config.num_epochs = seed, EPOCHS
    config.update_from_flattened_dict(changes)
    return json.loads(configs.to_json(configs.resolve(config)))


def create_results(config: dict, accuracies: dict, **more) -> dict:
    facts = {
        "worst_case": min(accuracies.values()), "examples": dict.fromkeys(accuracies, 2000), "num_examples": 2000,
        "checkpoint": "best", "checkpoint_step": 30, "seconds": 12.5,
        "seconds_per_attack": dict.fromkeys(accuracies, 2.5),
        "training_seconds": 1234.5, "finished": True, "data": config["data"]["name"], "train_images": 49_000,
        "hardware": "1 x cpu (2 x86_64 cores)", "jax": "0.10.2", "config": config,
    }  # fmt: skip
    return accuracies | facts | more


def write_run(directory: pathlib.Path, config: dict, results: dict | None, epochs: int = EPOCHS) -> pathlib.Path:
    """A run's directory, written by hand instead of by training."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    lines = [{"step": 1, "loss": 2.0}]
    for epoch in range(1, epochs + 1):
        accuracy = {"validation_clean_accuracy": 0.2 * epoch, "validation_robust_accuracy": 0.1 * epoch}
        lines.append({"step": 10 * epoch, "epoch": epoch, "epoch_seconds": 9.5, **accuracy})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results is not None:
        (directory / "results.json").write_text(json.dumps(results))
    return directory


def write_study(directory: pathlib.Path, planned: dict, **fields) -> pathlib.Path:
    directory.mkdir(exist_ok=True)
    rows = {name: {"row": row, "seed": seed} for name, (row, seed) in planned.items()}
    (directory / "study.json").write_text(json.dumps({"title": "", "paper": "", "runs": rows} | fields))
    return directory


def simple_run(directory: pathlib.Path, method: str = "madry", seed: int = 0, shift: float = 0.0, **changes):
    """A finished run whose accuracies are MEASURED + shift."""
    config = create_config(method, seed, **changes)
    accuracies = {name: round(value + shift, 4) for name, value in MEASURED.items()}
    return write_run(directory / f"{method}-seed{seed}", config, create_results(config, accuracies))


def full_study(directory: pathlib.Path) -> pathlib.Path:
    """Three seeds of madry, one of infofeature with everything there can be, and one of alp that is missing."""
    for seed, shift in enumerate((0.0, 0.02, 0.07)):
        simple_run(directory, seed=seed, shift=shift)
    config = create_config("infofeature", **{"data.note": "JPEG re-encoding"})
    more = {f"{name}{steps}": 0.6 - 0.01 * steps for name in ("pgd", "infofeature") for steps in (1, 2, 3, 5, 10)}
    more |= {"autoattack": 0.4, "noise": 0.8, "pgd10@madry-seed0": 0.75, "cw10@../other/standard-seed0": 0.7}
    results = create_results(
        config, MEASURED | more, distances={"cw5": 0.1234},
        flags=["PGD20 leaves <b>12 points</b> more than AutoAttack."],
        latest=create_results(config, {name: value - 0.05 for name, value in MEASURED.items()}),
        live=create_results(config, {name: value - 0.01 for name, value in MEASURED.items()}),
    )  # fmt: skip
    results["examples"]["autoattack"] = 200
    run = write_run(directory / "infofeature-seed0", config, results)
    np.savez(run / "cam_images.npz", **create_cam_images())
    planned = {f"madry-seed{seed}": ("madry", seed) for seed in range(3)}
    planned |= {"infofeature-seed0": ("infofeature", 0), "alp-seed0": ("alp", 0)}
    return write_study(directory, planned, title="Rows & <script>alert(1)</script>_%", paper="table1", note="a {note}")


def create_cam_images() -> dict[str, np.ndarray]:
    rng, count = np.random.default_rng(0), 3
    images = (load_digits().images[:count, ..., None] / 16).astype(np.float32)
    perturbed = np.clip(images + rng.choice([-0.125, 0.125], images.shape), 0, 1).astype(np.float32)
    maps = rng.uniform(size=(2, count, 4, 4)).astype(np.float32)
    return {
        "images": images, "perturbed": perturbed, "cam_clean": maps[0], "cam_perturbed": maps[1],
        "labels": np.arange(count), "predicted_clean": np.arange(count), "predicted_perturbed": np.array([7, 7, 7]),
        "attack": np.array("infofeature20"), "epsilon": np.array(0.125),
    }  # fmt: skip


def lines_of(table: tables.Table, label: str) -> list[Line]:
    """The row `label` with its parts."""
    start = next(index for index, line in enumerate(table.lines) if line.label == label and line.kind == "row")
    rest = table.lines[start + 1 :]
    end = next((index for index, line in enumerate(rest) if line.kind == "row"), len(rest))
    return [table.lines[start], *rest[:end]]


def gaps(directory: pathlib.Path) -> dict[str, str]:
    return {run.name: run.gap for row in collect.collect(directory).rows for run in row.gaps}
