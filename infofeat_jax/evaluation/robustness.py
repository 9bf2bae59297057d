"""Robust accuracy: which images remain correctly classified under an attack."""

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Bool, PyTree

from infofeat_jax import streams
from infofeat_jax.attacks.inputs import Randomised, as_forward, at_draw
from infofeat_jax.data import Split, to_unit
from infofeat_jax.data.batches import padded_batches
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.subject import SAVE_EVERY, Subject, Tell
from infofeat_jax.objectives import misclassified
from infofeat_jax.runtime import devices, files, memory, processes, signals
from infofeat_jax.types import Attack, PRNGKey

# The model, and the one that the attack is crafted on if that is another. Weights are leaves.
Forwards = tuple[Partial | Randomised, ...]
# Compiled: (forwards, key, (images, labels)) -> which examples remain correct [b], or other values for each, [b, ...].
OneBatch = Callable[[PyTree, PRNGKey, tuple], PyTree]


def measure(subject: Subject, name: str, tell: Tell) -> Bool[np.ndarray, " n"]:
    """Which examples remain correctly classified under the attack `name`.

    With `subject.keep_adversarial` the images found are stored in a file of that name, also as the state from which an
    interrupted measurement resumes.
    """
    spec = attack_names.parse(name)
    attack, keep = attack_names.create(spec, subject.budget), subject.keep_adversarial and name != "clean"
    forwards = (subject.forward, *([subject.source(spec.source).forward] if spec.source else []))
    one_batch = compile_attack(attack, subject.mesh, with_images=keep)
    parts, last = [part] if keep and (part := load(subject, name)) else [], time.monotonic()
    key, count = streams.key(subject.seed, "evaluation"), len(subject.split.labels)
    for part in in_fitting_batches(one_batch, subject, forwards, key, tell, done=len(parts[0][0]) if parts else 0):
        parts.append(part if keep else (part,))
        correct = np.concatenate([one[0] for one in parts])
        tell(f"{correct.mean():.1%} correct", len(correct) / count)
        if keep and time.monotonic() - last > SAVE_EVERY:
            save(subject, name, parts)
            last = time.monotonic()
    if keep:
        save(subject, name, parts)
    return np.concatenate([one[0] for one in parts])


def compile_attack(attack: Attack | None, mesh: Mesh, *, with_images: bool = False) -> OneBatch:
    """Compiles the attack on and the classification of one batch; weights are arguments, so it serves every epoch.

    The attack is crafted on the last of the forwards. `with_images`: the result is (correct, perturbed images).
    """

    def one_batch(forwards: Forwards, key: PRNGKey, batch: tuple):
        images, labels = to_unit(batch[0]), batch[1]
        if attack is not None:
            images = attack(forwards[-1], key, images, labels)
        correct = ~misclassified(as_forward(at_draw(forwards[0], key))(images).logits, labels)
        return (correct, images) if with_images else correct

    return devices.parallelize_batch(one_batch, mesh)


def in_fitting_batches(
    one_batch: OneBatch, subject: Subject, variables: PyTree, key: PRNGKey, tell: Tell, *, done: int = 0
) -> Iterator[Any]:
    """`in_batches` of the subject's images and batch size; when memory runs out, the rest in smaller ones."""

    def run(size: int) -> Iterator[Any]:
        nonlocal done
        for part in in_batches(one_batch, subject.mesh, variables, key, subject.split, size, done=done):
            done += len(jax.tree.leaves(part)[0])
            yield part

    return memory.lowering(
        run, subject.batch_size, subject.mesh.size, lambda line, size: tell(line, batch_size=size)
    )  # fmt: skip


def in_batches(
    one_batch: OneBatch, mesh: Mesh, variables: PyTree, key: PRNGKey, split: Split, batch_size: int, *, done: int = 0
) -> Iterator[Any]:
    """Yields the results of `one_batch` on `split` but the first `done`, without the padding. Raises Stopped.

    A result is fetched after the next batch was handed to the devices, so that they never wait for the host.
    """
    before = []
    for batch in dispatched(one_batch, mesh, variables, key, split, batch_size, done=done):
        before.append(batch)
        if len(before) > 1:
            yield fetch(*before.pop(0))
    yield from (fetch(*last) for last in before)


def dispatched(
    one_batch: OneBatch, mesh: Mesh, variables: PyTree, key: PRNGKey, split: Split, batch_size: int, *, done: int = 0
) -> Iterator[tuple[PyTree, Bool[np.ndarray, " B"]]]:
    """Hands batches of all but the first `done` examples to the devices; yields (results, mask) without waiting.

    Raises Stopped.
    """
    first, rest = -(-done // batch_size), Split(*(array[done:] for array in split))
    for index, (images, labels, mask) in enumerate(padded_batches(rest, batch_size, mesh.size), first):
        signals.check()
        batch = devices.shard(mesh, (images, labels))
        yield one_batch(variables, jax.random.fold_in(key, index), batch), mask


def fetch(result: PyTree, mask: Bool[np.ndarray, " B"]) -> PyTree:
    """The results without the padding, on the host."""
    return jax.tree.map(lambda array: np.asarray(array)[mask], result)


# The images found so far, of whole batches.


def load(subject: Subject, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(correct [m], adversarial [m, h, w, c]) of the first m images, as stored in the same setting; None if none is."""
    path, setting = where(subject, name)
    arrays = files.read_arrays(path, setting) or {}
    correct, adversarial = (arrays.get(field, np.empty(())) for field in ("correct", "adversarial"))
    usable = correct.dtype == bool and correct.ndim == 1 and adversarial.shape[:1] == correct.shape
    return (correct, adversarial) if usable else None


def save(subject: Subject, name: str, parts: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Stores what was found so far."""
    if processes.is_writer():
        correct, adversarial = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        path, setting = where(subject, name)
        arrays = {"setting": setting, "correct": correct, "adversarial": adversarial}
        files.write_arrays_atomically(path, arrays)


def where(subject: Subject, name: str) -> tuple[pathlib.Path, str]:
    """The file of an attack's images, and the setting that it must be of."""
    spec = attack_names.parse(name)
    return subject.file(spec.file_name), json.dumps([subject.setting, spec.name])
