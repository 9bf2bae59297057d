"""Auto-PGD in l1 (Croce & Hein, "Mind the box: l1-APGD for sparse adversarial attacks ...", 2021).

Sparse steps, whose number of entries follows that of the best point, without momentum; three phases with shrinking
radius, each from the best point of the one before. Constants, order and the start, Gaussian noise projected onto the
largest ball, are those of the authors' implementation at a392200 (before, it projected around a shifted centre).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from infofeat_jax import l1
from infofeat_jax import threat as threats
from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.search import Counts, Keys, Logits, Search, select
from infofeat_jax.threat import Threat
from infofeat_jax.types import Forward, Images, Labels, Objective, PerExample

RADII = (3.0, 2.0, 1.0)  # of the phases, in multiples of epsilon
DENSER = 1.5  # the next steps have 1 / 1.5 of the best point's entries
UNCHANGED = 0.95  # below this ratio of entries the step starts anew
SHRINK, LEAST = 1.5, 10.0  # otherwise the step is divided by 1.5, down to a tenth of the radius
REVIEW = 0.04  # share of a phase's iterations between two reviews


class SparseState(NamedTuple):
    """The iterate and the best point, with the sparsity and the step size that follow from it."""

    images: Images
    labels: Labels
    targets: Labels
    x: Images
    best: Images
    best_gradient: Images
    best_loss: PerExample
    entries: PerExample  # changed by the next steps
    support: PerExample  # entries that the best point had changed at the last review
    step_size: PerExample
    adversarial: Images
    fooled: PerExample  # the share of draws that misclassify `adversarial`
    success: Bool[Array, " b"]


class Schedule(NamedTuple):
    """For each evaluation t: the radius, and what follows it."""

    radius: np.ndarray  # in multiples of epsilon
    next_radius: np.ndarray
    review: np.ndarray  # whether sparsity and step size are reviewed
    ends: np.ndarray  # whether a phase ends here
    counts: np.ndarray  # whether an adversarial example counts: in the last phase


def schedule(num_steps: int) -> Schedule:
    """The phases' evaluations, one more than steps in each: 30, 30 and 40 % of the steps; one phase below 3 steps."""
    first = math.ceil(0.3 * num_steps)
    lengths = (first, first, num_steps - 2 * first) if num_steps > 2 else (num_steps,)
    radii = RADII[-len(lengths) :]
    rows = []
    for phase, length in enumerate(lengths):
        every = max(int(REVIEW * length), 1)
        following = radii[min(phase + 1, len(radii) - 1)]
        for t in range(length + 1):
            due = t > 0 and t % every == 0
            rows.append((radii[phase], following, due, t == length, phase == len(lengths) - 1))
    columns = (np.asarray(column) for column in zip(*rows, strict=True))
    return Schedule(*(c.astype(np.float32) if c.dtype.kind == "f" else c for c in columns))


def apgd_l1_search(
    threat: Threat, objective: Callable[[Labels], Objective], num_steps: int, restarts: int, num_targets: int,
    eot: int = 0,
) -> Search:  # fmt: skip
    """Auto-PGD in l1 as a search: `objective` of the targets; `num_targets` 0 is untargeted, the rest as in `apgd`."""
    plan = schedule(num_steps)

    def start(keys: Keys, images: Images, labels: Labels, logits: Logits, attempt: Counts) -> SparseState:
        targets = searches.ranked_class(logits, 2 + attempt // restarts) if num_targets else labels
        noise = images + searches.draw(jax.random.normal, keys, images.shape[1:])
        never = jnp.zeros(labels.shape, bool)
        zero = jnp.zeros(labels.shape, images.dtype)
        state = SparseState(
            images,
            labels,
            targets,
            noise,
            noise,
            images,
            zero,
            zero,
            zero,
            zero,
            adversarial=images,
            fooled=zero,
            success=never,
        )
        return begin_phase(threat, state, float(plan.radius[0]))

    def step(forward: Forward, keys: Keys, t: Counts, state: SparseState) -> SparseState:
        now = Schedule(*(jnp.asarray(column)[t] for column in plan))  # of each example
        about = objective(state.targets), state.x, state.labels
        value, gradient, fooled = searches.look_in_iteration(forward, *about, keys, t, eot)
        state = _record(state, value, gradient, fooled * now.counts, now.counts)
        state = state._replace(success=searches.settled(state.fooled, now.ends & now.counts))
        ended = begin_phase(threat, state, now.next_radius)
        state, gradient = _review(threat, state, gradient, now)
        going = state._replace(x=_move(threat, state, gradient, now.radius))
        # success and adversarial of a phase that has ended are those recorded; the last one is never begun anew.
        return jax.tree.map(partial(select, now.ends & ~now.counts), ended, going)

    return Search(start, step, len(plan.radius), restarts * max(num_targets, 1), max(eot, 1), max(eot, 1), eot)


def begin_phase(threat: Threat, state: SparseState, radius) -> SparseState:
    """The best point so far, projected onto the ball of the next radius (in multiples of epsilon)."""
    x = _project(threat, state.images, state.best, radius)
    support = l1.support(x - state.images)
    return state._replace(
        x=x, best=x, best_gradient=jnp.zeros_like(x), best_loss=jnp.full_like(support, -jnp.inf),
        entries=support / DENSER, support=support, step_size=jnp.full_like(support, radius * threat.epsilon),
    )  # fmt: skip


def _record(
    state: SparseState, loss: PerExample, gradient: Images, fooled: PerExample, counts: Bool[Array, " b"]
) -> SparseState:
    higher = loss > state.best_loss
    best = select(higher, state.x, state.best)
    strongest = select(counts, best, state.images)  # earlier points lie outside the ball
    return state._replace(
        best=best,
        best_gradient=select(higher, gradient, state.best_gradient),
        best_loss=jnp.where(higher, loss, state.best_loss),
        adversarial=select(fooled > state.fooled, state.x, select(state.fooled > 0, state.adversarial, strongest)),
        fooled=jnp.maximum(fooled, state.fooled),
    )


def _review(threat: Threat, state: SparseState, gradient: Images, now: Schedule) -> tuple[SparseState, Images]:
    """Where the best point has become sparser: back to it with a full step; elsewhere a smaller step."""
    largest = now.radius * threat.epsilon
    support = l1.support(state.best - state.images)
    anew = now.review & (support / state.support < UNCHANGED)
    step_size = jnp.where(anew, largest, jnp.maximum(state.step_size / SHRINK, largest / LEAST))
    reviewed = state._replace(
        x=select(anew, state.best, state.x),
        entries=jnp.where(now.review, support / DENSER, state.entries),
        support=jnp.where(now.review, support, state.support),
        step_size=jnp.where(now.review, step_size, state.step_size),
    )
    return reviewed, select(anew, state.best_gradient, gradient)


def _move(threat: Threat, state: SparseState, gradient: Images, radius) -> Images:
    direction = l1.sparse_direction(jnp.where(jnp.isfinite(gradient), gradient, 0.0), state.entries)
    step = threats.per_example(state.step_size, state.x) * direction
    return _project(threat, state.images, state.x + step, radius)


def _project(threat: Threat, images: Images, perturbed: Images, radius) -> Images:
    return threats.project(threat._replace(epsilon=radius * threat.epsilon), images, perturbed)
