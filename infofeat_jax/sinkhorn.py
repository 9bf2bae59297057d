"""Entropic optimal transport between two batches, as Feature Scattering uses it (Zhang & Wang, 2019).

Constants are those of the authors' code. Each value depends on the whole batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

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


class _Iterate(NamedTuple):
    u: Float[Array, " m"]
    v: Float[Array, " n"]
    iterations: Int[Array, ""]
    stopped: Bool[Array, ""]


def cosine_cost(a: Float[Array, "m d"], b: Float[Array, "n d"]) -> Cost:
    """C_ij = max(0, 1 - cos(a_i, b_j)); 1 where a vector is zero."""
    # In full float32 on every device: 1 - cos of clean and perturbed logits suffers from cancellation.
    return jax.nn.relu(1 - jnp.matmul(_unit(a), _unit(b).T, precision="highest"))


def cosine_distance(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, " b"]:
    """max(0, 1 - cos(a_i, b_i))."""
    return jax.nn.relu(1 - (_unit(a) * _unit(b)).sum(-1))


def sinkhorn(cost: Cost) -> Transport:
    """The transport plan between uniform masses: log-domain Sinkhorn with the authors' early stopping.

    At most 100 iterations, until sum |u - u_previous| < 0.1. Stopping so early leaves the rows' masses up to a
    factor of two from uniform; the gradient of the plan with respect to the cost, through the iterations that
    were made, is part of the method. Runs inside jit; the gradient needs the memory of the dual variables only.
    """
    rows, columns = cost.shape
    log_mu, log_nu = -jnp.log(jnp.float32(rows)), -jnp.log(jnp.float32(columns))

    def iterate(state: _Iterate) -> _Iterate:
        u = state.u + REGULARIZATION * (log_mu - _log_sum_exp(_exponent(cost, state.u, state.v), axis=1))
        v = state.v + REGULARIZATION * (log_nu - _log_sum_exp(_exponent(cost, u, state.v), axis=0))
        return _Iterate(u, v, state.iterations + 1, jnp.abs(u - state.u).sum() < TOLERANCE)

    # A while loop has no reverse mode. The scan skips the iterations after the stop in both directions.
    @jax.checkpoint
    def step(state: _Iterate, _) -> tuple[_Iterate, None]:
        return jax.lax.cond(state.stopped, lambda s: s, iterate, state), None

    start = _Iterate(jnp.zeros(rows, cost.dtype), jnp.zeros(columns, cost.dtype), jnp.int32(0), jnp.bool_(False))
    end, _ = jax.lax.scan(step, start, length=ITERATIONS)
    return Transport(jnp.exp(_exponent(cost, end.u, end.v)), end.u, end.v, end.iterations)


def _exponent(cost: Cost, u: Float[Array, " m"], v: Float[Array, " n"]) -> Cost:
    # In this order, because u and the cost nearly cancel: any other costs an order of magnitude of precision.
    return (u[:, None] - cost + v[None, :]) / REGULARIZATION


def _log_sum_exp(exponent: Cost, axis: int) -> Float[Array, " _"]:
    # The authors' guard against log(0), in place of the usual subtraction of the maximum.
    return jnp.log(jnp.exp(exponent).sum(axis) + 1e-6)


def _unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    vectors = jnp.where(vectors > -jnp.inf, vectors, 0.0)  # logits of masked classes have no direction
    return vectors / optax.safe_norm(vectors, 1e-6, axis=-1, keepdims=True)
