"""The arguments of an evaluation but for the model and the images, checked. All raise InvalidInput."""

import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from infofeat_jax import parts
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.attack_names import AttackSpec
from infofeat_jax.threat import NORMS, UNIT, check_unit_budget
from infofeat_jax.types import InvalidInput, check_choice, check_number


def read_attacks(names: Any) -> list[AttackSpec]:
    """The attacks of these names; those of one's own are trusted, as the caller wrote them."""
    if not isinstance(names, Iterable):
        raise InvalidInput(f"attacks {names!r}: expected names such as ('clean', 'pgd20')")
    names = [names] if isinstance(names, str) else list(names)
    specs = [attack_names.parse(name) for name in names]
    parts.trust(*parts.names_in(" ".join(names)))
    if not specs:
        raise InvalidInput("attacks is empty: expected names such as ('clean', 'pgd20')")
    for spec in specs:
        if spec.source:
            raise InvalidInput(f"attack {spec.name!r}: attacks crafted on another run are for config.eval.attacks")
    return specs


def read_epsilon(epsilon: Any, norm: str, shape: tuple[int, ...]) -> float:
    """The budget for images of this shape, whose box it may not exceed: more is a budget in 8-bit levels."""
    epsilon = check_number("epsilon", epsilon, unit=UNIT)
    check_choice("norm", norm, NORMS)
    check_unit_budget(norm, epsilon, shape)
    return epsilon


def read_directory(directory: Any) -> pathlib.Path | None:
    """The directory as a path; None for a temporary one, which several processes do not share."""
    if directory is None and jax.process_count() > 1:
        raise InvalidInput(f"directory is missing: expected one that all {jax.process_count()} processes share")
    try:
        return None if directory is None else pathlib.Path(directory)
    except TypeError:
        raise InvalidInput(f"directory {directory!r}: expected a path") from None
