"""Combinations of fields in which one would silently do nothing, with one-line errors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infofeat_jax.method_names import ANYWHERE, MIXABLE, REPLAYED, WEIGHTED
from infofeat_jax.types import InvalidInput

Values = Mapping[str, Any]  # {"awp.gamma": 0.01}, of a resolved configuration


class Clash(NamedTuple):
    """A field that has no effect, or not the one that is meant, because of another."""

    field: str
    other: str
    holds: Callable[[Any, Any, Values], bool]  # (the field's value, the other's, all)
    why: str
    advice: str


def _only_of(methods: tuple[str, ...], field: str, default: object, why: str) -> Clash:
    return Clash(
        field, "method.name", lambda value, other, _: value != default and other not in methods and ":" not in other,
        why, f"leave it out, or take one of {', '.join(methods)}",
    )  # fmt: skip


def _of_maps(field: str, default: str) -> Clash:
    def unused(value: str, method: str, values: Values) -> bool:
        compares = method == "infofeature" or (method, values["method.variant"]) == ("feature_matching", "paper")
        return value != default and not compares and ":" not in method

    advice = "leave it out, or take infofeature, or feature_matching with method.variant=paper"
    return Clash(field, "method.name", unused, "it compares no maps by a distance", advice)


def _unattacked(field: str, default: object) -> Clash:
    return Clash(
        field, "method.name", lambda value, other, _: value != default and other == "standard",
        "there is no attack in training", "leave it out",
    )  # fmt: skip


def _without_replays(field: str, default: object, why: str) -> Clash:
    return Clash(
        field, "attack.replays", lambda value, other, _: other > 0 and value != default, why,
        f"leave one of them out, or give {field}={default}",
    )  # fmt: skip


def extra_count(values: Values) -> int:
    """How many examples of each batch are of the second pool."""
    return round(values["data.extra_share"] * values["batch_size"])


CLASHES = (
    Clash(
        "awp.warmup_epochs", "awp.gamma", lambda value, other, _: value > 0 == other,
        "there is no perturbation to delay", "set gamma, such as 0.01, or leave warmup_epochs out",
    ),
    Clash(
        "awp.warmup_epochs", "num_epochs", lambda value, other, _: value >= other,
        "no epoch would be left for the perturbation", "give fewer, or awp.gamma=0 and no warm-up",
    ),
    Clash(
        "optimizer.warmup_epochs", "optimizer.schedule",
        lambda value, other, _: value > 0 and other in ("onecycle", "cyclic"),
        "this schedule has a warm-up of its own", "leave warmup_epochs out, or take piecewise or cosine",
    ),
    Clash(
        "optimizer.warmup_epochs", "num_epochs", lambda value, other, _: value > other,
        "the learning rate would never be reached", "give fewer",
    ),
    Clash(
        "optimizer.nesterov", "optimizer.momentum", lambda value, other, _: value and other == 0,
        "there is no momentum to look ahead along", "set momentum, or leave nesterov out",
    ),
    Clash(
        "optimizer.decay_norm", "optimizer.weight_decay", lambda value, other, _: not value and other == 0,
        "nothing decays", "set weight_decay, or leave decay_norm out",
    ),
    Clash(
        "swa.start_epoch", "ema.decay", lambda value, other, _: value > 0 and other > 0,
        "there is one average", "leave one of them out",
    ),
    Clash(
        "swa.start_epoch", "num_epochs", lambda value, other, _: value >= other,
        "no weights would be left to average", "start earlier",
    ),
    Clash(
        "attack.ramp_epochs", "num_epochs", lambda value, other, _: value > other,
        "epsilon would never be reached", "give fewer",
    ),
    Clash(
        "data.extra", "data.extra_share", lambda value, other, _: bool(value) != bool(other),
        "a second pool and its share of each batch belong together", "give both, or neither",
    ),
    Clash(
        "data.extra_share", "batch_size", lambda value, other, all_: value and not 0 < extra_count(all_) < other,
        "each batch needs an example of either pool", "give another share, or larger batches",
    ),
    Clash(
        "data.mixup", "data.cutmix", lambda value, other, _: value > 0 and other > 0,
        "a batch is mixed in one way", "leave one of them out",
    ),
    _only_of(MIXABLE, "data.mixup", 0, "its loss or its labels are those of one class"),
    _only_of(MIXABLE, "data.cutmix", 0, "its loss or its labels are those of one class"),
    _only_of(WEIGHTED, "method.weight", None, "it has no term to weigh"),
    _of_maps("method.distance", "l2"),
    _of_maps("method.classes", "all"),
    _only_of(ANYWHERE, "attack.noise", 0, "its attack has a start of its own, or there is none"),
    Clash(
        "attack.noise", "attack.num_steps", lambda value, other, _: value > 0 and other != 1,
        "a single step from noise is not projected to the ball, several would leave it", "give num_steps=1",
    ),
    _only_of(REPLAYED, "attack.replays", 0, "the gradient of its update is not that of its attack, or there is none"),
    _without_replays("attack.num_steps", 1, "there is one step between two updates"),
    _without_replays("attack.noise", 0, "a batch's perturbation starts in the ball"),
    _without_replays("attack.ramp_epochs", 0, "the budget of replays is constant"),
    _without_replays("attack.batch_norm", "running", "the gradient is that of the update, on batch statistics"),
    _without_replays("accumulate_steps", 1, "the perturbation of a whole batch is carried on"),
    _without_replays("swa.start_epoch", 0, "the average's statistics would move with every replay"),
    Clash(
        "eval.live_weights", "ema.decay", lambda value, other, all_: value and not (other or all_["swa.start_epoch"]),
        "there is no average, so the weights that are evaluated are the live ones",
        "set ema.decay or swa.start_epoch, or leave live_weights out",
    ),
    Clash(
        "eval.live_weights", "eval.torch_checkpoint", lambda value, other, _: value and other,
        "there is one set of weights to evaluate there", "leave live_weights out",
    ),
    Clash(
        "eval.checkpoint", "eval.torch_checkpoint", lambda value, other, _: value != "best" and other,
        "there is one set of weights to evaluate there", "leave checkpoint out",
    ),
    _unattacked("attack.ramp_epochs", 0),
    _unattacked("attack.batch_norm", "running"),
)  # fmt: skip


def check(values: Values) -> None:
    """Raises InvalidInput for the first of CLASHES that holds."""
    for field, other, holds, why, advice in CLASHES:
        if holds(values[field], values[other], values):
            raise InvalidInput(
                f"config.{field} = {values[field]!r} with config.{other} = {values[other]!r}: {why}: {advice}"
            )
