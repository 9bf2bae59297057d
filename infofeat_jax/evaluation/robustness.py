"""Robust accuracy: which images remain correctly classified under an attack."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from flax.linen import Module
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PyTree, Shaped

from infofeat_jax import streams
from infofeat_jax.data import Split, to_unit
from infofeat_jax.data.batches import padded_batches
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.subject import Subject, Tell
from infofeat_jax.objectives import misclassified
from infofeat_jax.runtime import devices, signals
from infofeat_jax.types import Attack, PRNGKey

# Compiled: (variables, key, (images uint8, labels)) -> which examples remain correct [b], or another per-example value.
OneBatch = Callable[[PyTree, PRNGKey, tuple], Shaped[Array, " b"]]


def measure(subject: Subject, name: str, tell: Tell) -> Bool[np.ndarray, " n"]:
    """Which examples remain correctly classified under the attack `name`."""
    spec = attack_names.parse(name)
    attack, module, variables = attack_names.create(spec, subject.budget), None, subject.variables
    if spec.source:
        source = subject.source(spec.source)
        module, variables = source.module, (variables, source.variables)
    one_batch, parts = compile_attack(subject.module, attack, subject.mesh, module), []
    key, size, count = streams.key(subject.seed, "evaluation"), subject.batch_size, len(subject.split.labels)
    for part in in_batches(one_batch, subject.mesh, variables, key, subject.split, size):
        parts.append(part)
        tell(f"{np.concatenate(parts).mean():.1%} correct", min(len(parts) * size / count, 1.0))
    return np.concatenate(parts)


def compile_attack(module: Module, attack: Attack | None, mesh: Mesh, source: Module | None = None) -> OneBatch:
    """Compiles the attack on and the classification of one batch; weights are arguments, so it serves every epoch.

    With `source`, the attack is crafted on that model, and the variables are a pair: `module`'s and `source`'s.
    """

    def one_batch(variables, key, batch):
        images, labels = to_unit(batch[0]), batch[1]
        own, other = (variables, variables) if source is None else variables
        if attack is not None:
            images = attack(partial((source or module).apply, other), key, images, labels)
        return ~misclassified(module.apply(own, images).logits, labels)

    return devices.parallelize_batch(one_batch, mesh)


def in_batches(
    one_batch: OneBatch, mesh: Mesh, variables: PyTree, key: PRNGKey, split: Split, batch_size: int
) -> Iterator[np.ndarray]:
    """Yields the results of `one_batch` on `split`, without the padding. Raises Stopped.

    A result is fetched after the next batch was handed to the devices, so that they never wait for the host.
    """
    before = []
    for batch in dispatched(one_batch, mesh, variables, key, split, batch_size):
        before.append(batch)
        if len(before) > 1:
            yield fetch(*before.pop(0))
    yield from (fetch(*last) for last in before)


def dispatched(
    one_batch: OneBatch, mesh: Mesh, variables: PyTree, key: PRNGKey, split: Split, batch_size: int
) -> Iterator[tuple[Shaped[Array, " B"], Bool[np.ndarray, " B"]]]:
    """Hands one batch after the other to the devices; yields (results, mask) without waiting. Raises Stopped."""
    for index, (images, labels, mask) in enumerate(padded_batches(split, batch_size, mesh.size)):
        signals.check()
        batch = devices.shard(mesh, (images, labels))
        yield one_batch(variables, jax.random.fold_in(key, index), batch), mask


def fetch(result: Shaped[Array | np.ndarray, " B"], mask: Bool[np.ndarray, " B"]) -> np.ndarray:
    """The results without the padding, on the host."""
    return np.asarray(result)[mask]
