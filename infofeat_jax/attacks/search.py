"""Iterative searches, the common form of AutoAttack's components: advanced by one loop, or by a driver in chunks.

A search is a pair of pure functions on a state: a NamedTuple of arrays with a leading batch axis, among
them `adversarial` (the strongest image so far) and `success`. Since every leaf is per example, a driver may drop
and pad rows between iterations. Successful examples keep the first image that succeeded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infofeat_jax import threat as threats
from infofeat_jax.attacks.hoisting import hoisted
from infofeat_jax.attacks.inputs import as_forward, num_classes, prepare
from infofeat_jax.objectives import misclassified
from infofeat_jax.threat import Threat
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    Objective,
    PerExample,
    PRNGKey,
    check_count,
)

Logits = Float[Array, "b k"]
Scalar = Int[Array, ""] | int
State = Any


class Search(NamedTuple):
    """An iterative attack. `attempt` counts (target, restart) pairs; each sees the examples that earlier ones left."""

    start: Callable[[PRNGKey, Images, Labels, Logits, Scalar], State]  # (..., clean logits, attempt)
    step: Callable[[Forward, PRNGKey, Scalar, State], State]  # iteration t of one attempt
    num_steps: int  # iterations of an attempt
    num_attempts: int = 1
    queries: int = 1  # forward passes per iteration


class Result(NamedTuple):
    """`images` where the search succeeded, elsewhere the strongest image of its first attempt."""

    images: Images
    success: Bool[Array, " b"]


def attack(
    build: Callable[[Threat, int], Search], forward: Forward, key: PRNGKey, images: Images, labels: Labels, *,
    epsilon: Budget, norm: str, bounds: tuple[float, float],
) -> Images:  # fmt: skip
    """Checks a user's arguments and runs the search that `build` makes of (threat, number of classes)."""
    forward, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    if not images.size:  # not every model takes an empty batch
        return images
    search = build(threat, num_classes(forward, images))
    return run(search, forward, key, images, labels).images


def advance(
    search: Search, forward: Forward, key: PRNGKey, state: State, first: Scalar, last: Scalar
) -> tuple[Int[Array, ""], State]:
    """Runs iterations `first` to `last` - 1, or until every example is broken; returns (iterations done, state)."""
    forward = hoisted(as_forward(forward), state.adversarial)

    def body(carry):
        t, old = carry
        return t + 1, _hold(old, search.step(forward, key, t, old))

    def unfinished(carry):
        return (carry[0] < last) & ~carry[1].success.all()

    return jax.lax.while_loop(unfinished, body, (jnp.asarray(first, jnp.int32), state))


def run(search: Search, forward: Forward, key: PRNGKey, images: Images, labels: Labels) -> Result:
    """Runs all attempts in order; images that are already misclassified are returned unchanged, as successes."""
    forward = hoisted(as_forward(forward), images)
    logits = jax.lax.stop_gradient(forward(images).logits)

    def attempt(index, result: Result) -> Result:
        attempt_key = jax.random.fold_in(key, index)
        state = search.start(attempt_key, images, labels, logits, index)
        state = state._replace(success=state.success | result.success)
        _, state = advance(search, forward, attempt_key, state, 0, search.num_steps)
        take = ~result.success & (state.success | (index == 0))
        return Result(select(take, state.adversarial, result.images), state.success)

    return jax.lax.fori_loop(0, search.num_attempts, attempt, Result(images, misclassified(logits, labels)))


def look(
    forward: Forward, objective: Objective, x: Images, labels: Labels
) -> tuple[PerExample, Images, Bool[Array, " b"]]:
    """(the objective's values, their gradient, which are misclassified) at the points x."""

    def total(x: Images):
        outputs = as_forward(forward)(x)
        values = objective(outputs, outputs, labels)
        return values.sum(), (values, misclassified(outputs.logits, labels))

    gradient, (values, fooled) = jax.grad(total, has_aux=True)(x)
    return values, gradient, fooled


def ranked_class(logits: Logits, rank: Scalar) -> Labels:
    """The class of the rank-th highest logit (1: the prediction); of the lowest where the rest are masked (-inf)."""
    there = (logits > -jnp.inf).sum(-1, keepdims=True)
    place = logits.shape[-1] - jnp.clip(rank, 1, jnp.maximum(there, 1))
    return jnp.take_along_axis(jnp.argsort(logits, axis=-1), place, axis=-1)[:, 0].astype(jnp.int32)


def select(condition: Bool[Array, " b"], then: Array, otherwise: Array) -> Array:
    """Per example `then` or `otherwise`, [b, ...]."""
    return jnp.where(threats.per_example(condition, then), then, otherwise)


def target_count(num_targets: int, num_classes: int) -> int:
    """The number of target classes to attack. Raises InvalidInput for num_targets < 1, or for a single class."""
    if num_classes < 2:
        raise InvalidInput(f"the model has {num_classes} classes: expected 2 or more")
    return min(check_count("num_targets", num_targets, 1), num_classes - 1)


def _hold(old: State, new: State) -> State:
    adversarial = select(old.success, old.adversarial, new.adversarial)
    return new._replace(adversarial=adversarial, success=old.success | new.success)
