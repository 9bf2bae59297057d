"""The validations of the training loop: the held-out images, clean and under an attack."""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
from jax.sharding import Mesh
from jax.tree_util import Partial

from infofeat_jax import streams
from infofeat_jax.data import Split
from infofeat_jax.evaluation import robustness
from infofeat_jax.training.loop import Validation
from infofeat_jax.training.state import State
from infofeat_jax.types import Attack


def create(
    module: nn.Module, attack: Attack | None, split: Split, mesh: Mesh, *, seed: int, batch_size: int
) -> dict[str, Validation]:
    """The functions that classify `split` by the model of a state: "clean", and "robust" under `attack`."""
    key = streams.key(seed, "validation")

    def validate(one_batch: robustness.OneBatch, state: State) -> Iterator:
        forwards = (Partial(module.apply, state.evaluated),)
        return robustness.dispatched(one_batch, mesh, forwards, key, split, batch_size)

    compiled = {name: robustness.compile_attack(one, mesh) for name, one in {"clean": None, "robust": attack}.items()}
    return {name: partial(validate, one_batch) for name, one_batch in compiled.items()}
