"""One training step, a pure function of state, batch and key."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from infofeat_jax.data import augment
from infofeat_jax.methods import Batch
from infofeat_jax.run import Run, State
from infofeat_jax.types import Images, Outputs, PRNGKey


def update(run: Run, state: State, batch, key: PRNGKey, *, average: Callable) -> tuple[State, dict]:
    """One step: augment, attack the frozen model, learn from what the method's loss says.

    `batch` is (images uint8 [b, h, w, c], labels [b]); `average` takes means over devices where each device
    computes only its own (see parallel.py). A pure function; randomness is `key` folded with the step.
    """
    augment_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
    labels = batch[1]
    images = batch[0].astype(jnp.float32) / 255
    data = run.config.data
    images = augment.crop_and_flip(augment_key, images, padding=data.crop_padding, flip=data.flip)
    frozen = partial(run.module.apply, state.variables)
    attack = run.method.attack
    perturbed = images if attack is None else attack(frozen, attack_key, images, labels)
    perturbed = jax.lax.stop_gradient(perturbed)
    batch = Batch(images, perturbed, labels, jax.lax.stop_gradient(run.method.targets(frozen, images, labels)))

    def loss(params):
        passes = []  # (outputs, statistics) of each forward pass, in order

        def forward(x: Images) -> Outputs:
            stats = passes[-1][1] if passes else state.batch_stats
            variables = {"params": params, "batch_stats": stats}
            outputs, moved = run.module.apply(variables, x, train=True, mutable=["batch_stats"])
            passes.append((outputs, moved["batch_stats"]))
            return outputs

        value = run.method.loss(forward, batch).mean()
        return value, passes[-1]

    (value, (outputs, batch_stats)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    accuracy = (outputs.logits[-len(labels) :].argmax(-1) == labels).mean()
    gradients, batch_stats, value, accuracy = average((gradients, batch_stats, value, accuracy))
    changes, opt_state = run.optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    return State(state.step + 1, params, batch_stats, opt_state), {"loss": value, "accuracy": accuracy}
