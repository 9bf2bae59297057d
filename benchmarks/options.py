"""What each option of training costs: CPU time of a step, and size of the state, relative to plain Madry.

  python benchmarks/options.py                 # prints the table
  python benchmarks/options.py --report        # and writes it into docs/how-to/recipes.md

ResNet18 of width 16, batches of 32 images of CIFAR-10's size on the host's CPU, PGD with 7 steps unless the option says
otherwise. CPU seconds of all threads, medians of interleaved steps: other work on the machine distorts them
less than it does the clock. Synthetic images; on an accelerator the ratios differ, above all those of small operations.
"""

import argparse
import pathlib
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
import timing

from infofeat_jax import config as configs
from infofeat_jax import data
from infofeat_jax import experiment as experiments
from infofeat_jax.runtime import compilation, devices

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "how-to" / "recipes.md"
BEGIN, END = "<!-- python benchmarks/options.py --report -->\n", "<!-- end -->\n"
PLAIN = "plain"
OPTIONS: dict[str, dict[str, object]] = {
    PLAIN: {},
    "EMA": {"ema.decay": 0.999},
    "SWA, once begun": {"swa.start_epoch": 0.5},
    "AWP": {"awp.gamma": 0.01},
    "AWP and EMA": {"awp.gamma": 0.01, "ema.decay": 0.999},
    "MixUp": {"data.mixup": 1.0},
    "CutMix": {"data.cutmix": 1.0},
    "TrivialAugment": {"data.augment": "trivial"},
    "attack on batch statistics": {"attack.batch_norm": "batch"},
    "ramp of epsilon": {"attack.ramp_epochs": 1.0},
    "Adam": {"optimizer.name": "adam"},
    "AdamW": {"optimizer.name": "adamw"},
    "Muon": {"optimizer.name": "muon"},
    "FGSM-RS": {"attack.num_steps": 1, "attack.step_size": 10.0},
    "N-FGSM": {"attack.noise": 2.0},
    "Free-AT, 4 updates": {"attack.replays": 4},
    "FGSM-RS with GradAlign": {"attack.num_steps": 1, "attack.step_size": 10.0, "method.grad_align": 0.2},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--report", action="store_true", help=f"writes the table into {PAGE.name}")
    args = parser.parse_args()
    compilation.tune_cpu()
    compilation.keep_compiled()
    calls, sizes = {}, {}
    for name, changes in OPTIONS.items():
        calls[name], sizes[name] = create(changes, args)
    seconds = timing.medians(calls, args.repeats, time.process_time)
    text = "\n".join(table(seconds, sizes, args)) + "\n"
    print(text)
    if args.report:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.partition(END)[2])


def create(changes: dict[str, object], args) -> tuple[Callable, float]:
    """(one step from where the last one ended, MB of the state), compiled and past the beginning of averages."""
    config = configs.for_method(configs.default(), "madry")
    config.batch_size, config.model.width = args.batch_size, args.width
    config.update_from_flattened_dict(changes)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * args.batch_size, 32, 32, 3), np.uint8)
    split = data.Split(images, rng.integers(0, 10, len(images)).astype(np.int32))
    experiment = experiments.create(
        configs.resolve(config), pathlib.Path("."), data.Dataset(split, split, split, 10, "noise")
    )
    step, holder = experiments.compile_step(experiment), [experiments.create_state(experiment)]
    batch = devices.shard(experiment.mesh, tuple(part[: args.batch_size] for part in split))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(holder[0])) / 1e6

    def take():
        holder[0], values = step(holder[0], batch, jax.random.key(0))
        jax.block_until_ready((holder[0], values))

    for _ in range(3):
        take()
    return take, size


def table(seconds: dict[str, float], sizes: dict[str, float], args) -> list[str]:
    """Markdown, with what it was measured on."""
    where = f"ResNet18 of width {args.width}, batches of {args.batch_size}, {jax.device_count()} CPU device"
    lines = [
        f"{where} ({platform.machine()}), jax {jax.__version__}, medians of {args.repeats} steps:", "",
        "| | CPU time of a step | size of the state |", "|---|---:|---:|",
    ]  # fmt: skip
    for name in seconds:
        ratio, size = seconds[name] / seconds[PLAIN], sizes[name] / sizes[PLAIN]
        absolute = (f" ({seconds[name]:.2f} s)", f" ({sizes[name]:.1f} MB)") if name == PLAIN else ("", "")
        lines.append(f"| {name} | {ratio:.2f}{absolute[0]} | {size:.2f}{absolute[1]} |")
    return lines


if __name__ == "__main__":
    main()
