"""The types that all modules share.

Images are float32 NHWC in [0, 1]; budgets (epsilon, step sizes) are in the images' own units.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxtyping import Array, Float, Int, Key, UInt32

Images = Float[Array, "b h w c"]
Labels = Int[Array, " b"]
Probabilities = Float[Array, "b k"]
PerExample = Float[Array, " b"]
PRNGKey = Key[Array, ""] | UInt32[Array, "2"]


class Outputs(NamedTuple):
    """What a classifier returns for a batch. Code that reads logits alone accepts None in the rest."""

    logits: Float[Array, "b k"]
    features: Float[Array, "b d"] | None = None  # after global average pooling
    maps: Float[Array, "b h w d"] | None = None  # M_conv: what is pooled
    cam: Float[Array, "b h w k"] | None = None  # Eq. 6, one map a class
    kernel: Float[Array, "d k"] | None = None  # w_fc, by which the features are multiplied; not per example


# A frozen model: weights and mode closed over. Library functions also accept one that returns bare logits.
Forward = Callable[[Images], Outputs]

# (perturbed outputs, clean outputs, labels) -> [b]: what an attack ascends.
Objective = Callable[[Outputs, Outputs, Labels], PerExample]

# (forward, key, images, labels) -> perturbed images.
Attack = Callable[[Forward, PRNGKey, Images, Labels], Images]


class InvalidInput(ValueError):
    """A value that the user can correct; the message is one line: the value, what is valid, what to do."""


class RunFailed(RuntimeError):
    """A run that cannot go on for a reason outside its configuration; one line: what happened, what to do."""


class Stopped(RuntimeError):
    """The run was asked to stop and has done so; one line: what is saved, how to go on."""


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raises InvalidInput unless `name` is among `choices`."""
    if name not in choices:
        raise InvalidInput(f"unknown {kind} {name!r}: choose one of {', '.join(sorted(choices))}")
