"""Robust accuracy of a trained model: each attack's outcome on each test example, and what follows from them."""

import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PyTree, Shaped
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import experiment as runs
from infofeat_jax.data import Split
from infofeat_jax.evaluation import accuracy, autoattack, cam_images, distances, heuristics, probes
from infofeat_jax.evaluation.probes import Probes
from infofeat_jax.experiment import Run
from infofeat_jax.report import terminal
from infofeat_jax.runtime import console, files, processes
from infofeat_jax.training import checkpoint, records

OUTCOMES = "outcomes.npz"
DISTANCE = "distance/"  # before the names of distances, beside the attacks' outcomes
RANDOM_STARTS, PICTURES, PROBES = 1, 3, 4  # folded into the run's key; AutoAttack folds in 2


def evaluate(run: Run) -> dict:
    """Evaluates the run's checkpoints under config.eval; writes results.json, outcomes.npz and pictures.npz.

    What an earlier evaluation in the same setting has measured is taken over, not measured again.
    """
    which = run.config.eval.checkpoint
    split = Split(*(array[: run.config.eval.num_examples or None] for array in run.data.test))
    results = evaluate_checkpoint(run, split, "best" if which == "both" else which, run.workdir / OUTCOMES)
    if which == "both":
        path = run.workdir / "outcomes_latest.npz"
        results["latest"] = evaluate_checkpoint(run, split, "latest", path)
    epochs = records.read(run.workdir / "metrics.jsonl")
    results["training_seconds"] = round(sum(record.get("epoch_seconds", 0) for record in epochs), 1)
    results["finished"] = checkpoint.latest_step(run.workdir) == run.config.num_epochs * run.steps_per_epoch
    if run.config.eval.torch_checkpoint:
        results["checkpoint"] = run.config.eval.torch_checkpoint
    results |= {**run.facts(), "config": run.config.to_dict()}
    if processes.is_writer():
        files.write_atomically(run.workdir / "results.json", json.dumps(results, indent=2) + "\n")
        terminal.show(run.workdir)
    return results


def is_finished(config: ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether `workdir` holds a trained run with the results that `config` asks for."""
    try:
        results = json.loads((workdir / "results.json").read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return results.get("finished") and json.dumps(configs.complete(results["config"]), sort_keys=True) == json.dumps(
        config.to_dict(), sort_keys=True
    )


def evaluate_checkpoint(run: Run, split: Split, which: str, path: pathlib.Path) -> dict:
    """The figures of the "best" or "latest" checkpoint; the outcomes they follow from are kept in `path`."""
    state = runs.restore(run, which)
    setting = describe_setting(run, state.variables, len(split.labels))
    outcomes, seconds = measure(run, state.variables, split, setting, path)
    if which == "best" and run.config.eval.pictures:
        take_pictures(run, state.variables, split, setting)
    count = len(split.labels[: run.config.eval.autoattack_examples or None])
    stages = autoattack.after_stages(run.workdir, setting, count) if "autoattack" in outcomes else {}
    probed = probe(run, state.variables, split) if run.config.eval.probe_examples else None
    attacked = {name: outcome for name, outcome in outcomes.items() if not name.startswith(DISTANCE)}
    return summarise(outcomes, seconds) | {
        "autoattack_stages": {name: float(outcome.mean()) for name, outcome in stages.items()},
        "flags": heuristics.flags(probed, attacked, stages),
        "checkpoint": which,
        "checkpoint_step": int(state.step),
        "num_examples": len(split.labels),
    }


def probe(run: Run, variables: PyTree, split: Split) -> Probes:
    """A few cheap looks at the model, for the flags."""
    images, labels = (array[: run.config.eval.probe_examples] for array in split)
    forward = Partial(run.module.apply, jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), variables))
    key = jax.random.fold_in(jax.random.key(run.config.seed), PROBES)
    inputs = jnp.asarray(images / 255, jnp.float32), jnp.asarray(labels)
    return probes.probe(forward, key, *inputs, **accuracy.budget(run.config))


def summarise(outcomes: Mapping[str, np.ndarray], seconds: Mapping[str, float]) -> dict:
    """Accuracies by attack, the worst case, the distances, and how long it took."""
    attacked = {name: outcome for name, outcome in outcomes.items() if not name.startswith(DISTANCE)}
    apart = {name.removeprefix(DISTANCE): outcomes[name] for name in outcomes if name not in attacked}
    return {name: float(outcome.mean()) for name, outcome in attacked.items()} | {
        "worst_case": worst_case(attacked),
        "examples": {name: len(outcome) for name, outcome in attacked.items()},
        "distances": {name: float(values.mean()) for name, values in apart.items()},
        "seconds": round(sum(seconds.values()), 2),
        "seconds_per_attack": dict(seconds),
    }


def worst_case(outcomes: Mapping[str, np.ndarray]) -> float:
    """The share of examples that every attack leaves correct, of those that every attack was tried on."""
    shortest = min(len(outcome) for outcome in outcomes.values())
    return float(np.all([outcome[:shortest] for outcome in outcomes.values()], axis=0).mean())


def describe_setting(run: Run, variables: PyTree, count: int) -> str:
    """All that an outcome depends on but the attack: two outcomes of one setting belong side by side."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    config = run.config
    if config.model.mean or config.model.std or config.model.options:
        digest.update(configs.to_json(config.model).encode())
    fields = {"weights": digest.hexdigest(), **accuracy.budget(config), "seed": config.seed, "num_examples": count}
    return json.dumps(fields | {"batch_size": config.eval.batch_size, "dtype": config.dtype, "data": run.data.name})


def measure(
    run: Run, variables: PyTree, split: Split, setting: str, path: pathlib.Path
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({attack: correct [n], "distance/ATTACK": distance [n]}, {name: seconds}), saved in `path` after each."""
    names = [*run.config.eval.attacks, *(DISTANCE + name for name in run.config.eval.distances)]
    outcomes, seconds = load(path, setting) or load(run.workdir / OUTCOMES, setting) or ({}, {})
    with console.progress(len(names), active=processes.is_writer()) as show:
        for index, name in enumerate(names):
            count = run.config.eval.autoattack_examples if name == "autoattack" else 0
            if name in outcomes and len(outcomes[name]) == len(split.labels[: count or None]):
                show(index + 1, name, f"{describe(name, outcomes[name])}, measured before")
                continue
            start = time.perf_counter()

            def tell(text: str, share: float = 0.0, index=index, name=name) -> None:
                show(index + share, f"{name}: {text}")

            outcomes[name] = measure_one(run, name, variables, split, setting, tell)
            seconds[name] = round(time.perf_counter() - start, 2)
            if processes.is_writer():
                kept = {"setting": setting, "seconds": json.dumps(seconds)}
                files.write_arrays_atomically(path, outcomes | kept)
            show(index + 1, name, f"{describe(name, outcomes[name])} ({seconds[name]:.0f} s)")
    return outcomes, seconds


def load(path: pathlib.Path, setting: str) -> tuple[dict[str, np.ndarray], dict[str, float]] | None:
    """What `path` holds of the same setting: (outcomes, seconds)."""
    arrays = files.read_arrays(path, setting)
    return None if arrays is None else (arrays, json.loads(str(arrays.pop("seconds"))))


def describe(name: str, outcome: np.ndarray) -> str:
    """One measured value in words."""
    if name.startswith(DISTANCE):
        return f"distance of {name.removeprefix(DISTANCE)} to PGD: {outcome.mean():.3f}"
    return f"{name}: {outcome.mean():.1%} of {len(outcome)} correct"


def measure_one(
    run: Run, name: str, variables: PyTree, split: Split, setting: str, tell: Callable
) -> Shaped[np.ndarray, " n"]:
    """The outcome of one attack, or one distance, on each example of `split`."""
    key = jax.random.fold_in(jax.random.key(run.config.seed), RANDOM_STARTS)
    if name == "autoattack":
        return autoattack.attack(
            run, variables, split, setting, lambda p: tell(f"{p.stage}, {p.survivors} of {p.examples} left", p.done)
        )
    if name.startswith(DISTANCE):
        return distances.to_pgd(run, name.removeprefix(DISTANCE), variables, key, split)
    attack, source = accuracy.split_name(name)
    attack, module = accuracy.create_attack(attack, **accuracy.budget(run.config)), None
    if source:
        other = runs.source(run, source)
        module, variables = other.module, (variables, runs.restore(other, "best").variables)
    one_batch, parts = accuracy.compile_attack(run.module, attack, run.mesh, module), []
    for part in accuracy.correct(one_batch, run.mesh, variables, key, split, run.config.eval.batch_size):
        parts.append(part)
        tell(f"{np.concatenate(parts).mean():.1%} correct", len(parts) * run.config.eval.batch_size / len(split.labels))
    return np.concatenate(parts)


def take_pictures(run: Run, variables: PyTree, split: Split, setting: str) -> None:
    """Writes pictures.npz unless it holds them."""
    path, key = run.workdir / "pictures.npz", jax.random.fold_in(jax.random.key(run.config.seed), PICTURES)
    if not processes.is_writer() or load(path, setting):
        return
    arrays = cam_images.take(run, variables, key, split)
    files.write_arrays_atomically(path, arrays | {"setting": setting, "seconds": "{}"})
