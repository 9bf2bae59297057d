"""The order of the examples: each once an epoch, a function of seed and epoch."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import create_images, message

from infofeat_jax import data
from infofeat_jax.data import batches

SIZES = st.integers(1, 60)
SEEDS = st.integers(0, 2**32)


@settings(deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 300), n=SIZES, batch_size=SIZES)
def test_an_epoch_visits_every_example_once(seed, epoch, n, batch_size):
    batch_size = min(batch_size, n)
    steps = batches.steps_per_epoch(n, batch_size)
    assert 0 <= n - steps * batch_size < batch_size
    order = batches.epoch_order(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    visited = [batches.batch_indices(seed, epoch * steps + i, n, batch_size) for i in range(steps)]
    np.testing.assert_array_equal(np.concatenate(visited), order[: steps * batch_size])


def test_order_is_a_function_of_seed_and_epoch():
    code = "from infofeat_jax.data.batches import epoch_order as o; print(o(3, 5, 50).tolist())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = batches.epoch_order(3, 5, 50).tolist()
    assert elsewhere.stdout.strip() == str(here)
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert batches.epoch_order(seed, epoch, 50).tolist() != here
    with pytest.raises(ValueError, match="read-only"):
        batches.epoch_order(3, 5, 50)[0] = 1


@given(n=SIZES, batch_size=SIZES)
def test_padded_batches_hold_every_example_once(n, batch_size):
    split = data.Split(create_images(n, (2, 2, 1)), np.arange(n, dtype=np.int32))
    seen = []
    for images, labels, mask in batches.padded_batches(split, batch_size):
        assert images.shape == (batch_size, 2, 2, 1)
        assert (images.dtype, labels.dtype, mask.dtype) == (np.uint8, np.int32, np.bool_)
        np.testing.assert_array_equal(images, split.images[labels])
        assert (labels[~mask] == n - 1).all()
        seen += labels[mask].tolist()
    assert seen == list(range(n))


def test_batch_sizes_that_do_not_fit():
    split = data.Split(create_images(3), np.zeros(3, np.int32))
    assert message(batches.padded_batches, split, 0) == "batch_size=0: expected 1 or more"
    assert message(batches.steps_per_epoch, 10, -1) == "batch_size=-1: expected 1 or more"
    assert message(batches.batch_indices, 0, 0, 10, 11).endswith("larger than the training set: expected 1 to 10")
