"""A model prepared for the loop of an attack: what all iterations have in common is computed before it."""

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from infofeat_jax.convolution.substitution import substituted
from infofeat_jax.types import Forward, Images


def hoisted(forward: Forward, images: Images) -> Forward:
    """`forward` for images of this shape, with what does not depend on them computed now; others go to `forward`.

    Of a frozen model these are the kernels, multiplied by BatchNorm's scale and cast to the compute type. XLA leaves
    that in a loop, because of the broadcast scale, so it is done here, behind a barrier. Nothing is hoisted that is
    larger than what it is computed from. Convolutions become those that are fast in a loop (`substituted`).
    """
    traced, shapes = jax.make_jaxpr(forward, return_shape=True)(images)
    if traced.effects:
        return forward
    traced = substituted(traced)
    jaxpr, known, now, later = traced.jaxpr, set(traced.jaxpr.constvars), [], []
    for equation in jaxpr.eqns:
        read = [variable for variable in equation.invars if isinstance(variable, Var)]
        invariant = read and known.issuperset(read) and _size(equation.outvars) <= _size(read)
        known.update(equation.outvars if invariant else ())
        (now if invariant else later).append(equation)
    needed = {variable: None for equation in later for variable in equation.invars if isinstance(variable, Var)}
    needed |= {variable: None for variable in jaxpr.outvars if isinstance(variable, Var)}
    crossing = [variable for equation in now for variable in equation.outvars if variable in needed]
    before = ClosedJaxpr(jaxpr.replace(eqns=now, outvars=crossing), traced.consts)
    values = jax.lax.optimization_barrier(jaxpr_as_fun(before)(images))
    rest = ClosedJaxpr(jaxpr.replace(eqns=later, constvars=[*jaxpr.constvars, *crossing]), [*traced.consts, *values])

    def after(x: Images):
        if (x.shape, x.dtype) != (images.shape, images.dtype):
            return forward(x)
        return jax.tree.unflatten(jax.tree.structure(shapes), jaxpr_as_fun(rest)(x))

    return after


def _size(variables: list) -> int:
    return sum(variable.aval.size for variable in variables if not isinstance(variable, Literal))
