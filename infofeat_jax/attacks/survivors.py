"""One stage of AutoAttack on the examples that are left, with two batch sizes for XLA although examples drop out.

A batch has seats. Each holds one example, in one attempt, at its own iteration. A turn advances all seats by a few
iterations; then whoever is broken, or has no attempt left, makes room for one who waits. There are as many seats as
examples are left, if they fit. Once few sit and nobody waits, the batch moves to one of a quarter of the size.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.inputs import Randomised
from infofeat_jax.attacks.search import Counts, Search, State
from infofeat_jax.runtime import devices
from infofeat_jax.types import PRNGKey

TURN = 10  # iterations between two looks at who is broken
FULL = 0.75  # the larger batch is left when less of it would be filled, and not begun


class Stage(NamedTuple):
    """A named search, with its compiled parts: `turn` for each batch size, `move` from the larger to the smaller."""

    name: str
    search: Search
    turn: Callable
    move: Callable
    begun: set[int]  # the batch sizes that had a turn


class Data(NamedTuple):
    """All examples, as host arrays, with what is needed to attack them."""

    forward: Partial | Randomised
    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    logits: Float[np.ndarray, "n k"]  # of the clean images
    batch_size: int  # at most, but for a multiple of the devices
    mesh: Mesh | None

    @property
    def num_devices(self) -> int:
        """That a batch is split over."""
        return self.mesh.size if self.mesh else 1


class Seats(NamedTuple):
    """Who sits where, as host arrays: an example (-1: nobody), its attempt and the iteration t within it."""

    rows: Int[np.ndarray, " s"]
    attempts: Int[np.ndarray, " s"]
    t: Int[np.ndarray, " s"]

    @property
    def taken(self) -> Int[np.ndarray, " taken"]:
        """The seats where somebody sits."""
        return np.flatnonzero(self.rows >= 0)

    @property
    def unfinished(self) -> int:
        """The iterations of all attempts under way."""
        return int(self.t[self.taken].sum())


class Turn(NamedTuple):
    """What a turn has ended: one attempt of each of the examples `rows`."""

    rows: Int[np.ndarray, " ended"]
    broken: Bool[np.ndarray, " ended"]  # where it succeeded
    adversarial: Float[np.ndarray, "ended h w c"] | None  # None if nothing was broken
    t: Int[np.ndarray, " ended"]  # the iterations that it took
    unfinished: int  # iterations of the attempts under way
    compiling: bool = False  # comes before the first turn of a batch size, which compiles


def stage(name: str, search: Search) -> Stage:
    """A stage from any search."""
    move = jax.jit(lambda state, seats: jax.tree.map(lambda leaf: leaf[seats], state))
    return Stage(name, search, jax.jit(functools.partial(_turn, search)), move, set())


def batch_sizes(batch_size: int, count: int, num_devices: int = 1, compiled: Collection[int] = ()) -> tuple[int, int]:
    """The two batch sizes for `count` examples: in equal waves of at most `batch_size`, and a quarter of that.

    Multiples of 8 and of the devices; but the larger is at most `batch_size`, rounded up to a multiple of the devices.
    A size among `compiled` that a wave fills is preferred.
    """
    unit, most = math.lcm(8, num_devices), _round_up(batch_size, num_devices)
    wave = math.ceil(count / math.ceil(count / most))
    wanted = min(_round_up(wave, unit), most)
    large = min((size for size in compiled if wanted <= size <= most and _fills(wave, size)), default=wanted)
    return large, min(_round_up(large / 4, unit), large)


def next_size(sizes: tuple[int, int], taken: int, waiting: int) -> int:
    """The larger batch, unless those who sit fit into the smaller one and those who wait would not fill it."""
    large, small = sizes
    return small if taken <= small and not _fills(taken + waiting, large) else large


def _fills(count: int, size: int) -> bool:
    return count >= FULL * size


def place(mesh: Mesh | None, array: np.ndarray) -> Array:
    """A host array on the devices, split over the mesh if there is one."""
    return jnp.asarray(array) if mesh is None else devices.shard(mesh, array)


def attack(
    stage: Stage, key: PRNGKey, data: Data, rows: Int[np.ndarray, " m"], attempts: Int[np.ndarray, " m"]
) -> Iterator[Turn]:
    """Attacks the examples `rows`, each from its attempt on until one succeeds. Yields after each turn.

    What is found for an example depends on (key, example, attempt), but for rounding not on the others.
    """
    if not len(rows):
        return
    sizes, waiting = batch_sizes(data.batch_size, len(rows), data.num_devices, stage.begun), (rows, attempts)
    seats = _nobody(next_size(sizes, 0, len(rows)))
    state, inputs = _empty_state(stage.search, data, len(seats.rows)), None
    while len(seats.taken) or len(waiting[0]):
        size = next_size(sizes, len(seats.taken), len(waiting[0]))
        if size < len(seats.rows):
            seats, state, inputs = _move(stage, seats, state, size, data.mesh)
        seats, waiting = _sit_down(seats, *waiting)
        fresh = seats.rows[(seats.rows >= 0) & (seats.t == 0)]
        if inputs is None or len(fresh):
            inputs = [place(data.mesh, a[np.maximum(seats.rows, 0)]) for a in (data.images, data.labels, data.logits)]
        if size not in stage.begun:
            nobody = np.empty(0, np.int32)
            yield Turn(nobody, nobody > 0, None, nobody, seats.unfinished, compiling=True)
            stage.begun.add(size)
        left = stage.search.num_steps - seats.t[seats.taken]
        count = np.int32(min(TURN, left.max()))
        placed = Seats(*(place(data.mesh, part) for part in seats))
        t, state = stage.turn(data.forward, key, placed, inputs, len(fresh) > 0, count, state)
        seats, turn = _end(stage.search, seats, state, t)
        yield turn


def _turn(
    search: Search, forward: Partial | Randomised, key: PRNGKey, seats: Seats, inputs: list, begin: Bool[Array, ""],
    count: Int[Array, ""], state: State,
) -> tuple[Counts, State]:  # fmt: skip
    """Begins the attempts at t = 0, if there are any, and does `count` iterations. Returns (t, state)."""
    keys = searches.example_keys(key, seats.rows, seats.attempts)
    images, labels, logits = inputs
    early = searches.before_loop(forward, images)

    def begun(state: State) -> State:
        new = search.start(keys, images, labels, logits, seats.attempts)
        return jax.tree.map(lambda new, old: searches.select(seats.t == 0, new, old), new, state)

    state = jax.lax.cond(begin, begun, lambda state: state, state)
    t = jnp.where(seats.rows < 0, search.num_steps, seats.t)  # nobody is at the end already
    return jax.lax.fori_loop(0, count, lambda _, carry: searches.iterate(search, early, keys, *carry), (t, state))


def _end(search: Search, seats: Seats, state: State, t: Counts) -> tuple[Seats, Turn]:
    """Makes room where an attempt has ended; who is unbroken and has attempts left begins the next one."""
    t, success = devices.fetch((t, state.success))
    ended = (seats.rows >= 0) & (success | (t >= search.num_steps))
    found = devices.fetch(state.adversarial)[ended] if (ended & success).any() else None
    goes_on = ended & ~success & (seats.attempts + 1 < search.num_attempts)
    rows = np.where(ended & ~goes_on, -1, seats.rows)
    after = Seats(rows, seats.attempts + goes_on, np.where(ended, 0, t))
    return after, Turn(seats.rows[ended], success[ended], found, t[ended], after.unfinished)


def _sit_down(seats: Seats, rows: np.ndarray, attempts: np.ndarray) -> tuple[Seats, tuple[np.ndarray, np.ndarray]]:
    """Gives free seats to those who wait, in order; returns (seats, who still waits)."""
    free = np.flatnonzero(seats.rows < 0)[: len(rows)]
    seats = Seats(*(part.copy() for part in seats))
    for part, values in zip(seats, (rows, attempts, np.zeros(len(free))), strict=True):
        part[free] = values[: len(free)]
    return seats, (rows[len(free) :], attempts[len(free) :])


def _move(stage: Stage, seats: Seats, state: State, size: int, mesh: Mesh | None) -> tuple[Seats, State, None]:
    """Moves to a smaller batch; the inputs are to be placed anew."""
    taken = seats.taken
    fewer = _nobody(size)
    for part, values in zip(fewer, seats, strict=True):
        part[: len(taken)] = values[taken]
    chosen = place(mesh, np.resize(taken, size).astype(np.int32))
    moved = stage.move(state, chosen)
    return fewer, jax.tree.map(lambda leaf: jax.device_put(leaf, chosen.sharding), moved), None


def _nobody(size: int) -> Seats:
    return Seats(np.full(size, -1, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32))


def _empty_state(search: Search, data: Data, size: int) -> State:
    """Zeros of the state's shapes: every attempt begins by overwriting them."""
    shaped = lambda array: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype)  # noqa: E731
    counts = jax.ShapeDtypeStruct((size,), np.int32)
    keys = jax.eval_shape(searches.example_keys, jax.random.key(0), counts, counts)
    state = jax.eval_shape(search.start, keys, *map(shaped, (data.images, data.labels, data.logits)), counts)
    return jax.tree.map(lambda leaf: place(data.mesh, np.zeros(leaf.shape, leaf.dtype)), state)


def _round_up(count: float | int, unit: int) -> int:
    return math.ceil(count / unit) * unit
