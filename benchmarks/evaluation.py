"""The speed of each attack in an evaluation, compared with PyTorch, and the host's share of it.

  python benchmarks/evaluation.py --model=resnet18 --width=16 --batch_size=64

Images a second of the paper's five evaluations as `--mode=evaluate` does them (uint8 images on the host to outcomes
on the host), and of the other attacks that training and evaluation use. Medians of interleaved batches; ratios are
within this run. Last, the time that the host takes to gather a training batch and transfer it while the previous
step runs.
"""

import argparse
import platform
import statistics
import time
from functools import partial

import jax
import numpy as np
import timing
from train_step import has_torch, random_split

from infofeat_jax import models
from infofeat_jax.data.batches import batch_indices
from infofeat_jax.evaluation import robustness
from infofeat_jax.evaluation.attack_names import Budget, create, parse
from infofeat_jax.runtime import compilation, devices

PAPER = ("clean", "fgsm", "pgd7", "pgd20", "cw20")
OTHERS = ("infofeature7", "feature_scatter1", "adversarial_interpolation1")
BUDGET = Budget("linf", 8 / 255, 2 / 255)
TRAINING_SET = 50_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="resnet18, or wrn_D_W")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    compilation.tune_cpu()
    sides = {"ours": create_ours(args)} | create_torch(args)
    calls = {(side, name): call for name in PAPER + OTHERS for side in sides if (call := sides[side].get(name))}
    spent = timing.medians(calls, args.repeats)
    seconds = {side: {name: spent[side, name] for name in attacks} for side, attacks in sides.items()}
    print(f"{args.model} width {args.width}, batch {args.batch_size}, float32; images a second (ours / theirs)")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}\n")
    print(f"| attack | {' | '.join(sides)} |\n|---|{'---|' * len(sides)}")
    for name in PAPER + OTHERS:
        show(name, {side: values.get(name) for side, values in seconds.items()}, args.batch_size)
    show("the paper's five", {s: sum(v[name] for name in PAPER) for s, v in seconds.items()}, args.batch_size)
    gathering = measure_input(args.batch_size, args.repeats)
    rate = args.batch_size / gathering
    print(f"\ninput: {1e3 * gathering:.2f} ms for {args.batch_size} training images, {rate:,.0f} a second")


def create_ours(args) -> dict:
    """{name: one batch evaluated} as evaluate.py does it."""
    mesh = devices.mesh()
    module = models.create(args.model, num_classes=10, width=args.width)
    split = random_split(args.batch_size)
    variables = jax.jit(module.init)(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))
    forwards = (jax.tree_util.Partial(module.apply, devices.replicate(mesh, variables)),)

    def evaluate(name):
        one_batch = robustness.compile_attack(create(parse(name), BUDGET), mesh)
        key = jax.random.key(2)
        return lambda: list(robustness.in_batches(one_batch, mesh, forwards, key, split, args.batch_size))

    return {name: evaluate(name) for name in PAPER + OTHERS}


def create_torch(args) -> dict:
    """{"torch MODE": {name: one batch evaluated}}, none without PyTorch."""
    if not has_torch():
        return {}
    import torch_twin

    make = partial(torch_twin.evaluation, args.model, args.width, args.batch_size)
    return {f"torch {mode}": make(mode) for mode in ("research", "tuned")}


def show(name: str, seconds: dict, images: int) -> None:
    """One line of the table."""
    cells = [f"{images / seconds['ours']:.1f}"]
    for side, spent in seconds.items():
        if side != "ours":
            cells.append(f"{images / spent:.1f} ({spent / seconds['ours']:.2f} x)" if spent else "")
    print(f"| {name} | {' | '.join(cells)} |")


def measure_input(batch_size: int, repeats: int) -> float:
    """Median seconds to pick a training batch and put it on the devices."""
    mesh, split, seconds = devices.mesh(), random_split(TRAINING_SET), []
    for step in range(20 * repeats):
        began = time.perf_counter()
        rows = batch_indices(0, step, TRAINING_SET, batch_size)
        jax.block_until_ready(devices.shard(mesh, (split.images[rows], split.labels[rows])))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first makes the epoch's order


if __name__ == "__main__":
    main()
