"""Fewer stages of AutoAttack beside the whole, on trained models: accuracy, cost, and on which images they differ.

  python benchmarks/quick_tier.py runs/study/madry-seed0 runs/study/infofeature-seed0 --examples=200

For each run's best checkpoint, on its first test images in its own threat model, prints a row of a Markdown table for
each candidate. All start from the same random numbers. "disagree": images that the candidate leaves correct and the
whole does not, or the other way round. Cost is in forward passes for an image, gradients counted as two; seconds
include compilation.
"""

import argparse
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import infofeat_jax
from infofeat_jax import data, experiment, streams, threat, weights
from infofeat_jax.attacks.autoattack import ROBUST, steps
from infofeat_jax.attacks.stages import CHANGES, STAGES, VERSIONS, plan_of
from infofeat_jax.runtime import compilation

# {candidate: {stage: options}}; the first is what the others are compared with.
CANDIDATES: dict[str, Mapping[str, Mapping[str, Any]]] = {
    "whole": {name: {} for name in VERSIONS["standard"]},
    "quick": {name: CHANGES["quick"].get(name, {}) for name in VERSIONS["quick"]},
    "9 targets, 40 steps": {"apgd-ce": {"num_steps": 40}, "apgd-t": {"num_steps": 40}},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="directories of trained runs")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=100)
    args = parser.parse_args()
    compilation.tune_cpu()
    print(
        "| method | stages | accuracy, % | disagree | forward passes per image | seconds |\n|---|---|---|---|---|---|"
    )
    for directory in args.runs:
        compare(directory, args.examples, args.batch_size)


def compare(directory: pathlib.Path, count: int, batch_size: int) -> None:
    """Prints the rows of one run."""
    config, forward = ConfigDict(weights.read_config(directory)), infofeat_jax.load(directory)
    options = {"validation_size": config.data.validation_size, "data_dir": config.data.data_dir or None}
    split = data.load(config.data.name, **options).test
    images, labels = np.asarray(data.to_unit(split.images[:count])), split.labels[:count]
    budget = experiment.create_budget(config)
    model, num_classes = threat.threat(budget.norm, budget.epsilon), forward(images[:1]).logits.shape[-1]
    key, whole = streams.key(config.seed, "autoattack"), None
    for name, stages in CANDIDATES.items():
        start = time.perf_counter()
        searches = {stage: STAGES[stage](model, num_classes, images.shape[1:3], **o) for stage, o in stages.items()}
        for _, state in steps(plan_of(searches), forward, key, images, labels, batch_size=batch_size):  # noqa: B007
            pass
        seconds, correct = time.perf_counter() - start, state.broken_by == ROBUST
        whole = correct if whole is None else whole
        differ = (correct != whole).sum()
        print(
            f"| {config.method.name} | {name} | {100 * correct.mean():.1f} | {differ} of {len(labels)}"
            f" | {state.cost / len(labels):,.0f} | {seconds:.1f} |", flush=True,
        )  # fmt: skip
    jax.clear_caches()


if __name__ == "__main__":
    main()
