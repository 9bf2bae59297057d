"""One training step, a pure function of state, batch and key."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from infofeat_jax.data import augment
from infofeat_jax.experiment import Run, State
from infofeat_jax.methods import Batch
from infofeat_jax.types import Images, Outputs, PRNGKey


def update(run: Run, state: State, batch, key: PRNGKey, *, average: Callable) -> tuple[State, dict]:
    """One step: augment, attack the frozen model, learn from what the method's loss says.

    `batch` is (images uint8 [b, h, w, c], labels [b]); `average` takes means over devices where each device
    computes only its own (see parallel.py). A pure function; randomness is `key` folded with the step.
    The metrics: mean loss and accuracy of the batch before the step, norm of all parameters after it.
    """
    augment_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = batch[0].astype(jnp.float32) / 255
    data = run.config.data
    images = augment.crop_and_flip(augment_key, images, padding=data.crop_padding, flip=data.flip)
    whole = gradients if run.config.accumulate_steps == 1 else accumulated_gradients
    found = average(whole(run, state.variables, state.batch_stats, attack_key, images, batch[1]))
    changes, opt_state = run.optimizer.update(found.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    values = {"loss": found.loss, "accuracy": found.accuracy, "parameter_norm": optax.tree.norm(params)}
    return State(state.step + 1, params, found.batch_stats, opt_state), values


class Gradients(NamedTuple):
    """Of the mean loss of a batch; and BatchNorm's statistics after it."""

    params: PyTree
    batch_stats: PyTree
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


def accumulated_gradients(run: Run, frozen: PyTree, batch_stats: PyTree, key: PRNGKey, images, labels) -> Gradients:
    """The mean over config.accumulate_steps parts of the batch, one after the other in the memory of one.

    All parts attack the same frozen model, each with a key of its own. BatchNorm's batch statistics and batch-coupled
    methods are those of a part; its running statistics move with each. Of b examples, part i has i, i + parts, ...:
    so every part lies on all devices.
    """
    parts = run.config.accumulate_steps
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (images, labels))

    def one(batch_stats, part):
        found = gradients(run, frozen, batch_stats, jax.random.fold_in(key, part[0]), *part[1])
        return found.batch_stats, found._replace(batch_stats=None)

    batch_stats, found = jax.lax.scan(one, batch_stats, (jnp.arange(parts), split))
    return jax.tree.map(lambda x: x.mean(0), found)._replace(batch_stats=batch_stats)


def gradients(run: Run, frozen: PyTree, batch_stats: PyTree, key: PRNGKey, images, labels) -> Gradients:
    """Attacks the `frozen` variables, and differentiates the method's loss at their parameters.

    `images` float32 [b, h, w, c] in [0, 1], `labels` [b].
    """
    forward = partial(run.module.apply, frozen)
    attack = run.method.attack
    perturbed = images if attack is None else attack(forward, key, images, labels)
    perturbed = jax.lax.stop_gradient(perturbed)
    batch = Batch(images, perturbed, labels, jax.lax.stop_gradient(run.method.targets(forward, images, labels)))

    def loss(params):
        passes = []  # (outputs, statistics) of each forward pass, in order

        def train(x: Images) -> Outputs:
            variables = {"params": params, "batch_stats": passes[-1][1] if passes else batch_stats}
            outputs, moved = run.module.apply(variables, x, train=True, mutable=["batch_stats"])
            passes.append((outputs, moved["batch_stats"]))
            return outputs

        value = run.method.loss(train, batch).mean()
        return value, passes[-1]

    (value, (outputs, moved)), found = jax.value_and_grad(loss, has_aux=True)(frozen["params"])
    accuracy = (outputs.logits[-len(labels) :].argmax(-1) == labels).mean()
    return Gradients(found, moved, value, accuracy)
