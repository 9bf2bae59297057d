"""Projected gradient ascent: the one loop behind FGSM, PGD, CW and InfoFeature."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from infofeat_jax import threat as threats
from infofeat_jax.attacks.hoisting import hoisted
from infofeat_jax.attacks.inputs import prepare
from infofeat_jax.objectives import misclassified
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    Objective,
    PerExample,
    PRNGKey,
    check_choice,
    check_count,
    check_number,
)

# (key, images) -> where an attack starts.
Start = Callable[[PRNGKey, Images], Images]


class Candidate(NamedTuple):
    """A perturbed batch, its value and its success."""

    images: Images
    value: PerExample  # of the objective
    success: Bool[Array, " b"]  # misclassified, or classified as the target


def projected_ascent(
    forward: Forward,
    key: PRNGKey,
    images: Images,
    labels: Labels,
    *,
    objective: Objective,
    epsilon: Budget,
    step_size: Budget,
    num_steps: int,
    norm: str = "linf",
    random_start: bool = True,
    start: Start | None = None,
    clip_start: bool = True,
    restarts: int = 1,
    keep: str = "last",
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Images:
    """Ascends `objective` within the epsilon ball of `norm` and the box `bounds`, by signed or normalised steps.

    Args:
      forward: a frozen model, images -> Outputs, or anything else that `inputs.as_forward` accepts.
      key: PRNG key for the random starts; unused without them.
      images: [b, h, w, c] within `bounds`, float32, or bfloat16 or float16, which become float32.
      labels: [b] integer classes; with `targeted` (which only decides what counts as success) the targets.
      objective: (perturbed, clean outputs, labels) -> [b].
      epsilon, step_size: in the images' units; one number, or [b] with one for each example.
      random_start: start at a uniformly random point of the ball.
      start: (key, images) -> where to start instead.
      clip_start: False lets the start leave the ball and the box, until the first step.
      restarts: number of independent runs; each example keeps its best: success first, then the highest value.
      keep: the "last" iterate of a run, or the "worst" (for the model) of all its iterates within ball and box.

    Returns perturbed images, float32, never outside the ball or the box. Raises InvalidInput for invalid arguments.
    """
    check_choice("keep", keep, ("last", "worst"))
    forward, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    step_size = check_number("step_size", step_size, batch=len(images), unit=threats.UNIT)
    num_steps, restarts = check_count("num_steps", num_steps), check_count("restarts", restarts, 1)
    if not images.size:  # not every model takes an empty batch
        return images
    forward = hoisted(forward, images)
    clip = clip_start or num_steps == 0
    clean = jax.lax.stop_gradient(forward(images))

    def total(x: Images):
        outputs = forward(x)
        value = objective(outputs, clean, labels).astype(jnp.float32)
        return value.sum(), Candidate(x, value, misclassified(outputs.logits, labels) != targeted)

    def step(x: Images):
        gradient, seen = jax.grad(total, has_aux=True)(x)
        return threats.ascend(threat, images, x, gradient, step_size), seen

    def begin(key: PRNGKey) -> Images:
        if start is None:
            return threats.random_start(threat, key, images, clip=clip) if random_start else images
        x = start(key, images).astype(jnp.float32)
        return threats.project(threat, images, x) if clip else x

    def advance(t, x: Images, best: Candidate) -> tuple[Images, Candidate]:
        x, seen = step(x)
        if not clip:  # the start may lie outside the ball or the box, so it is not a candidate
            seen = seen._replace(value=jnp.where(t == 0, -jnp.inf, seen.value), success=seen.success & (t > 0))
        return x, better(best, seen)

    def run(key: PRNGKey, best: Candidate | None) -> Images | Candidate:
        x = begin(key)
        if num_steps and keep == "last":  # even an empty loop is traced, and a model without a gradient has no step
            x = jax.lax.fori_loop(0, num_steps, lambda _, x: step(x)[0], x)
        elif num_steps:
            x, best = jax.lax.fori_loop(0, num_steps, lambda t, c: advance(t, *c), (x, best))
        return x if best is None else better(best, total(x)[1])

    if restarts == 1 and keep == "last":
        return run(key, None)
    nothing = Candidate(images, jnp.full(labels.shape, -jnp.inf, jnp.float32), jnp.zeros(labels.shape, bool))
    keys = key[None] if restarts == 1 else jax.random.split(key, restarts)
    return jax.lax.scan(lambda best, k: (run(k, best), None), nothing, keys)[0].images


def check_untargeted(attack: str, options: Mapping[str, Any]) -> None:
    """Raises InvalidInput for `targeted` of an attack whose objective knows no label."""
    if options.get("targeted"):
        raise InvalidInput(f"{attack} knows no target: leave `targeted` out, or take pgd, cw or infofeature")


def better(best: Candidate, seen: Candidate) -> Candidate:
    """Per example, `seen` where it succeeds and `best` does not, or else where its value is higher."""
    more = (seen.value > best.value) & (seen.success == best.success)
    take = more | (seen.success & ~best.success)
    return jax.tree.map(lambda s, b: jnp.where(threats.per_example(take, s), s, b), seen, best)
