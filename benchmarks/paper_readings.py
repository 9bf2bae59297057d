"""Under which reading of the attacks' units does an evaluation have the pattern of the paper's Table 1?

  python benchmarks/paper_readings.py --weights=DIR --data=cifar10.npz   # evaluates, about an hour on 2 CPU cores
  python benchmarks/paper_readings.py                                    # the table from the records

DIR has the weights of ResNet18 that accelerator.py leaves. `step`: steps of 2/255 and FGSM's of 8/255, in
[0, 1] pixels, as the paper says. `half step`: FGSM's of 4/255 and the others' of 1/255 within the same 8/255, which is
what comes of inputs in [-1, 1] whose epsilon was doubled and whose steps were not.
"""

import argparse
import pathlib

import numpy as np
from accelerator_parts import weights

import infofeat_jax
from infofeat_jax import data, models
from infofeat_jax.report import paper
from infofeat_jax.runtime import compilation

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/readings"
METHODS = ("madry", "infofeature")
RESAMPLED = 2000  # bootstrap samples of our test images
# {reading: what FGSM, PGD7, PGD20 and CW20 are called in it}; without a random start there is no CW20.
READINGS = {
    "step": ("fgsm", "pgd7", "pgd20", "cw20"),
    "half step": ("fgsm(step_size=4)", "pgd7(step_size=1)", "pgd20(step_size=1)", "cw20(step_size=1)"),
    "half step, FGSM too from a random start": (
        "fgsm(random_start=True,step_size=4)", "pgd7(step_size=1)", "pgd20(step_size=1)", "cw20(step_size=1)",
    ),
    "half step, no random start": (
        "fgsm(step_size=4)", "pgd7(random_start=False,step_size=1)", "pgd20(random_start=False,step_size=1)",
    ),
}  # fmt: skip
ATTACKS = tuple(dict.fromkeys(("clean", *(name for names in READINGS.values() for name in names))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=pathlib.Path, help="directory of METHOD.0.npz, ...")
    parser.add_argument("--data", help="an .npz of CIFAR-10")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs/readings", help="to resume from")
    args = parser.parse_args()
    compilation.tune_cpu()
    if args.weights:
        test = data.load(args.data, validation_size=1000).test
        images, labels = test.images[: args.images], test.labels[: args.images]
        for method in METHODS:
            evaluate(method, args.weights, images, labels, args.workdir / method)
    print(table())


def evaluate(method: str, directory: pathlib.Path, images: np.ndarray, labels: np.ndarray, work: pathlib.Path) -> None:
    """Attacks a method's network under every reading; the outcomes become its record."""
    model = models.create("resnet18", num_classes=10, dtype="bfloat16"), weights.read(directory, method)
    found = infofeat_jax.evaluate(
        model, data.to_unit(images), labels, epsilon=8 / 255, attacks=ATTACKS, batch_size=100, directory=work
    )
    print(found)
    RECORDS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(RECORDS / f"{method}.npz", **found.outcomes)


def table() -> str:
    """Markdown: accuracies in %, and the falls between columns, of each reading and of the paper."""
    lines = ["| | | clean | FGSM | PGD7 | PGD20 | CW20 | FGSM - PGD7 | PGD7 - PGD20 |", "|---" * 9 + "|"]
    for method in METHODS:
        published = paper.TABLES["table1"].rows[method]["mean"]
        lines.append(line(paper.NAMES[method], "the paper", published))
        with np.load(RECORDS / f"{method}.npz", allow_pickle=False) as found:
            accuracy = {name: 100 * found[name].mean() for name in ATTACKS}
        for reading, names in READINGS.items():
            lines.append(line(paper.NAMES[method], reading, [accuracy[name] for name in ("clean", *names)]))
    return "\n".join(lines)


def of_all_tables() -> str:
    """Markdown: the shares of accuracy that PGD7 and PGD20 leave, in the paper's tables, and the reading they fit best.

    Shares, because the networks of the paper's tables have accuracies of their own. The nearest reading is that whose
    two shares, of our network trained with the same method, are the least apart in the sum of squares; beside it, in
    how many of the bootstrap samples of our test images it is the nearest.
    """
    lines = ["| | | PGD7 / FGSM | PGD20 / PGD7 | nearest reading |", "|---" * 5 + "|"]
    for method in METHODS:
        with np.load(RECORDS / f"{method}.npz", allow_pickle=False) as found:
            outcomes = {name: found[name] for name in ATTACKS}
        ours = {name: shares(*(outcomes[attack].mean() for attack in names[:3])) for name, names in READINGS.items()}
        for number in (1, 3, 4, 5):
            for which, values in paper.TABLES[f"table{number}"].rows[method].items():
                left = shares(*values[1:4])
                name, support = nearest(outcomes, left)
                source = f"the paper, Table {number}" + (f", {which}" if which == "worst" else "")
                cells = f"{source} | {left[0]:.2f} | {left[1]:.2f} | {name} ({support:.0%})"
                lines.append(f"| {paper.NAMES[method]} | {cells} |")
        lines += [f"| {paper.NAMES[method]} | {name} | {a:.2f} | {b:.2f} | |" for name, (a, b) in ours.items()]
    return "\n".join(lines)


def nearest(outcomes: dict[str, np.ndarray], left: tuple[float, float]) -> tuple[str, float]:
    """The reading whose shares are the nearest to `left`, and in which part of the bootstrap samples it is."""
    count = len(outcomes["clean"])
    picked = np.random.default_rng(0).integers(0, count, (RESAMPLED, count))
    picked[0] = np.arange(count)  # the images themselves
    accuracy = {name: values[picked].mean(1) for name, values in outcomes.items()}
    found = [shares(*(accuracy[attack] for attack in names[:3])) for names in READINGS.values()]
    closest = np.square(np.array(found) - np.array(left)[:, None]).sum(1).argmin(0)
    return list(READINGS)[closest[0]], float((closest[1:] == closest[0]).mean())


def shares(fgsm: float | np.ndarray, pgd7: float | np.ndarray, pgd20: float | np.ndarray):
    """Of the accuracy under FGSM what PGD7 leaves, and of that under PGD7 what PGD20 leaves."""
    return pgd7 / fgsm, pgd20 / pgd7


def line(method: str, reading: str, values) -> str:
    """A row; what is missing stays empty."""
    fgsm, pgd7, pgd20 = values[1:4]
    cells = [f"{value:.1f}" for value in values] + [""] * (5 - len(values))
    return " | ".join([f"| {method}", reading, *cells, f"{fgsm - pgd7:.1f}", f"{pgd7 - pgd20:.1f}"]) + " |"


if __name__ == "__main__":
    main()
