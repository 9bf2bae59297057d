"""The random streams of a run, all named here so that no two can coincide.

A stream is the seed's key folded with the stream's own number; anything it is folded with further (a step, the index
of a batch) concerns that stream alone. The orders of examples are drawn on the host, with NumPy.
"""

import jax
import numpy as np

from infofeat_jax.types import PRNGKey

DEVICE = {
    "initial_weights": 0,
    "training": 1,  # folded with the step: augmentation and the attack
    "validation": 2,  # folded with the batch: the same random starts after each epoch
    "evaluation": 3,  # folded with the batch: the same for all attacks, so that they share random starts
    "autoattack": 4,
    "cam_images": 5,
    "probes": 6,
}
HOST = {
    "held_out": 0x76616C,
    "data_order": 0x6F7264,  # with the epoch
    "extra_order": 0x657874,  # of the second pool, with the pass through it
    "pooled_order": 0x6D6978,  # of both pools' examples in a batch, with the step
}


def key(seed: int, stream: str) -> PRNGKey:
    """The key of one of the streams in DEVICE."""
    return jax.random.fold_in(jax.random.key(seed), DEVICE[stream])


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """The NumPy generator of one of the streams in HOST, at `counters` (such as the epoch)."""
    return np.random.default_rng([HOST[stream], seed, *counters])
