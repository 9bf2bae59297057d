"""One stage of AutoAttack on one batch, with fixed shapes for XLA although broken examples are dropped for speed.

Survivors are compacted into a few padded bucket sizes between chunks of iterations, so that nothing is compiled
twice: there is one program with the network's gradient for each stage and bucket size that occurs.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.search import Search, State
from infofeat_jax.types import PRNGKey

CHUNK = 10  # iterations between two compactions of the survivors
STEP = 8  # bucket sizes are multiples of it


class Stage(NamedTuple):
    """A named search, its parts compiled once for each bucket size."""

    name: str
    search: Search
    start: Callable
    advance: Callable


class Batch(NamedTuple):
    """A batch as host arrays, with what is needed to attack it. `place` turns host arrays into device arrays."""

    forward: Partial
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    sizes: tuple[int, ...]
    place: Callable


class Found(NamedTuple):
    """The result of a stage: `adversarial` [b, h, w, c] was found where `broken` [b]; `queries` over all examples."""

    adversarial: np.ndarray
    broken: np.ndarray
    queries: int


def stage(name: str, search: Search) -> Stage:
    """A stage from any search."""
    return Stage(name, search, jax.jit(search.start), jax.jit(functools.partial(searches.advance, search)))


def bucket_sizes(batch_size: int, count: int) -> tuple[int, ...]:
    """Bucket sizes for `count` examples, ascending: 16, ..., 3/8, 1/2, 3/4 of `batch_size`, and one that just fits.

    All are multiples of 8, except for `batch_size` itself. Batches share all but the last of them.
    """
    largest = min(batch_size, _round_up(count))
    halves = [batch_size / 2**k for k in range(32) if batch_size / 2**k >= 16]
    ladder = {_round_up(share * size) for size in halves for share in (0.75, 1.0)}
    return tuple(sorted({size for size in ladder if size < largest} | {largest}))


def pad(rows: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """`rows`, padded with copies of the first one to the next bucket size."""
    return np.concatenate([rows, np.repeat(rows[:1], _bucket(len(rows), sizes) - len(rows))])


def attack(stage: Stage, key: PRNGKey, batch: Batch) -> Found:
    """Runs all attempts of a stage in order, each on the examples that the earlier ones left."""
    found = Found(batch.images, np.zeros(len(batch.labels), bool), 0)
    for attempt in range(stage.search.num_attempts):
        if not found.broken.all():
            found = _attempt(stage, attempt, jax.random.fold_in(key, attempt), batch, found)
    return found


def _attempt(stage: Stage, attempt: int, key: PRNGKey, batch: Batch, found: Found) -> Found:
    rows, t, limit = np.flatnonzero(~found.broken), 0, stage.search.num_steps
    padded = pad(rows, batch.sizes)
    inputs = (batch.place(a[padded]) for a in (batch.images, batch.labels, batch.logits))
    state = _mark_padding(stage.start(key, *inputs, attempt), len(rows), batch)
    while rows.size and t < limit:
        last = min(t + CHUNK, limit)
        done, state = stage.advance(batch.forward, key, state, np.int32(t), np.int32(last))
        found = found._replace(queries=found.queries + (int(done) - t) * len(rows) * stage.search.queries)
        t, success = int(done), np.asarray(state.success)[: len(rows)]
        alive = np.flatnonzero(~success)
        finished = t == limit or not alive.size
        if finished or _bucket(len(alive), batch.sizes) < len(state.success):
            found = _harvest(found, rows, success, state)
            state, rows = None if finished else _compact(state, alive, batch), rows[alive]
    return found


def _harvest(found: Found, rows: np.ndarray, success: np.ndarray, state: State) -> Found:
    adversarial, broken = found.adversarial.copy(), found.broken.copy()
    adversarial[rows[success]] = np.asarray(state.adversarial)[: len(rows)][success]
    broken[rows[success]] = True
    return found._replace(adversarial=adversarial, broken=broken)


def _compact(state: State, alive: np.ndarray, batch: Batch) -> State:
    rows = pad(alive, batch.sizes)
    return _mark_padding(jax.tree.map(lambda leaf: batch.place(np.asarray(leaf)[rows]), state), len(alive), batch)


def _mark_padding(state: State, count: int, batch: Batch) -> State:
    """Padding counts as broken, so that no loop waits for it."""
    return state._replace(success=batch.place(np.arange(len(state.success)) >= count))


def _round_up(count: float | int) -> int:
    return math.ceil(count / STEP) * STEP


def _bucket(count: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if size >= count)
