"""Checks of a configuration's fields, types and ranges, with one-line errors."""

import difflib
import math
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from infofeat_jax.objectives import DISTANCES
from infofeat_jax.types import InvalidInput

OPEN = "model.options"  # the one group whose fields are defined by a model, not by the default configuration
# The element types of the fields that hold several values. Integers count as numbers.
ELEMENTS = {
    "model.mean": float, "model.std": float, "optimizer.milestones": float, "eval.attacks": str,
    "eval.distances": str, "eval.evaluators": str, "study.rows": str, "study.seeds": int,
}  # fmt: skip
TYPES = {bool: "True or False", int: "an integer", float: "a number", str: "text"}
PROSE = ("data.note", "study.title", "study.rows")  # texts that name no file
LONGEST_TEXT, LONGEST_NAME = 4096, 255  # characters; bytes between two slashes, the limit of file systems

MAX_SEED = 2**32 - 1  # JAX's keys without 64-bit types are a function of the seed's lower 32 bits
MAX_STEPS = 10**6  # of an attack, and epochs: counted in 32 bits on the device
MAX_BATCH = 2**20
MAX_SIDE = 2**13  # pixels of an image
MAX_FACTOR = 10**6  # budgets, rates and weights: far from float32's limits whatever they are multiplied by


Number = int | float
Fields = Mapping[str, Any] | ConfigDict


class Rule(NamedTuple):
    """A range of valid values, and its description for the error message."""

    valid: Callable[[Any], bool]
    expected: str


def between(low: Number, high: Number, text: str = "") -> Rule:
    """`low` to `high`, inclusive; rejects NaN, and infinity unless `high` is infinite."""
    return Rule(lambda value: low <= value <= high, text or f"{low} to {high}")


def at_least(low: Number, text: str = "") -> Rule:
    """`low` or more, finite."""
    return Rule(lambda value: low <= value < math.inf, text or f"{low} or more")


def one_of(*choices: str) -> Rule:
    """One of these strings."""
    return Rule(lambda value: value in choices, f"{', '.join(choices[:-1])} or {choices[-1]}")


def each(rule: Rule, text: str) -> Rule:
    """Several values, each valid under `rule`."""
    return Rule(lambda values: all(map(rule.valid, values)), text)


RULES = {
    "seed": between(0, MAX_SEED),
    "batch_size": between(1, MAX_BATCH, f"1 or more, at most {MAX_BATCH}"),
    "accumulate_steps": between(1, MAX_BATCH),
    "num_epochs": between(1, MAX_STEPS),
    "log_every": at_least(1),
    "max_loss": Rule(lambda value: value > 0, "above 0"),
    "skip_batches": at_least(0),
    "dtype": one_of("float32", "bfloat16"),
    "parallel": one_of("jit", "pmap"),
    "model.activation": Rule(lambda value: value in ("", "relu", "silu"), "relu, silu, or '' for the usual one"),
    "model.width": at_least(0, "0 (the paper's) or more"),
    "model.mean": each(between(-MAX_FACTOR, MAX_FACTOR), "finite numbers such as (0.5,)"),
    "model.std": each(between(1 / MAX_FACTOR, MAX_FACTOR), "finite numbers above 0 such as (0.5,)"),
    "data.split_seed": at_least(0),
    "data.train_size": at_least(0, "0 (all) or more"),
    "data.test_size": at_least(0, "0 (all) or more"),
    "data.validation_size": at_least(1, "1 or more: early stopping needs images"),
    "data.image_size": between(0, MAX_SIDE, f"0 (their own) or more pixels, at most {MAX_SIDE}"),
    "data.crop_padding": at_least(0, "0 or more pixels"),
    "data.extra_share": Rule(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "data.augment": one_of("none", "trivial"),
    "data.mixup": between(0, MAX_FACTOR, f"0 (none) or more, at most {MAX_FACTOR}"),
    "data.cutmix": between(0, MAX_FACTOR, f"0 (none) or more, at most {MAX_FACTOR}"),
    "method.weight": between(0, MAX_FACTOR),
    "method.label_smoothing": Rule(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "method.grad_align": between(0, MAX_FACTOR),
    "method.distance": one_of(*DISTANCES),
    "method.classes": one_of("all", "label"),
    "attack.epsilon": between(0, MAX_FACTOR, f"0 or more 8-bit levels, at most {MAX_FACTOR}"),
    "attack.step_size": between(0, MAX_FACTOR, f"0 or more 8-bit levels, at most {MAX_FACTOR}"),
    "attack.num_steps": between(0, MAX_STEPS),
    "attack.norm": one_of("linf", "l2", "l1"),
    "attack.noise": between(0, MAX_FACTOR, f"0 (none) or more epsilons, at most {MAX_FACTOR}"),
    "attack.replays": Rule(lambda value: value == 0 or 2 <= value <= MAX_STEPS, f"0 (none), or 2 to {MAX_STEPS}"),
    "attack.ramp_epochs": between(0, MAX_STEPS),
    "attack.batch_norm": one_of("running", "batch"),
    "optimizer.learning_rate": between(0, MAX_FACTOR),
    "optimizer.scaling": one_of("none", "linear", "sqrt"),
    "optimizer.warmup_epochs": between(0, MAX_FACTOR),
    "optimizer.momentum": Rule(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "optimizer.weight_decay": between(0, MAX_FACTOR),
    "optimizer.milestones": Rule(
        lambda values: list(values) == sorted(set(values)) and all(0 < value <= MAX_STEPS for value in values),
        f"increasing epochs above 0, at most {MAX_STEPS}",
    ),
    "optimizer.decay": between(0, MAX_FACTOR),
    "ema.decay": Rule(lambda value: 0 <= value < 1, "at least 0 (no average) and below 1"),
    "swa.start_epoch": between(0, MAX_STEPS),
    "awp.gamma": between(0, 1),
    "awp.warmup_epochs": between(0, MAX_FACTOR),
    "eval.step_size": between(0, MAX_FACTOR, f"0 or more 8-bit levels, at most {MAX_FACTOR}"),
    "eval.batch_size": between(1, MAX_BATCH),
    "eval.num_examples": at_least(0, "0 (all) or more"),
    "eval.autoattack_examples": at_least(0, "0 (all) or more"),
    "eval.probe_examples": at_least(0, "0 (none) or more"),
    "eval.cam_images": at_least(0, "0 (none) or more"),
    "eval.checkpoint": one_of("best", "latest", "both"),
    "study.seeds": each(between(0, MAX_SEED), f"integers, 0 to {MAX_SEED}, such as (0, 1, 2)"),
    "eval.validate_every": between(1, MAX_STEPS),
    "checkpoint.keep": at_least(1),
    "checkpoint.every_minutes": at_least(0, "0 (after every epoch) or more minutes"),
}


def check_types(config: Fields, defaults: ConfigDict, *, others: bool = False) -> None:
    """Raises InvalidInput unless `config` has the fields of `defaults`, with values of their types.

    `others`: allows fields that `defaults` lacks, since a newer version may have saved them.
    """
    expected, values = dict(_typed(defaults)), dict(_leaves(config))
    for name in values:
        if name not in expected and not others and not name.startswith(OPEN + "."):
            raise InvalidInput(unknown(name, expected))
    for name, (kind, optional) in expected.items():
        if name not in values:
            raise InvalidInput(f"config.{name} is missing: expected {_describe(name, kind)}")
        if not (values[name] is None and optional) and not _is_of(values[name], kind, ELEMENTS.get(name)):
            raise InvalidInput(f"config.{name} = {show(values[name])}: expected {_describe(name, kind)}")
        _check_text(name, values[name])


def check_ranges(config: Fields) -> None:
    """Raises InvalidInput unless each field, already of the right type, is in its range in RULES; None is allowed."""
    values = dict(_leaves(config))
    for name, rule in RULES.items():
        if values[name] is not None and not rule.valid(values[name]):
            raise InvalidInput(f"config.{name} = {show(values[name])}: expected {rule.expected}")


def unknown(name: str, names: Collection[str]) -> str:
    """The message about a field that does not exist, with the nearest that do."""
    return (
        f"config.{name}: no such field; the nearest are {', '.join(f'config.{near}' for near in nearest(name, names))}"
    )


def nearest(name: str, names: Collection[str], count: int = 3) -> list[str]:
    """The `count` of `names` that are most similar to `name`, as a whole or after the last dot."""

    def likeness(other: str) -> float:
        pairs = (name, other), (name.rpartition(".")[2], other.rpartition(".")[2])
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return sorted(names, key=likeness, reverse=True)[:count]


def show(value: object) -> str:
    """The value as shown in messages: on one line, long ones abbreviated in the middle."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    return short.repr(value)


def _typed(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, tuple[type, bool]]]:
    """Yields ("model.name", (type, whether None is a value))."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _typed(value, f"{prefix}{name}.")
        else:
            yield prefix + name, (config.get_type(name), value is None)


def _leaves(config: Fields, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_of(value: object, kind: type, element: type | None = None) -> bool:
    if element is not None:
        return isinstance(value, tuple | list) and all(_is_of(one, element) for one in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _describe(name: str, kind: type) -> str:
    if element := ELEMENTS.get(name):
        return {float: "numbers, such as (0.5,)", int: "integers, such as (0, 1)", str: "texts, such as ('pgd20',)"}[
            element
        ]
    return TYPES[kind]


def _check_text(name: str, value: object) -> None:
    """Raises InvalidInput for strings that cannot be shown in a message or used as a file name."""
    for text in value if isinstance(value, tuple | list) else [value]:
        if not isinstance(text, str):
            continue
        if not text.isprintable() or len(text) > LONGEST_TEXT:
            raise InvalidInput(f"config.{name} = {show(text)}: expected one line of printable characters")
        if name not in PROSE and any(len(part.encode()) > LONGEST_NAME for part in text.split("/")):
            raise InvalidInput(f"config.{name} = {show(text)}: expected a name of at most {LONGEST_NAME} bytes")
