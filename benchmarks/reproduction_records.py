"""What is read from results/ for docs/reproduction.md, and how two rows of it are compared."""

import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infofeat_jax.report import estimate

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
QUICK = "autoattack(version=quick)"
SHOWN = {"clean": "clean", "pgd20": "PGD20", "cw20": "CW20", "autoattack": "AutoAttack", QUICK: "AutoAttack, quick"}
VALIDATED = "validation_robust_accuracy"
MEASURED = ("clean", "pgd20", "cw20", QUICK)  # the columns of most tables

Outcomes = Bool[np.ndarray, "seeds n"]
Measured = Outcomes | Float[np.ndarray, "seeds n"]  # or differences of outcomes
Seeds = dict[int, Bool[np.ndarray, " n"]]  # {seed: outcomes}
# Of a run's models: its checkpoints, and in the last one the weights that training updates beside their average.
FILES = {"best": "outcomes.npz", "last": "outcomes_latest.npz", "live": "outcomes_latest_live.npz"}


class Difference(NamedTuple):
    """Of two rows' accuracies, in points."""

    mean: float
    half: float  # of the 95 % interval over images, or over seeds
    seeds: tuple[float, ...] = ()

    def __str__(self) -> str:
        seeds = f" ({', '.join(f'{seed:+.1f}' for seed in self.seeds)})" if len(self.seeds) > 1 else ""
        mean = round(self.mean, 6)  # the same for every way to sum it
        return f"{mean:+.1f} +- {self.half:.1f}{seeds}"


def difference(one: Measured, other: Measured) -> Difference:
    """one - other; the interval is over images, of the mean over seeds, and says nothing of other seeds."""
    each = 100 * (one.astype(float) - other)
    over_images = each.mean(0)
    half = 1.96 * over_images.std(ddof=1) / np.sqrt(over_images.size)
    return Difference(float(each.mean()), float(half), tuple(map(float, each.mean(1))))


def by_seed(study: str, row: str, attack: str, which: str = "best") -> Seeds:
    """{seed: outcomes}, where measured; a run whose last checkpoint is its best has no file of its own for it."""
    found = {}
    for run in sorted((RESULTS / study).glob(f"{row}-seed*")):
        path = run / FILES[which]
        if which == "last" and not path.exists() and best_is_last(run):
            path = run / FILES["best"]
        if path.exists():
            with np.load(path, allow_pickle=False) as arrays:
                if attack in arrays:
                    found[int(run.name.rpartition("seed")[2])] = arrays[attack]
    return found


def best_is_last(run: pathlib.Path) -> bool:
    """Whether a run's best checkpoint is its last one, by its results."""
    results = json.loads((run / "results.json").read_text())
    return results["checkpoint_step"] == results["latest"]["checkpoint_step"]


def outcomes(study: str, row: str, attack: str, which: str = "best") -> Outcomes:
    """Of all seeds in which it was measured."""
    return np.stack(list(by_seed(study, row, attack, which).values()))


def paired(study: str, rows: Sequence[str], attack: str, which: str = "best") -> dict[str, Outcomes]:
    """{row: outcomes} of the seeds in which the attack was measured on all of the rows."""
    return dict(zip(rows, matched(*(by_seed(study, row, attack, which) for row in rows)), strict=True))


def matched(*models: Seeds) -> list[Outcomes]:
    """The outcomes of each model, of the seeds that all of them have."""
    seeds = sorted(set.intersection(*(set(each) for each in models)))
    return [np.stack([each[seed] for seed in seeds]) for each in models]


def compared(study: str, one: str, other: str, attack: str, which: str = "best") -> Difference:
    """Of two rows of a study, one - other, of the same seeds."""
    return difference(*paired(study, (one, other), attack, which).values())


def validation(study: str, row: str) -> list[np.ndarray]:
    """Epochs, and robust accuracy on validation images after them in %, [epochs, 2], of each seed."""
    found = []
    for path in sorted((RESULTS / study).glob(f"{row}-seed*/metrics.jsonl")):
        records = map(json.loads, path.read_text().splitlines())
        found.append(np.array([(each["epoch"], 100 * each[VALIDATED]) for each in records if VALIDATED in each]))
    return found


def over_seeds(each: Sequence[float]) -> Difference:
    """The mean of the differences of runs with the same seed; the interval is Student's, over seeds."""
    mean, low, high = estimate.over_seeds(list(each))
    return Difference(mean, (high - low) / 2)


def table(head, lines) -> str:
    """Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
