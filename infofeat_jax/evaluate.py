"""Robust accuracy of a trained model: which test examples each attack leaves correctly classified."""

import json
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module
from jax.sharding import Mesh
from ml_collections import ConfigDict

from infofeat_jax import attacks, cascade, checkpoint, metrics, parallel
from infofeat_jax import config as configs
from infofeat_jax.data import Split
from infofeat_jax.data.batches import padded_batches
from infofeat_jax.report import table
from infofeat_jax.run import Run, create_state
from infofeat_jax.types import Attack, InvalidInput

# The evaluation's attacks: a name, for iterated ones followed by the number of steps ("pgd20").
ITERATED = ("pgd", "cw", "infofeature")
OneBatch = Callable  # (variables, key, (images uint8, labels)) -> correct [b]


def create_attack(name: str, *, norm: str, epsilon: float, step_size: float) -> Attack | None:
    """The attack behind a name as in config.eval.attacks; None for "clean". Raises InvalidInput.

    `epsilon` and `step_size` in the images' units.
    """
    if name == "clean":
        return None
    if name == "fgsm":
        return partial(attacks.fgsm, epsilon=epsilon, norm=norm)
    if name == "noise":
        return partial(attacks.pgd, epsilon=epsilon, norm=norm, num_steps=0)
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)", name)
    if match and match[1] in ITERATED:
        attack = attacks.ATTACKS[match[1]]
        return partial(attack, epsilon=epsilon, norm=norm, step_size=step_size, num_steps=int(match[2]))
    choices = ", ".join(["clean", "fgsm", "noise", *(f"{name}N" for name in ITERATED), "autoattack"])
    raise InvalidInput(f"unknown attack {name!r} in config.eval: choose of {choices} (N steps, as pgd20)")


def compile_attack(module: Module, attack: Attack | None, mesh: Mesh) -> OneBatch:
    """Compiles attack and classification of one batch; the weights are arguments, so that it serves every epoch."""

    def one_batch(variables, key, batch):
        images, labels = batch[0].astype(jnp.float32) / 255, batch[1]
        forward = partial(module.apply, variables)
        if attack is not None:
            images = attack(forward, key, images, labels)
        return forward(images).logits.argmax(-1) == labels

    return parallel.parallelize_batch(one_batch, mesh)


def correct(one_batch: OneBatch, mesh: Mesh, variables, key, split: Split, batch_size: int) -> Iterator[np.ndarray]:
    """Yields for each batch of `split` which of its examples stay correctly classified."""
    for index, (images, labels, mask) in enumerate(padded_batches(split, batch_size)):
        batch = parallel.shard(mesh, (images, labels))
        yield np.asarray(one_batch(variables, jax.random.fold_in(key, index), batch))[mask]


def check_attacks(config: ConfigDict) -> None:
    """Raises InvalidInput for unknown attack names, before anything expensive starts."""
    if not config.eval.attacks:
        raise InvalidInput("config.eval.attacks is empty: expected names such as ('clean', 'pgd20')")
    for name in (*config.eval.attacks, config.eval.validation_attack):
        if name != "autoattack" or name == config.eval.validation_attack:
            create_attack(name, **budget(config))


def budget(config: ConfigDict) -> dict:
    """The threat model of the evaluation in the images' units."""
    return {
        "norm": config.attack.norm,
        "epsilon": config.attack.epsilon / configs.LEVELS,
        "step_size": config.eval.step_size / configs.LEVELS,
    }


def evaluate(run: Run) -> dict:
    """Evaluates the run's checkpoint under config.eval.attacks; writes results.json and outcomes.npz."""
    config = run.config
    with checkpoint.manager(run.workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
        step = checkpoint.find(checkpoints, config.eval.checkpoint)
        state = checkpoint.restore(checkpoints, step, create_state(run))
    count = config.eval.num_examples or len(run.data.test.labels)
    split = Split(*(array[:count] for array in run.data.test))
    outcomes, seconds = attack_all(run, state.variables, split, step)
    results = {name: float(outcome.mean()) for name, outcome in outcomes.items()}
    results |= {
        "worst_case": worst_case(outcomes),
        "checkpoint": config.eval.checkpoint,
        "checkpoint_step": step,
        "num_examples": len(split.labels),
        "seconds": sum(seconds.values()),
        "seconds_per_attack": seconds,
        **run.facts(),
        "config": config.to_dict(),
    }
    if parallel.is_writer():
        save(run.workdir, results, outcomes)
        table.show(run.workdir)
    return results


def worst_case(outcomes: Mapping[str, np.ndarray]) -> float:
    """The share of examples that every attack leaves correct, of those that every attack was tried on."""
    shortest = min(len(outcome) for outcome in outcomes.values())
    return float(np.all([outcome[:shortest] for outcome in outcomes.values()], axis=0).mean())


def attack_all(
    run: Run, variables, split: Split, checkpoint_step: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({attack: correct [n]}, {attack: seconds}); AutoAttack may be on the first few examples only."""
    outcomes, seconds = {}, {}
    names = run.config.eval.attacks
    with metrics.progress(len(names), active=parallel.is_writer()) as show:
        for index, name in enumerate(names):
            start = time.perf_counter()

            def tell(text: str, share: float = 0.0, index=index, name=name) -> None:
                show(index + share, f"{name}: {text}")

            if name == "autoattack":
                outcome = cascade.attack(
                    run, variables, split, checkpoint_step,
                    lambda p, tell=tell: tell(f"{p.stage}, {p.survivors} of {p.examples} left", p.done),
                )  # fmt: skip
            else:
                outcome = one_attack(run, name, variables, split, tell)
            outcomes[name], seconds[name] = outcome, round(time.perf_counter() - start, 2)
            show(index + 1, name, f"{name}: {outcome.mean():.1%} of {len(outcome)} correct ({seconds[name]:.0f} s)")
    return outcomes, seconds


def one_attack(run: Run, name: str, variables, split: Split, tell: Callable) -> np.ndarray:
    """Which examples of `split` the attack `name` leaves correctly classified."""
    size = run.config.eval.batch_size
    one_batch = compile_attack(run.module, create_attack(name, **budget(run.config)), run.mesh)
    key, parts = jax.random.fold_in(jax.random.key(run.config.seed), 1), []
    for part in correct(one_batch, run.mesh, variables, key, split, size):
        parts.append(part)
        tell(f"{np.concatenate(parts).mean():.1%} correct", len(parts) * size / len(split.labels))
    return np.concatenate(parts)


def save(workdir: pathlib.Path, results: Mapping, outcomes: Mapping[str, np.ndarray]) -> None:
    """Writes per-example outcomes, then results.json, each whole or not at all."""
    metrics.write_arrays_atomically(workdir / "outcomes.npz", outcomes)
    metrics.write_atomically(workdir / "results.json", json.dumps(results, indent=2) + "\n")
