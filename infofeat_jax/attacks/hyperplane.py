"""Projection onto a hyperplane within a box, in l_inf, l2 or l1: the step of FAB."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infofeat_jax.types import PerExample

Rows = Float[Array, "b d"]


def displacement(norm: str, points: Rows, normals: Rows, gaps: PerExample, bounds: tuple[float, float]) -> Rows:
    """The smallest v with w.v = gap and points + v within `bounds`; if there is none, the v that gets closest to it.

    `normals` are the w [b, d]; `norm` is "linf", "l2" or "l1" (see `_greedy`). By duality, for the first two,
    v_i = sign(gap w_i) min(s u_i, room_i), with u_i = 1 (linf) or |w_i| (l2) and room_i the distance to the wall
    of the box. As a function of s, |w.v| is concave and piecewise linear, so Newton's method from below terminates
    exactly at the solution, after a few passes and without a sort (Croce & Hein's projection, "Minimally distorted
    adversarial examples ...", 2020).
    """
    weights = jnp.abs(normals)
    largest = jnp.maximum(weights.max(1), 1e-30)
    weights = weights / largest[:, None]  # so that squares of small gradients do not underflow
    signs = jnp.sign(normals) * jnp.sign(gaps)[:, None]
    room = jnp.where(signs > 0, bounds[1] - points, points - bounds[0])
    if norm == "l1":
        return signs * _greedy(weights, room, jnp.minimum(jnp.abs(gaps) / largest, 1e30))
    units = weights if norm == "l2" else jnp.ones_like(weights)
    target = jnp.minimum(jnp.abs(gaps) / largest, 1e30)

    def newton(carry):
        scale, count, _ = carry
        at_wall = scale[:, None] * units >= room
        rest = target - jnp.where(at_wall, weights * room, 0.0).sum(1)
        slope = jnp.where(at_wall, 0.0, weights * units).sum(1)
        # Never downward: rounding must not undo a pass.
        better = jnp.maximum(scale, jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1.0), scale))
        return better, at_wall.sum(1), count

    # Each pass puts further coordinates at the wall, until none are left to put there.
    start = (jnp.zeros_like(target), jnp.full(target.shape, -1), jnp.full(target.shape, -2))
    scale, _, _ = jax.lax.while_loop(lambda carry: (carry[1] != carry[2]).any(), newton, start)
    return signs * jnp.minimum(scale[:, None] * units, room)


def _greedy(weights: Rows, room: Rows, target: PerExample) -> Rows:
    """The v in [0, room] of smallest l1 norm with weights.v = target: each entry in turn, the heaviest first."""
    order = jnp.argsort(-weights, axis=1)
    w, most = (jnp.take_along_axis(a, order, axis=1) for a in (weights, room))
    reached = jnp.cumsum(w * most, axis=1)
    left = target[:, None] - (reached - w * most)
    moves = jnp.where(w > 1e-8, jnp.clip(left / jnp.maximum(w, 1e-30), 0.0, most), 0.0)
    return jnp.take_along_axis(moves, jnp.argsort(order, axis=1), axis=1)
