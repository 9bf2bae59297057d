"""The order of training examples of one or two pools, a function of (seed, step); padded batches for evaluation."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Shaped

from infofeat_jax import streams
from infofeat_jax.data.arrays import Split
from infofeat_jax.types import InvalidInput


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Returns the number of full batches in `n` examples; the remainder is dropped.

    Raises:
      InvalidInput: there is no full batch, or `batch_size` is not positive.
    """
    _check_batch_size(batch_size)
    if batch_size > n:
        raise InvalidInput(f"batch_size={batch_size} is larger than the training set: expected 1 to {n}")
    return n // batch_size


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int, stream: str = "data_order") -> Int[np.ndarray, " n"]:
    """Returns the order of the `n` training examples in an epoch: a read-only permutation of range(n)."""
    order = streams.generator(seed, stream, epoch).permutation(n)
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, step: int, n: int, batch_size: int, stream: str = "data_order"
) -> Int[np.ndarray, " batch_size"]:
    """Returns the indices of the examples of a global training step, counted from 0 over all epochs.

    Raises:
      InvalidInput: as `steps_per_epoch`.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(n, batch_size))
    return epoch_order(seed, epoch, n, stream)[step_in_epoch * batch_size :][:batch_size]


class Rows(NamedTuple):
    """The examples of a batch that come from each of two pools, and where they go in it."""

    own: Int[np.ndarray, " a"]  # indices in the training set
    extra: Int[np.ndarray, " b"]  # indices in the second pool
    order: Int[np.ndarray, " batch_size"] | None  # of the two, one after the other; None: as they are


def pooled_indices(seed: int, step: int, sizes: tuple[int, int], counts: tuple[int, int]) -> Rows:
    """The examples of a step, of a training set and a second pool of `sizes`, of which `counts` are in each batch.

    Each pool is passed through in an order of its own, again and again; their examples are shuffled within the batch,
    so that every device has of both.

    Raises:
      InvalidInput: as `steps_per_epoch`, for either pool.
    """
    own = batch_indices(seed, step, sizes[0], counts[0])
    if not counts[1]:
        return Rows(own, own[:0], None)
    extra = batch_indices(seed, step, sizes[1], counts[1], "extra_order")
    return Rows(own, extra, streams.generator(seed, "pooled_order", step).permutation(sum(counts)))


def take(own: Split, extra: Split | None, rows: Rows) -> Split:
    """The batch of these rows."""
    if extra is None or rows.order is None:
        return Split(own.images[rows.own], own.labels[rows.own])
    images = np.concatenate([own.images[rows.own], extra.images[rows.extra]])[rows.order]
    return Split(images, np.concatenate([own.labels[rows.own], extra.labels[rows.extra]])[rows.order])


def padded_batches(
    split: Split, batch_size: int, multiple: int = 1
) -> Iterator[tuple[Shaped[np.ndarray, "B h w c"], Int32[np.ndarray, " B"], Bool[np.ndarray, " B"]]]:
    """Iterates over (images, labels, mask) batches of equal size B, in order: `batch_size` rounded up to a `multiple`.

    Each has `batch_size` examples, the last one perhaps fewer, and then others, where the mask is False. An example's
    row and batch do not depend on `multiple`, so neither do random numbers that are drawn for it.

    Raises:
      InvalidInput: `batch_size` is not positive.
    """
    _check_batch_size(batch_size)
    padding = -batch_size % multiple
    return (_padded_batch(split, start, batch_size, padding) for start in range(0, len(split.labels), batch_size))


def _padded_batch(split: Split, start: int, batch_size: int, padding: int):
    end = min(start + batch_size, len(split.labels))
    positions = np.arange(start, start + batch_size + padding)
    rows = np.minimum(positions, end - 1)
    return split.images[rows], split.labels[rows], positions < end


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InvalidInput(f"batch_size={batch_size}: expected 1 or more")
