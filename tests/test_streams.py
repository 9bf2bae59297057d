"""Streams of random numbers: no two can be the same, at any seed."""

import itertools

import jax
import numpy as np

from infofeat_jax import streams


def test_keys_of_all_streams_and_seeds_differ():
    """Also when they are folded further, with steps or batches."""
    seeds, counters = (0, 1, 2, 2**32 - 1), (None, 0, 1, 2, 3, 4, 5, 6)
    drawn = {}
    for seed, name, counter in itertools.product(seeds, streams.DEVICE, counters):
        key = streams.key(seed, name)
        key = key if counter is None else jax.random.fold_in(key, counter)
        drawn[seed, name, counter] = tuple(jax.random.key_data(key).tolist())
    assert len(set(drawn.values())) == len(drawn)


def test_generators_of_the_host_differ():
    """As they are used: the held-out images have no counter, the order of the examples has the epoch."""
    used = [("held_out",), *(("data_order", epoch) for epoch in range(4))]
    drawn = [streams.generator(seed, *one).permutation(50).tolist() for seed in (0, 1, 5) for one in used]
    assert len({tuple(order) for order in drawn}) == len(drawn)


def test_numbers_of_streams_are_fixed():
    """A run that is resumed with another version draws the same numbers: a stream's number never changes."""
    assert streams.DEVICE == {
        "initial_weights": 0, "training": 1, "validation": 2, "evaluation": 3, "autoattack": 4, "cam_images": 5,
        "probes": 6,
    }  # fmt: skip
    assert streams.HOST == {
        "held_out": 0x76616C, "data_order": 0x6F7264, "extra_order": 0x657874, "pooled_order": 0x6D6978
    }  # fmt: skip
    expected = np.random.default_rng([0x76616C, 3]).permutation(9)
    np.testing.assert_array_equal(streams.generator(3, "held_out").permutation(9), expected)
