"""A search whose examples are all in the same attempt and iteration, as the authors' code runs them."""

import jax
import jax.numpy as jnp


def start(search, key, images, labels, logits, attempt: int = 0):
    """The state in which an attempt begins, with keys split from one."""
    count = len(labels)
    attempts = jnp.full(count, attempt, jnp.int32)
    return jax.jit(search.start)(jax.random.split(key, count), images, labels, logits, attempts)


def step(search):
    """Compiled: (forward, key, t, state) -> state after iteration t of all examples."""

    def all_at(forward, key, t, state):
        count = len(state.success)
        return search.step(forward, jax.random.split(key, count), jnp.full(count, t, jnp.int32), state)

    return jax.jit(all_at)
