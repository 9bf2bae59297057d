"""Numbers and names as the report writes them."""

import re
from typing import NamedTuple

from infofeat_jax.report import estimate
from infofeat_jax.report.estimate import Estimate

MINUS, NONE = "\N{MINUS SIGN}", "\N{EN DASH}"
DISPLAYED = {
    "fgsm": "FGSM", "pgd": "PGD", "cw": "CW", "infofeature": "InfoFeature", "feature_scatter": "FeaScatter",
    "adversarial_interpolation": "AdvInterp", "autoattack": "AutoAttack", "worst_case": "worst case", "kl": "KL",
    "apgd": "APGD", "apgd-ce": "APGD-CE", "apgd-dlr": "APGD-DLR", "apgd-t": "APGD-T", "fab": "FAB", "fab-t": "FAB-T",
    "square": "Square",
}  # fmt: skip


class Cell(NamedTuple):
    """A value, and its interval or whatever else goes with it in smaller print."""

    value: str
    detail: str = ""


def cell(value: Estimate | None, expected: int = 0) -> Cell:
    """An accuracy in % with its interval; says so if fewer than the `expected` runs have it."""
    if value is None:
        return Cell(NONE)
    of = f" ({value.runs} of {expected})" if expected > value.runs else ""
    if value.of == "seeds":
        return Cell(f"{100 * value.mean:.1f}", f"\N{PLUS-MINUS SIGN}{100 * value.half:.1f}{of}")
    return Cell(f"{100 * value.mean:.1f}", f"[{100 * value.low:.1f}, {100 * value.high:.1f}]{of}")


def display(attack: str) -> str:
    """How the paper writes an attack: PGD20 for pgd20; options after it, the source of a transferred one before."""
    family, steps, options, source = estimate.split_steps(attack)
    text = DISPLAYED.get(family, family) + ("" if steps is None else str(steps))
    quick = family == "autoattack" and "version=quick" in options
    text += f" ({options}{', not standard' if quick else ''})" if options else ""
    return f"{source} {text}" if source else text


def display_series(series: str) -> str:
    """The same for attacks that differ in the number of steps alone: PGD (step_size=1) for pgd(step_size=1)."""
    family, bracket, options = series.partition("(")
    return DISPLAYED.get(family, family) + (f" ({options}" if bracket else "")


def paper_key(attack: str) -> str:
    """Gives "pgd10@standard" for "pgd10@../table1/standard-seed0": as the columns of Table 6 are named."""
    source = estimate.split_steps(attack).source
    return attack.removesuffix(source) + re.sub(r"-seed\d+$", "", source.rpartition("/")[2])


def percent(value: float | None) -> Cell:
    """An accuracy in [0, 1], without an interval."""
    return Cell(NONE if value is None else f"{100 * value:.1f}")


def number(value: float | None) -> Cell:
    """A value of the paper, in %."""
    return Cell(NONE if value is None else f"{value:.1f}")


def difference(measured: float | None, published: float | None) -> Cell:
    """In percentage points: `measured`, in [0, 1], minus `published`, in %."""
    if measured is None or published is None:
        return Cell(NONE)
    text = f"{100 * measured - published:+.1f}"
    return Cell("0.0" if float(text) == 0 else text.replace("-", MINUS))
