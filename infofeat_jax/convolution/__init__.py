"""The convolution of all models: XLA's, except on a CPU, where faster forms of it are chosen when a program is lowered.

A convolution, its gradient to the input and its gradient to the kernel are three bilinear maps, and each one's
derivatives are the other two. So each is a primitive with two lowerings, one for CPUs and one for everything else, and
derivatives of any order, forward and reverse, stay among the three. A fourth primitive is a convolution with what
follows it: bias, residual and ReLU, which oneDNN computes while the result is still in registers.
"""

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from infofeat_jax.convolution import forms, onednn
from infofeat_jax.convolution.forms import Added, Features, Geometry, Kernel


def convolve(
    x: Features,
    kernel: Kernel,
    stride: int = 1,
    *,
    bias: Float[Array, " o"] | None = None,
    residual: Features | None = None,
    relu: bool = False,
    padding: int | str = "symmetric",
    plain: bool = False,
) -> Features:
    """Convolution padded by (size - 1) // 2 on both sides, as PyTorch's usual one.

    `padding` may be a smaller number, or "same" as in TensorFlow, Haiku and Flax: at stride 2 even lengths on their
    high sides only. `bias` and `residual` are added; `relu` sets what is negative to 0, with derivative 0 at 0.

    On a CPU it is oneDNN's where that is available and worthwhile (`convolution.onednn`), else XLA's; kernels of 1x1
    and outputs of at most 2x2 pixels are matrix products without oneDNN (XLA's convolution takes 11 times as long).
    `plain` takes XLA's on all platforms. oneDNN's ReLU makes 0 of NaN, XLA's leaves it. Raises
    ValueError for another padding.
    """
    geometry = forms.geometry(x.shape, kernel.shape, stride, padding)
    added = [term for term in (bias, residual) if term is not None]
    varying = any(jax.typeof(operand).manual_axis_type.varying for operand in (x, kernel, *added))
    if plain or varying:  # varying: types of shard_map's check_vma
        return _forward_add(x, kernel, *added, geometry=geometry, relu=relu)
    if added or relu:
        return _convolve_add.bind(x, kernel, *added, geometry=geometry, relu=relu)
    return _convolve.bind(x, kernel, geometry=geometry)


def plain_convolve(x: Features, kernel: Kernel, stride: int = 1, **how) -> Features:
    """`convolve` as XLA's convolution everywhere, differentiated by JAX."""
    return convolve(x, kernel, stride, plain=True, **how)


def _add(convolved: Features, added: tuple[Added, ...], relu: bool) -> Features:
    y = reduce(add, (term.reshape((1,) * (4 - term.ndim) + term.shape) for term in added), convolved)
    return jax.nn.relu(y) if relu else y


def _forward_add(x: Features, kernel: Kernel, *added: Added, geometry: Geometry, relu: bool) -> Features:
    return _add(forms.forward(x, kernel, geometry=geometry), added, relu)


def _gpu_forward_add(x: Features, kernel: Kernel, *added: Added, geometry: Geometry, relu: bool) -> Features:
    """Behind a barrier: else XLA reads ReLU's mask from what it is applied to, which then cuDNN cannot apply it to."""
    y = _forward_add(x, kernel, *added, geometry=geometry, relu=relu)
    return jax.lax.optimization_barrier(y) if relu else y


def _cpu_forward_add(slide: Callable, x: Features, kernel, *added: Added, geometry: Geometry, relu: bool) -> Features:
    if slide is onednn.convolve:
        return slide(x, kernel, geometry.padding, geometry.stride, added=added, relu=relu)
    return _add(forms.cpu_forward(slide, x, kernel, geometry=geometry), added, relu)


def _primitive(name: str, plain: Callable, cpu_form: Callable) -> Primitive:
    """A primitive that is `plain`, lowered for CPUs as `cpu_form`."""
    primitive = Primitive(f"infofeat_jax_{name}")
    primitive.def_impl(jax.jit(primitive.bind, static_argnames=("geometry", "relu")))
    primitive.def_abstract_eval(lambda *operands, **how: _abstract(partial(plain, **how), *operands))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, _lower_for_cpu(plain, cpu_form), platform="cpu")
    return primitive


def _abstract(function: Callable, *operands) -> jax.core.ShapedArray:
    found = jax.eval_shape(function, *operands)
    return jax.core.ShapedArray(found.shape, found.dtype)


def _lower_for_cpu(plain: Callable, cpu_form: Callable) -> Callable:
    """The rule that chooses: exports get `plain`; oneDNN where it pays, but not for several devices outside of a
    `shard_map`, because XLA's partitioner does not know it; else XLA."""

    def lower(context: mlir.LoweringRuleContext, *operands, **how: Any):
        if context.module_context.lowering_parameters.for_export:
            chosen = plain
        else:
            chosen = partial(cpu_form, onednn.convolve if _suits_onednn(context, how["geometry"]) else forms.xla_slide)
        return mlir.lower_fun(partial(chosen, **how), multiple_results=False)(context, *operands)

    return lower


def _suits_onednn(context: mlir.LoweringRuleContext, geometry: Geometry) -> bool:
    axes, avals = context.module_context.axis_context, (*context.avals_in, *context.avals_out)
    manual = getattr(axes, "manual_axes", None)
    alone = getattr(axes, "num_devices", None) == 1 or bool(manual and manual == frozenset(axes.mesh.axis_names))
    same = len({aval.dtype for aval in avals}) == 1 and avals[0].dtype.name in onednn.DTYPES
    return alone and same and onednn.worthwhile(geometry.outputs, geometry.kernel) and onednn.available()


def _batch(primitive: Primitive, plain: Callable, operands, axes, *, geometry: Geometry):
    """Under `vmap` of the images or the gradients alone, one larger batch; else what JAX makes of it."""
    (x, kernel), (axis, other) = operands, axes
    if other is not None or primitive is _convolve_to_kernel:
        return jax.vmap(partial(plain, geometry=geometry), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axis, 0)
    geometry = geometry._replace(images=(x.shape[0] * x.shape[1], *geometry.images[1:]))
    y = primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, geometry=geometry)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_convolve = _primitive("convolve", forms.forward, forms.cpu_forward)
_convolve_to_input = _primitive("convolve_to_input", forms.to_input, forms.cpu_to_input)
_convolve_to_kernel = _primitive("convolve_to_kernel", forms.to_kernel, forms.cpu_to_kernel)
_convolve_add = _primitive("convolve_add", _forward_add, _cpu_forward_add)
mlir.register_lowering(_convolve_add, mlir.lower_fun(_gpu_forward_add, multiple_results=False), platform="gpu")

batching.primitive_batchers[_convolve] = partial(_batch, _convolve, forms.forward)
batching.primitive_batchers[_convolve_to_input] = partial(_batch, _convolve_to_input, forms.to_input)
batching.primitive_batchers[_convolve_to_kernel] = partial(_batch, _convolve_to_kernel, forms.to_kernel)
ad.defbilinear(
    _convolve,
    lambda gradient, x, kernel, **how: _convolve_to_input.bind(gradient, kernel, **how),
    lambda gradient, x, kernel, **how: _convolve_to_kernel.bind(x, gradient, **how),
)
ad.defbilinear(
    _convolve_to_input,
    lambda x, gradient, kernel, **how: _convolve.bind(x, kernel, **how),
    lambda x, gradient, kernel, **how: _convolve_to_kernel.bind(x, gradient, **how),
)
ad.defbilinear(
    _convolve_to_kernel,
    lambda kernel, x, gradient, **how: _convolve_to_input.bind(gradient, kernel, **how),
    lambda kernel, x, gradient, **how: _convolve.bind(x, kernel, **how),
)


def _differentiate_add(primals, tangents, *, geometry: Geometry, relu: bool):
    """The convolution's tangents, where the result is positive if `relu`."""
    y = _convolve_add.bind(*primals, geometry=geometry, relu=relu)
    (x, kernel, *_), (dx, dkernel, *dadded) = primals, tangents
    moved = lambda tangent: type(tangent) is not ad.Zero  # noqa: E731
    terms = [_convolve.bind(dx, kernel, geometry=geometry)] if moved(dx) else []
    terms += [_convolve.bind(x, dkernel, geometry=geometry)] if moved(dkernel) else []
    tangent = _add(jnp.zeros_like(y) if not terms else reduce(add, terms), tuple(filter(moved, dadded)), relu=False)
    return y, jnp.where(y > 0, tangent, jnp.zeros_like(y)) if relu else tangent


def _batch_add(operands, axes, *, geometry: Geometry, relu: bool):
    """The convolution's rule and what JAX makes of the rest."""
    apart = lambda x, kernel, *added: _add(_convolve.bind(x, kernel, geometry=geometry), added, relu)  # noqa: E731
    return jax.vmap(apart, axes)(*operands), 0


ad.primitive_jvps[_convolve_add] = _differentiate_add
batching.primitive_batchers[_convolve_add] = _batch_add
