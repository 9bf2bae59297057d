"""How long an evaluation still takes, at most: from what has been measured, with compilation counted."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infofeat_jax.attacks.stages import CHANGES, VERSIONS
from infofeat_jax.evaluation import attack_names

EARLY = 0.02  # share of an attack
GRADIENT = 3.0  # cost of a step with its gradient, in forward passes
PROBING = 240 * GRADIENT  # cost of the flags for an image, at most; they come last
# Forward passes for an image that the stage does not break, with the default numbers of steps and targets.
STAGE_COSTS = {
    "apgd-ce": 101 * GRADIENT, "apgd-dlr": 101 * GRADIENT, "apgd-t": 9 * 101 * GRADIENT,
    "fab": 100 * 2 * GRADIENT, "fab-t": 9 * 100 * 2 * GRADIENT, "square": 5000.0,
}  # fmt: skip


class Report(NamedTuple):
    """A `share` in (0, 1] of an attack was done after so many seconds of it."""

    name: str
    share: float
    seconds: float


def left(reports: Sequence[Report], costs: Mapping[str, float]) -> float | None:
    """The seconds that the attacks in `costs` still take, at most; None: too early to tell.

    What an attack took until its first report, beyond its later pace, is compilation; those to come have it too. Costs
    are upper bounds: AutoAttack's assumes that no further image is broken.
    """
    if not reports:
        return None
    seen = {name: [report for report in reports if report.name == name] for name in costs}
    # An attack that has hardly begun, such as AutoAttack at its clean predictions, does not tell its own pace.
    telling = {name: own for name, own in seen.items() if own and own[-1].share >= EARLY} or {
        reports[-1].name: seen[reports[-1].name]
    }
    paces = {name: _pace(own) for name, own in telling.items()}
    costliest = max(paces, key=lambda name: costs[name])
    rate, overhead = paces[costliest][0] / costs[costliest], max(overhead for _, overhead in paces.values())
    unfinished = [paces[name][0] * (1 - own[-1].share) for name, own in telling.items()]
    ahead = [cost for name, cost in costs.items() if name not in telling]
    return sum(unfinished) + rate * sum(ahead) + overhead * len(ahead)


def cost(name: str) -> float:
    """What an attack costs for an image at most, roughly, in forward passes."""
    spec = attack_names.parse(name)
    options = dict(spec.options)
    if spec.attack == "autoattack":
        version = options.get("version", "standard")
        changes = CHANGES.get(version, {})
        return sum(_stage_cost(stage, changes.get(stage, {})) for stage in VERSIONS[version])
    if spec.is_cascade:
        return 1 + _stage_cost(spec.attack, options)
    steps = {"clean": 0, "noise": 0, "fgsm": 1}.get(spec.attack, spec.steps or options.get("num_steps", 0))
    return 1 + GRADIENT * steps * options.get("restarts", 1)


def _pace(reports: Sequence[Report]) -> tuple[float, float]:
    """(seconds for the whole attack, seconds of compilation besides) of one attack's reports."""
    first, last = reports[0], reports[-1]
    if last.share == first.share:  # compilation cannot be told apart
        return last.seconds / last.share, 0.0
    whole = (last.seconds - first.seconds) / (last.share - first.share)
    return whole, max(first.seconds - first.share * whole, 0.0)


def _stage_cost(stage: str, options: Mapping[str, Any]) -> float:
    name = stage.removesuffix("-5")
    share = options.get("num_queries", 5000) / 5000 * options.get("num_steps", 100) / 100
    share *= options.get("num_targets", 9) / 9 * options.get("restarts", 1) * max(options.get("eot", 0), 1)
    return STAGE_COSTS[name] * share * (5 if name != stage else 1)
