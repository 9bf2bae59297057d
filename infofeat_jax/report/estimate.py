"""Accuracies over seeds, with intervals that say what they cover."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy

from infofeat_jax.report.collect import Row, Run, accuracies

LEVEL = 0.95


class Estimate(NamedTuple):
    """An accuracy in [0, 1] with its 95 % interval; `of` says what the interval covers: "seeds" or "images"."""

    mean: float
    low: float
    high: float
    of: str
    runs: int
    examples: int

    @property
    def half(self) -> float:
        """Half the interval's length."""
        return (self.high - self.low) / 2


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): the t interval of the mean of two or more runs, for which it takes them as normal."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def over_images(accuracy: float, count: int) -> tuple[float, float, float]:
    """(accuracy, low, high): Wilson's interval for a share of `count` test images (1927)."""
    interval = scipy.stats.binomtest(round(accuracy * count), count).proportion_ci(LEVEL, method="wilson")
    return accuracy, float(interval.low), float(interval.high)


def estimate(measured: list[tuple[float, int]]) -> Estimate | None:
    """From the (accuracy, number of examples) of each run; None without a run."""
    if not measured:
        return None
    values, count = [value for value, _ in measured], measured[0][1]
    if len(values) == 1:
        return Estimate(*over_images(values[0], count), "images", 1, count)
    return Estimate(*over_seeds(values), "seeds", len(values), count)


def estimates(row: Row, which: str = "") -> dict[str, Estimate]:
    """{attack: estimate} of a row; of its "latest" checkpoints if `which` says so."""
    measured: dict[str, list] = {}
    for run in row.runs:
        for name, value in own_accuracies(run, which).items():
            measured.setdefault(name, []).append(value)
    return {name: estimate(values) for name, values in measured.items()}


def own_accuracies(run: Run, which: str = "") -> dict[str, tuple[float, int]]:
    """{attack: (accuracy, number of examples)} of a run's checkpoint that is shown, or of its "latest"."""
    if which and which not in run.results:
        return {}
    return accuracies(run.results | run.results.get(which, {}))


def judge(runs: list[Run]) -> str:
    """The attack by which the best and the worst run are told: pgd20 as in Table 3, else the worst case."""
    return "pgd20" if all("pgd20" in accuracies(run.results) for run in runs) else "worst_case"


def extremes(runs: list[Run]) -> dict[str, Run]:
    """{"best": run, "worst": run} by the judge."""
    ordered = sorted(runs, key=lambda run: run.results.get(judge(runs), 0.0))
    return {"best": ordered[-1], "worst": ordered[0]} if ordered else {}


def attack_order(name: str) -> tuple:
    """A key that sorts attacks as the paper's columns are, then by family and number of steps."""
    family, steps = split_steps(name)
    families = ("clean", "noise", "fgsm", "pgd", "cw", "infofeature", "autoattack")
    return (families.index(family) if family in families else len(families) - 1.5, family, steps or 0)


def split_steps(name: str) -> tuple[str, int | None]:
    """("pgd", 20) of "pgd20"; ("clean", None) of "clean"."""
    match = re.fullmatch(r"([a-z_]+?)(\d*)", name)
    return (match[1], int(match[2])) if match and match[2] else (name, None)


def step_series(estimates: Mapping[str, Estimate]) -> dict[str, dict[int, Estimate]]:
    """{family: {number of steps: estimate}} of the attacks measured with two or more numbers of steps (Figure 4)."""
    series: dict[str, dict[int, Estimate]] = {}
    for name in sorted(estimates, key=attack_order):
        family, steps = split_steps(name)
        if steps is not None and "@" not in name:
            series.setdefault(family, {})[steps] = estimates[name]
    return {family: points for family, points in series.items() if len(points) >= 2}
