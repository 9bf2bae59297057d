"""Iterative searches, the common form of AutoAttack's components: run by one loop, or by a driver in turns.

A search is a pair of pure functions on a state: a NamedTuple of arrays with a leading batch axis, among
them `adversarial` (the strongest image so far) and `success`. Everything is per example, random keys and iteration
counts too, so a driver may replace rows between iterations, and what is found for an example does not depend on the
others (but for rounding). Successful examples keep the first image that succeeded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from infofeat_jax import threat as threats
from infofeat_jax.attacks.hoisting import hoisted
from infofeat_jax.attacks.inputs import Randomised, as_forward, at_draw, num_classes, of_kind, prepare
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
Keys = Key[Array, " b"] | UInt32[Array, "b 2"]  # one for each example
Counts = Int[Array, " b"]
Scalar = Int[Array, ""] | int
State = Any


class Search(NamedTuple):
    """An iterative attack. An example's attempts are (target, restart) pairs in order, until one breaks it."""

    start: Callable[[Keys, Images, Labels, Logits, Counts], State]  # (..., clean logits, attempt)
    step: Callable[[Forward, Keys, Counts, State], State]  # each example's iteration t of an attempt
    num_steps: int  # iterations of an attempt
    num_attempts: int = 1
    queries: int = 1  # forward passes per iteration
    gradients: int = 0  # of these, passes that are also differentiated
    eot: int = 0  # draws of a randomised model for each gradient; 0: the model is not randomised


class Result(NamedTuple):
    """`images` where the search succeeded, elsewhere the strongest image of its first attempt."""

    images: Images
    success: Bool[Array, " b"]


def attack(
    build: Callable[[Threat, int], Search], forward: Forward, key: PRNGKey, images: Images, labels: Labels, *,
    epsilon: Budget, norm: str, bounds: tuple[float, float], eot: int = 0,
) -> Images:  # fmt: skip
    """Checks a user's arguments and runs the search that `build` makes of (threat, number of classes)."""
    forward = of_kind(forward, eot)
    forward, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    if not images.size:  # not every model takes an empty batch
        return images
    search = build(threat, num_classes(forward, images))
    return run(search, forward, key, images, labels).images


def run(search: Search, forward: Forward, key: PRNGKey, images: Images, labels: Labels) -> Result:
    """Runs all attempts in order; images that are already misclassified are returned unchanged, as successes."""
    forward = before_loop(forward, images)
    logits = jax.lax.stop_gradient(as_forward(at_draw(forward, key))(images).logits)
    rows = jnp.arange(len(labels), dtype=jnp.int32)

    def attempt(index, result: Result) -> Result:
        attempts = jnp.full_like(rows, index)
        keys = example_keys(key, rows, attempts)
        state = search.start(keys, images, labels, logits, attempts)
        state = state._replace(success=state.success | result.success)
        _, state = jax.lax.while_loop(
            lambda carry: unfinished(search, *carry).any(),
            lambda carry: iterate(search, forward, keys, *carry),
            (jnp.zeros_like(rows), state),
        )
        take = ~result.success & (state.success | (index == 0))
        return Result(select(take, state.adversarial, result.images), state.success)

    return jax.lax.fori_loop(0, search.num_attempts, attempt, Result(images, misclassified(logits, labels)))


def before_loop(forward: Forward, images: Images) -> Forward:
    """The model for the iterations on images of this shape: what they have in common is computed now."""
    return forward if isinstance(forward, Randomised) else hoisted(as_forward(forward), images)


def example_keys(key: PRNGKey, rows: Counts, attempts: Counts) -> Keys:
    """The keys of the examples `rows` of a data set in these attempts."""
    fold_in = jax.random.fold_in
    return jax.vmap(lambda row, attempt: fold_in(fold_in(key, row), attempt))(rows, attempts)


def unfinished(search: Search, t: Counts, state: State) -> Bool[Array, " b"]:
    """Which examples are neither broken nor at the end of their attempt."""
    return (t < search.num_steps) & ~state.success


def iterate(search: Search, forward: Forward, keys: Keys, t: Counts, state: State) -> tuple[Counts, State]:
    """One iteration of the unfinished examples, returning (t, state). The others keep image and success."""
    active = unfinished(search, t, state)
    new = search.step(forward, keys, t, state)
    adversarial = select(active, new.adversarial, state.adversarial)
    return t + active, new._replace(adversarial=adversarial, success=jnp.where(active, new.success, state.success))


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


def look_at_draws(
    forward: Forward, objective: Objective, x: Images, labels: Labels, key: PRNGKey, eot: int
) -> tuple[PerExample, Images, PerExample]:
    """`look` averaged over `eot` draws of a randomised model; the last value is the share of draws that misclassify.

    Expectation over transformation (Athalye et al., "Synthesizing robust adversarial examples", 2018).
    """

    def add(total, key):
        found = look(at_draw(forward, key), objective, x, labels)
        return jax.tree.map(lambda total, value: total + value, total, found), None

    nothing = jnp.zeros(labels.shape, x.dtype)
    total, _ = jax.lax.scan(add, (nothing, jnp.zeros_like(x), nothing), jax.random.split(key, eot))
    return jax.tree.map(lambda total: total / eot, total)


def look_in_iteration(
    forward: Forward, objective: Objective, x: Images, labels: Labels, keys: Keys, t: Counts, eot: int
) -> tuple[PerExample, Images, PerExample]:
    """`look`, or with `eot` > 0 `look_at_draws`, in the iterations t; the last value is a share of draws."""
    if eot:
        return look_at_draws(forward, objective, x, labels, draw_key(keys, t), eot)
    value, gradient, fooled = look(forward, objective, x, labels)
    return value, gradient, fooled.astype(value.dtype)


def settled(fooled: PerExample, last: Bool[Array, " b"]) -> Bool[Array, " b"]:
    """Which attempts have succeeded, by the share of draws fooled: all of them, or in the last iteration any.

    Whether a randomised model counts as broken is for a draw to decide that the attack has not seen.
    """
    return (fooled >= 1) | last & (fooled > 0)


def draw_key(keys: Keys, t: Counts) -> PRNGKey:
    """One key for a whole batch in which each example is at its own iteration."""
    bits = jax.vmap(jax.random.bits)(jax.vmap(jax.random.fold_in)(keys, t))
    return jax.random.fold_in(keys[0], bits.sum(dtype=bits.dtype))


def ranked_class(logits: Logits, rank: Counts | int) -> Labels:
    """The class of the rank-th highest logit (1: the prediction); of the lowest where the rest are masked (-inf)."""
    there = (logits > -jnp.inf).sum(-1, keepdims=True)
    place = logits.shape[-1] - jnp.clip(jnp.reshape(rank, (-1, 1)), 1, jnp.maximum(there, 1))
    return jnp.take_along_axis(jnp.argsort(logits, axis=-1), place, axis=-1)[:, 0].astype(jnp.int32)


def select(condition: Bool[Array, " b"], then: Array, otherwise: Array) -> Array:
    """Per example `then` or `otherwise`, [b, ...]."""
    return jnp.where(threats.per_example(condition, then), then, otherwise)


def draw(sample: Callable, keys: Keys, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """[b, *shape] of `sample(key, shape, dtype)`, with a key for each example."""
    return jax.vmap(lambda key: sample(key, shape, jnp.float32))(keys)


def target_count(num_targets: int, num_classes: int) -> int:
    """The number of target classes to attack. Raises InvalidInput for num_targets < 1, or for a single class."""
    if num_classes < 2:
        raise InvalidInput(f"the model has {num_classes} classes: expected 2 or more")
    return min(check_count("num_targets", num_targets, 1), num_classes - 1)
