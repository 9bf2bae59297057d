"""Accuracies over seeds, with intervals that say what they cover."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy

from infofeat_jax.evaluation import attack_names, intervals
from infofeat_jax.report.runs import Row, RunRecord, accuracies
from infofeat_jax.types import InvalidInput


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
    """(mean, low, high): Student's t interval of the mean over two or more runs, assumed normally distributed."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / np.sqrt(len(values))
    half = float(scipy.stats.t.ppf((1 + intervals.LEVEL) / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def over_images(accuracy: float, count: int) -> tuple[float, float, float]:
    """(accuracy, low, high): Wilson's (1927) score interval for a proportion of `count` test images."""
    return accuracy, *intervals.wilson(accuracy, count)


class AttackName(NamedTuple):
    """The parts of an attack's name as configurations and results write it."""

    family: str
    steps: int | None
    options: str  # as they are written between the parentheses
    source: str  # of a transfer attack: the run that it is crafted on

    @property
    def series(self) -> str:
        """What attacks share that differ in the number of steps alone."""
        return f"{self.family}({self.options})" if self.options else self.family


def estimate(measured: list[tuple[float, int]]) -> Estimate:
    """From the (accuracy, number of examples) of each of one or more runs."""
    values, count = [value for value, _ in measured], measured[0][1]
    if len(values) == 1:
        return Estimate(*over_images(values[0], count), "images", 1, count)
    return Estimate(*over_seeds(values), "seeds", len(values), count)


def estimates(row: Row, which: str = "") -> dict[str, Estimate]:
    """{attack: estimate} of a row: of the checkpoints that results.json is about.

    `which`: of the "latest" ones, of the "live" weights, or on the "common" images that all attacks saw.
    """
    measured: dict[str, list] = {}
    for run in row.runs:
        for name, value in own_accuracies(run, which).items():
            measured.setdefault(name, []).append(value)
    return {name: estimate(values) for name, values in measured.items()}


def complete(row: Row) -> dict[str, Estimate]:
    """The estimates of the attacks that all runs of a row have; of all attacks if they have none in common.

    An attack that a flag has added to one run is not a measurement of the row.
    """
    measured = estimates(row)
    return {name: value for name, value in measured.items() if value.runs == len(row.runs)} or measured


def own_accuracies(run: RunRecord, which: str = "") -> dict[str, tuple[float, int]]:
    """{attack: (accuracy, number of examples)} of the checkpoint that results.json is about; `which` as above."""
    if which and not run.results.get(which):
        return {}
    return accuracies(run.results | run.results.get(which, {}))


def counts_within_budget(run: RunRecord, which: str = "") -> list[int]:
    """The numbers of images of the attacks that the worst case is over: those without an epsilon of their own."""
    measured = own_accuracies(run, which).items()
    options = {name: split_steps(name).options.split(", ") for name, _ in measured}
    return [n for name, (_, n) in measured if not any(option.startswith("epsilon=") for option in options[name])]


def gain(one: Row, other: Row, name: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of one - other under the attack `name`, over the seeds of both; None for less than two."""
    ours, theirs = ({run.seed: accuracies(run.results).get(name) for run in row.runs} for row in (one, other))
    seeds = [seed for seed in ours if seed is not None and ours[seed] and theirs.get(seed)]
    if len(seeds) < 2:
        return None
    return over_seeds([ours[seed][0] - theirs[seed][0] for seed in seeds])


def judge(runs: list[RunRecord]) -> str:
    """The attack that decides which run is best and which worst: pgd20 as in Table 3, else the worst case.

    "" if the worst cases are over different attacks.
    """
    if all("pgd20" in accuracies(run.results) for run in runs):
        return "pgd20"
    return "worst_case" if len({frozenset(own_accuracies(run)) for run in runs}) == 1 else ""


def extremes(runs: list[RunRecord]) -> dict[str, RunRecord]:
    """{"best": run, "worst": run} by the judge, if there is one."""
    by = judge(runs)
    ordered = sorted(runs, key=lambda run: run.results.get(by) or 0.0) if by else []
    return {"best": ordered[-1], "worst": ordered[0]} if ordered else {}


def attack_order(name: str) -> tuple:
    """A key that sorts attacks as the paper's columns are, then by family and number of steps."""
    family, steps, options, source = split_steps(name)
    families = ("clean", "noise", "fgsm", "pgd", "cw", "infofeature", "autoattack")
    return (families.index(family) if family in families else len(families) - 1.5, family, options, steps or 0, source)


def split_steps(name: str) -> AttackName:
    """("pgd", 20, "step_size=1", "runs/a") of "pgd20(step_size=1)@runs/a"; ("clean", None, "", "") of "clean".

    A name that this version does not know is a family of its own.
    """
    try:
        spec = attack_names.parse(name)
    except InvalidInput:
        return AttackName(name, None, "", "")
    options = ", ".join(f"{option}={value}" for option, value in spec.options)
    return AttackName(spec.attack, spec.steps, options, spec.source)


def step_series(estimates: Mapping[str, Estimate]) -> dict[str, dict[int, Estimate]]:
    """{series: {number of steps: estimate}} of the attacks measured with two or more numbers of steps (Figure 4)."""
    found: dict[str, dict[int, Estimate]] = {}
    for name in sorted(estimates, key=attack_order):
        parts = split_steps(name)
        if parts.steps is not None and not parts.source:
            found.setdefault(parts.series, {})[parts.steps] = estimates[name]
    return {series: points for series, points in found.items() if len(points) >= 2}
