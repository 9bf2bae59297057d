"""Streams of random numbers: each is a function of the seed, and no two are the same."""

import itertools

import jax
import numpy as np

from infofeat_jax import streams


def test_no_two_streams_of_random_numbers_are_the_same():
    """Nor those of two seeds, nor of two epochs."""
    keys = [streams.key(seed, name) for seed, name in itertools.product((0, 1), streams.DEVICE)]
    assert len({jax.random.bits(key, (4,)).tobytes() for key in keys}) == 2 * len(streams.DEVICE)
    drawn = [streams.generator(*of).random(4) for of in itertools.product((0, 1), streams.HOST, (0, 1))]
    assert len({numbers.tobytes() for numbers in drawn}) == 4 * len(streams.HOST)


def test_a_stream_is_a_function_of_the_seed():
    np.testing.assert_array_equal(*(jax.random.bits(streams.key(3, "training"), (4,)) for _ in range(2)))
    np.testing.assert_array_equal(*(streams.generator(3, "held_out", 5).random(4) for _ in range(2)))
