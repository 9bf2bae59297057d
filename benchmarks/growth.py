"""The cost of a training step against attack steps, batch size, width and devices, as a table and a figure.

  python benchmarks/growth.py --out=docs/figures/growth.png

ResNet18 of width 16 and a batch of 32 where they are not what varies; medians of interleaved steps on the first device.
Each is divided by the growth of the work, so that a rising line shows a term that grows faster than the work.
Devices: floating point operations per device in the program compiled for that number of devices, the batch fixed.
"""

import argparse
from types import SimpleNamespace

import jax
import matplotlib.pyplot as plt
import timing
from train_step import compile_step, countable

from infofeat_jax.runtime import compilation

BASE = {"steps": 7, "batch_size": 32, "width": 16}
VARIED = {"steps": (1, 2, 4, 7, 14), "batch_size": (8, 16, 32, 64, 128), "width": (8, 16, 32, 64)}
WORK = {  # relative to the base
    "steps": lambda steps: (4 + 2 * steps) / (4 + 2 * 7),  # passes: 1 clean map, 2 a step, 3 to learn
    "batch_size": lambda size: size / 32,
    "width": lambda width: (width / 16) ** 2,
}
DEVICES = (1, 2, 4, 8)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="growth.png")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    compilation.tune_cpu()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    lines = {name: measure(name, values, args.repeats) for name, values in VARIED.items()}
    lines["devices"] = count_flops()
    for name, points in lines.items():
        print(f"\n| {name} | seconds, or operations a device | relative to the work |\n|---|---|---|")
        for value, cost, relative in points:
            print(f"| {value} | {cost:.4g} | {relative:.2f} |")
    draw(lines, args.out)


def options(**changes) -> SimpleNamespace:
    fields = {"method": "infofeature", "model": "resnet18", "dtype": "float32", "devices": 1}
    return SimpleNamespace(**fields | BASE | changes)


def measure(name: str, values: tuple, repeats: int) -> list[tuple]:
    """[(value, median seconds a step, the same divided by the work, 1 at the base)]."""
    steps = {value: compile_step(options(**{name: value}))[1] for value in values}
    medians = timing.medians(steps, repeats)
    base = medians[BASE[name]]
    return [(value, median, median / base / WORK[name](value)) for value, median in medians.items()]


def count_flops() -> list[tuple]:
    """[(devices, operations of one, the same times the devices, 1 for one device)]."""
    with countable():
        flops = {n: compile_step(options(devices=n))[0].cost_analysis()["flops"] for n in DEVICES}
    return [(count, value, value * count / flops[1]) for count, value in flops.items()]


def draw(lines: dict, out: str) -> None:
    figure, panels = plt.subplots(1, len(lines), figsize=(11, 2.8), sharey=True, layout="constrained")
    for panel, (name, points) in zip(panels, lines.items(), strict=True):
        panel.plot([p[0] for p in points], [p[2] for p in points], "o-", color="#0072B2")
        panel.axhline(1, color="0.7", linewidth=1)
        panel.set_xscale("log", base=2)
        panel.set_xticks([p[0] for p in points], [str(p[0]) for p in points])
        panel.set_xlabel(name.replace("_", " "))
    highest = max(point[2] for points in lines.values() for point in points)
    panels[0].set(ylabel="cost / work, 1 at the base", ylim=(0, 1.05 * highest))
    figure.savefig(out, dpi=150)
    print(f"\n{out}")


if __name__ == "__main__":
    main()
