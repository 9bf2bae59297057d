"""The types and checks that all modules share.

Images are float32 NHWC in [0, 1]; budgets (epsilon, step sizes) are in the images' own units.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Key, Real, UInt32

Images = Float[Array, "b h w c"]
Labels = Integer[Array, " b"]
Probabilities = Float[Array, "b k"]
PerExample = Float[Array, " b"]
# An epsilon or a step size: one number, or [b] with one for each example. Either may be traced.
Budget = float | int | np.number | Real[Array, ""] | Real[Array, " b"] | Real[np.ndarray, " b"]
PRNGKey = Key[Array, ""] | UInt32[Array, "2"]
LEVELS = 255.0  # of 8-bit pixels, in which configurations and names of attacks give budgets


class Outputs(NamedTuple):
    """The outputs of a classifier for a batch. Code that reads only the logits accepts None for the rest."""

    logits: Float[Array, "b k"]
    features: Float[Array, "b d"] | None = None  # after global average pooling
    maps: Float[Array, "b h w d"] | None = None  # M_conv: the last feature maps, which are pooled
    cam: Float[Array, "b h w k"] | None = None  # Eq. 6, one map per class
    kernel: Float[Array, "d k"] | None = None  # w_fc, by which the features are multiplied; not per example


# A frozen model: weights and mode are bound. Library functions accept other outputs: see attacks.inputs.as_forward.
Forward = Callable[[Images], Outputs]

# (perturbed outputs, clean outputs, labels) -> [b]: what an attack ascends.
Objective = Callable[[Outputs, Outputs, Labels], PerExample]

# (forward, key, images, labels) -> perturbed images.
Attack = Callable[[Forward, PRNGKey, Images, Labels], Images]


class InvalidInput(ValueError):
    """Invalid input that the user can correct; the message is one line: the value, what is valid, what to do."""


class InUse(InvalidInput):
    """A directory belongs to another process, the `owner`; one line: which."""

    def __init__(self, directory: object, owner: str) -> None:
        super().__init__(f"{directory} is in use by {owner}: wait for it, or give another directory (--workdir)")
        self.owner = owner


class RunFailed(RuntimeError):
    """A run cannot continue for a reason outside its configuration; one line: what happened, what to do."""


class Stopped(RuntimeError):
    """A run was interrupted and has stopped; one line: what is saved, how to resume."""


def one_line(error: Exception, length: int = 300) -> str:
    """The message of an error, of any library, as one line: at most its first `length` characters."""
    return " ".join(str(error).split())[:length]


def summary(error: Exception) -> str:
    """One line about an error of any library: its type, and the beginning of its message."""
    return f"{type(error).__name__}: {one_line(error, 200)}".rstrip(": ")


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raises InvalidInput unless `name` is among `choices`."""
    if not isinstance(name, str) or name not in choices:
        raise InvalidInput(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(choices))}")


def check_count(name: str, value: Any, least: int = 0) -> int:
    """`value` as an int. Raises InvalidInput unless it is an integer of any type, untraced, and >= `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise InvalidInput(f"{name} {value}: expected an integer >= {least} that is known when compiling") from None
    if count < least:
        raise InvalidInput(f"{name} {value}: expected {least} or more")
    return count


def check_number(name: str, value: Any, *, least: float = 0.0, batch: int | None = None, unit: str = "") -> Any:
    """`value` as a float, or for `batch` examples as a float64 array [batch]. Traced values are returned unchanged.

    Raises InvalidInput for the wrong shape or type, and for a concrete value, of any type, that is non-finite,
    below `least`, or above 1e15, whose square is still far from overflow.
    """
    shape = np.shape(value)
    if shape not in ((), (batch,)):
        each = "" if batch is None else f" or an array [{batch}], one number for each example"
        raise InvalidInput(f"{name} is of shape {list(shape)}: expected one number{each}")
    if isinstance(value, jax.core.Tracer):
        return value
    numbers = np.asarray(value)
    if not (jnp.issubdtype(numbers.dtype, jnp.floating) or jnp.issubdtype(numbers.dtype, jnp.integer)):
        raise InvalidInput(f"{name} {value!r}: expected a number")
    numbers = numbers.astype(np.float64)
    for wrong in numbers[~((numbers >= least) & (numbers <= 1e15))][:1]:
        raise InvalidInput(f"{name} {wrong}: expected a finite number >= {least:g}, at most 1e15{unit}")
    return numbers if shape else float(numbers)
