"""Entropic optimal transport between two batches, as Feature Scattering uses it (Zhang & Wang, 2019).

Constants are those of the authors' code. Each value depends on the whole batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

REGULARIZATION = 0.01
TOLERANCE = 0.1  # on sum |u - u_previous|: coarse, so that most plans take 2 to 13 of at most 100 iterations
ITERATIONS = 100

Cost = Float[Array, "m n"]


class Transport(NamedTuple):
    """The transport plan and its dual variables when the iteration stopped."""

    plan: Float[Array, "m n"]
    u: Float[Array, " m"]
    v: Float[Array, " n"]
    iterations: Int[Array, ""]


def cosine_cost(a: Float[Array, "m d"], b: Float[Array, "n d"]) -> Cost:
    """C_ij = max(0, 1 - cos(a_i, b_j)); 1 where a vector is zero."""
    # In full float32 on every device: 1 - cos of clean and perturbed logits suffers from cancellation.
    return jax.nn.relu(1 - jnp.matmul(_unit(a), _unit(b).T, precision="highest"))


def cosine_distance(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, " b"]:
    """max(0, 1 - cos(a_i, b_i))."""
    return jax.nn.relu(1 - (_unit(a) * _unit(b)).sum(-1))


def sinkhorn(cost: Cost) -> Transport:
    """The transport plan between uniform masses: log-domain Sinkhorn with the authors' early stopping.

    At most 100 iterations, until sum `|u - u_previous|` < 0.1. Stopping so early leaves the rows' masses up to a
    factor of two from uniform; the gradient of the plan with respect to the cost, through the iterations that
    were made, is part of the method. Runs inside jit; reverse mode only, in the memory of the dual variables.
    """
    u, v, iterations = _duals(cost)
    return Transport(jnp.exp(_exponent(cost, u, v)), u, v, iterations)


@jax.custom_vjp
def _duals(cost: Cost) -> tuple[Float[Array, " m"], Float[Array, " n"], Int[Array, ""]]:
    """The dual variables after the last iteration, and their number: a loop of as many as are made."""
    return _duals_forward(cost)[0]


def _duals_forward(cost: Cost):
    start = tuple(jnp.zeros((ITERATIONS + 1, size), cost.dtype) for size in cost.shape)

    def unfinished(carry):
        count, moving, _, _ = carry
        return (count < ITERATIONS) & moving

    def body(carry):
        count, _, us, vs = carry
        u, v = _iterate(cost, us[count], vs[count])
        moving = ~(jnp.abs(u - us[count]).sum() < TOLERANCE)
        return count + 1, moving, us.at[count + 1].set(u), vs.at[count + 1].set(v)

    count, _, us, vs = jax.lax.while_loop(unfinished, body, (jnp.int32(0), jnp.bool_(True), *start))
    return (us[count], vs[count], count), (cost, us, vs, count)


def _duals_backward(kept, cotangents):
    """Backwards through the iterations that were made. A while loop has no reverse mode of its own."""
    cost, us, vs, count = kept

    def body(index, carry):
        gradient, of_u, of_v = carry
        at = count - 1 - index
        _, pull = jax.vjp(_iterate, cost, us[at], vs[at])
        of_cost, of_u, of_v = pull((of_u, of_v))
        return gradient + of_cost, of_u, of_v

    gradient, _, _ = jax.lax.fori_loop(0, count, body, (jnp.zeros_like(cost), *cotangents[:2]))
    return (gradient,)


_duals.defvjp(_duals_forward, _duals_backward)


def _iterate(cost: Cost, u: Float[Array, " m"], v: Float[Array, " n"]) -> tuple[Array, Array]:
    log_mu, log_nu = (-jnp.log(jnp.float32(size)) for size in cost.shape)
    u = u + REGULARIZATION * (log_mu - _log_sum_exp(_exponent(cost, u, v), axis=1))
    return u, v + REGULARIZATION * (log_nu - _log_sum_exp(_exponent(cost, u, v), axis=0))


def _exponent(cost: Cost, u: Float[Array, " m"], v: Float[Array, " n"]) -> Cost:
    # In this order, because u and the cost nearly cancel: any other costs an order of magnitude of precision.
    return (u[:, None] - cost + v[None, :]) / REGULARIZATION


def _log_sum_exp(exponent: Cost, axis: int) -> Float[Array, " _"]:
    # The authors' guard against log(0), in place of the usual subtraction of the maximum.
    return jnp.log(jnp.exp(exponent).sum(axis) + 1e-6)


def _unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    vectors = jnp.where(vectors > -jnp.inf, vectors, 0.0)  # logits of masked classes have no direction
    return vectors / optax.safe_norm(vectors, 1e-6, axis=-1, keepdims=True)
