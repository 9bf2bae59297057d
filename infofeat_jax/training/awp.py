"""Adversarial weight perturbation (AWP; Wu et al., 2020) for every method.

The update's gradient is taken where a step along the gradient of its loss has made the weights worse.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

Perturb = Callable[[PyTree, Callable[[], PyTree]], PyTree]  # (params, their gradient on demand) -> perturbation


class Awp(NamedTuple):
    """How far the weights are perturbed, and from which step on."""

    gamma: float = 0.0  # the perturbation's norm relative to that of the weights, for each array; 0: none
    warmup_steps: int = 0  # the first steps, which are taken without


WITHOUT = Awp()


def create_perturb(awp: Awp, step: Int[Array, ""]) -> Perturb | None:
    """The perturbation of the weights in a step; None without AWP, () being its perturbation."""

    def perturb(params: PyTree, ascent: Callable[[], PyTree]) -> PyTree:
        def perturbed() -> PyTree:
            return perturbation(params, ascent(), awp.gamma)

        if not awp.warmup_steps:
            return perturbed()
        return jax.lax.cond(step >= awp.warmup_steps, perturbed, lambda: jax.tree.map(jnp.zeros_like, params))

    return perturb if awp.gamma else None


def perturbation(params: PyTree, gradient: PyTree, gamma: float) -> PyTree:
    """What is added to the weights: `gamma |w| g / |g|` for each kernel, with the norm of the whole array.

    A kernel is an array of more than one dimension: biases and BatchNorm's scales stay as they are. The authors' code
    takes g as the change by one step of SGD, whose learning rate cancels.
    """

    def one(w: Float[Array, "..."], g: Float[Array, "..."]) -> Float[Array, "..."]:
        if w.ndim <= 1:
            return jnp.zeros_like(w)
        return gamma * jnp.linalg.norm(w.ravel()) / (jnp.linalg.norm(g.ravel()) + 1e-20) * g

    return jax.tree.map(one, params, gradient)


def shifted(params: PyTree, shift: PyTree) -> PyTree:
    """The weights plus their perturbation, which may be ()."""
    return jax.tree.map(jnp.add, params, shift) if shift else params
