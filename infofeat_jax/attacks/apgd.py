"""Auto-PGD (Croce & Hein, "Reliable evaluation of adversarial robustness ...", 2020): PGD with adaptive step sizes.

The step size of the momentum updates starts at 2 epsilon and is halved, with a return to the best point so far,
whenever progress has stalled between two checkpoints. Constants and order are those of the authors' implementation.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks import apgd_l1
from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.search import Counts, Keys, Logits, Search, select
from infofeat_jax.threat import Threat
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    Labels,
    Objective,
    PerExample,
    PRNGKey,
    check_choice,
    check_count,
)

MOMENTUM = 0.75  # weight of the new direction
STALLED = 0.75  # up to this share of increases in a window, progress has stalled
OBJECTIVES = {"ce": objectives.cross_entropy, "dlr": objectives.dlr}
LOSSES = (*OBJECTIVES, "dlr_targeted")


class ApgdState(NamedTuple):
    """The iterate, its predecessor and the best point, with what the next checkpoint needs."""

    images: Images
    labels: Labels
    targets: Labels
    x: Images
    previous: Images
    best: Images
    best_gradient: Images
    best_loss: PerExample
    loss: PerExample  # what the next loss is compared with
    increases: Int[Array, " b"]  # of the loss since the last checkpoint
    reviewed_loss: PerExample  # the best loss at the last checkpoint
    reduced: Bool[Array, " b"]  # whether the step size was halved there
    step_size: PerExample
    adversarial: Images
    fooled: PerExample  # the share of draws that misclassify `adversarial`; of a model that is not randomised, 0 or 1
    success: Bool[Array, " b"]


def apgd(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget, norm: str = "linf",
    loss: str = "ce", num_steps: int = 100, restarts: int = 1, num_targets: int = 9, eot: int = 0,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Images:  # fmt: skip
    """Auto-PGD with random starts on cross-entropy, DLR or targeted DLR (Croce & Hein, 2020).

    Args:
      forward: a frozen model, images -> Outputs (or bare logits).
      images, labels: [b, h, w, c] float32 within `bounds`; [b] classes.
      epsilon: budget in the images' units; `norm` "linf", "l2" or "l1".
      loss: "ce", "dlr" (3 classes or more, else the margin) or "dlr_targeted": one run for each of the
        `num_targets` most likely wrong classes (all, if the model has fewer), on the examples not yet broken.
      restarts: runs for each target. Broken examples take no part in later runs.
      eot: for a randomised model, `forward(images, key)`: loss and gradient are averages over so many draws
        (expectation over transformation; AutoAttack's version rand: 20). 0: the model is not randomised.

    Returns a misclassified image where one was found, else the point of highest loss of the first run.
    Images that are already misclassified are returned unchanged. Of a randomised model, it is the image that most
    draws misclassify. Raises InvalidInput for invalid arguments.
    """
    options = {"loss": loss, "num_steps": num_steps, "restarts": restarts, "num_targets": num_targets, "eot": eot}
    build, about = partial(apgd_search, **options), {"epsilon": epsilon, "norm": norm, "bounds": bounds}
    return searches.attack(build, forward, key, images, labels, **about, eot=check_count("eot", eot))


def apgd_search(
    threat: Threat, num_classes: int, *, loss: str = "ce", num_steps: int = 100, restarts: int = 1,
    num_targets: int = 9, eot: int = 0,
) -> Search:  # fmt: skip
    """Auto-PGD as a search; arguments as in `apgd`."""
    check_choice("loss", loss, LOSSES)
    num_steps, restarts = check_count("num_steps", num_steps), check_count("restarts", restarts, 1)
    num_targets, eot = searches.target_count(num_targets, num_classes), check_count("eot", eot)
    if threat.norm == "l1":
        objective = partial(_objective, loss)
        targets = num_targets if loss == "dlr_targeted" else 0
        return apgd_l1.apgd_l1_search(threat, objective, num_steps, restarts, targets, eot)
    windows = checkpoint_windows(num_steps)
    num_attempts = restarts * (num_targets if loss == "dlr_targeted" else 1)

    def start(keys: Keys, images: Images, labels: Labels, logits: Logits, attempt: Counts) -> ApgdState:
        targeted = loss == "dlr_targeted"
        targets = searches.ranked_class(logits, 2 + attempt // restarts) if targeted else labels
        return initial_state(threat, images, labels, targets, random_start(threat, keys, images))

    def step(forward: Forward, keys: Keys, t: Counts, state: ApgdState) -> ApgdState:
        about = _objective(loss, state.targets), state.x, state.labels
        value, gradient, fooled = searches.look_in_iteration(forward, *about, keys, t, eot)
        state = _record(state, t, value, gradient, fooled)
        state = state._replace(success=searches.settled(state.fooled, t == num_steps))
        state, gradient = _review(state, gradient, jnp.asarray(windows)[t])
        return _move(threat, state, gradient, t)

    # One more iteration than steps: each evaluates its point before moving on, the last one only evaluates.
    return Search(start, step, num_steps + 1, num_attempts, max(eot, 1), max(eot, 1), eot)


def checkpoint_windows(num_steps: int) -> np.ndarray:
    """[num_steps + 1]: the length of the window that ends after step t and is reviewed there, or 0."""
    windows = np.zeros(num_steps + 1, np.int32)
    window = max(int(0.22 * num_steps), 1)
    t = window
    while t <= num_steps:
        windows[t] = window
        window = max(window - max(int(0.03 * num_steps), 1), int(0.06 * num_steps), 1)
        t += window
    return windows


def random_start(threat: Threat, keys: Keys, images: Images) -> Images:
    """Uniform (l2: Gaussian) noise scaled to norm epsilon, within the box."""
    sample = jax.random.normal if threat.norm == "l2" else partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    return start_along(threat, images, searches.draw(sample, keys, images.shape[1:]))


def start_along(threat: Threat, images: Images, direction: Images) -> Images:
    """`images + epsilon * direction / |direction|`, within ball and box."""
    length = threats.size(threat.norm, direction) + 1e-12
    scaled = direction / threats.per_example(length, direction)
    return threats.project(threat, images, images + threats.budget(threat, images) * scaled)


def initial_state(threat: Threat, images: Images, labels: Labels, targets: Labels, start: Images) -> ApgdState:
    """The state before iteration 0, at the point `start`."""
    zero = jnp.zeros(labels.shape, images.dtype)
    never = jnp.zeros(labels.shape, bool)
    return ApgdState(
        images, labels, targets, x=start, previous=start, best=start, best_gradient=jnp.zeros_like(images),
        best_loss=zero - jnp.inf, loss=zero + jnp.inf, increases=jnp.zeros(labels.shape, jnp.int32),
        reviewed_loss=zero, reduced=~never, step_size=zero + 2 * threat.epsilon, adversarial=start,
        fooled=zero, success=never,
    )  # fmt: skip


def _objective(loss: str, targets: Labels) -> Objective:
    return objectives.dlr_targeted(targets) if loss == "dlr_targeted" else OBJECTIVES[loss]


def _record(state: ApgdState, t: Counts, loss: PerExample, gradient: Images, fooled: PerExample) -> ApgdState:
    higher = loss > state.best_loss
    best = select(higher, state.x, state.best)
    unbroken = select(state.fooled > 0, state.adversarial, best)
    return state._replace(
        best=best,
        best_gradient=select(higher, gradient, state.best_gradient),
        best_loss=jnp.where(higher, loss, state.best_loss),
        # As in the authors' code: the loss after the first step is compared with 0, not with the start's.
        loss=jnp.where(t == 0, 0.0, loss),
        increases=state.increases + (loss > state.loss),
        adversarial=select(fooled > state.fooled, state.x, unbroken),
        fooled=jnp.maximum(fooled, state.fooled),
    )


def _review(state: ApgdState, gradient: Images, window: Counts) -> tuple[ApgdState, Images]:
    """At a checkpoint (window > 0), where progress has stalled: halves the step size, returns to the best point."""
    due = window > 0
    unsteady = state.increases <= STALLED * window
    unimproved = ~state.reduced & (state.reviewed_loss >= state.best_loss)
    reduce = due & (unsteady | unimproved)
    reviewed = state._replace(
        x=select(reduce, state.best, state.x),
        increases=jnp.where(due, 0, state.increases),
        reviewed_loss=jnp.where(due, state.best_loss, state.reviewed_loss),
        reduced=jnp.where(due, reduce, state.reduced),
        step_size=jnp.where(reduce, state.step_size / 2, state.step_size),
    )
    return reviewed, select(reduce, state.best_gradient, gradient)


def _move(threat: Threat, state: ApgdState, gradient: Images, t: Counts) -> ApgdState:
    x = state.x
    direction = threats.NORMS[threat.norm].ascent(jnp.where(jnp.isfinite(gradient), gradient, 0.0))
    step = threats.per_example(state.step_size, x) * direction
    ahead = threats.project(threat, state.images, x + step)
    weight = threats.per_example(jnp.where(t == 0, 1.0, MOMENTUM), x)
    moved = x + weight * (ahead - x) + (1 - weight) * (x - state.previous)
    return state._replace(x=threats.project(threat, state.images, moved), previous=x)
