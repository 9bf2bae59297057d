"""The convolution of all models: XLA's, except on a CPU, where faster forms of it are chosen when a program is lowered.

A convolution, its gradient to the input and its gradient to the kernel are three bilinear maps, and each one's
derivatives are the other two. So each is a primitive with two lowerings, one for CPUs and one for everything else, and
derivatives of any order, forward and reverse, stay among the three.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from infofeat_jax.models import onednn

Features = Float[Array, "b _ _ _"]
Kernel = Float[Array, "s s i o"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_PIXELS = 4  # of an output computed as products


def convolve(x: Features, kernel: Kernel, stride: int = 1) -> Features:
    """Convolution padded by (size - 1) // 2 on both sides, as PyTorch's (Flax's "SAME" differs at stride 2).

    On a CPU it is oneDNN's where that is available and worthwhile (`models.onednn`), else XLA's; kernels of 1x1 and
    outputs of at most 2x2 pixels are matrix products without oneDNN (XLA's convolution takes 11 times as long).
    """
    return _convolve.bind(x, kernel, stride=stride, shape=x.shape, size=kernel.shape[0])


def plain_convolve(x: Features, kernel: Kernel, stride: int = 1) -> Features:
    """XLA's convolution, differentiated by JAX."""
    return _slide(x, kernel, _pads(kernel.shape[0]), stride)


def _slide(x: Features, kernel: Float[Array, "_ _ i o"], padding, stride: int = 1, dilation: int = 1) -> Features:
    apart = (dilation, dilation)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, rhs_dilation=apart, dimension_numbers=_LAYOUT
    )


def _pads(size: int):
    return (((size - 1) // 2,) * 2,) * 2


# On any platform: what JAX makes of it.


def _plain(x: Features, kernel: Kernel, *, stride: int, shape, size: int) -> Features:
    return plain_convolve(x, kernel, stride)


def _plain_to_input(gradient: Features, kernel: Kernel, *, stride: int, shape, size: int) -> Features:
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    return jax.linear_transpose(lambda x: plain_convolve(x, kernel, stride), x)(gradient)[0]


def _plain_to_kernel(x: Features, gradient: Features, *, stride: int, shape, size: int) -> Kernel:
    kernel = jax.ShapeDtypeStruct((size, size, shape[-1], gradient.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: plain_convolve(x, kernel, stride), kernel)(gradient)[0]


# On a CPU. `slide` is oneDNN's convolution (`onednn.convolve`) or XLA's (`_xla_slide`, with the same arguments).


def _forward(slide: Callable, x: Features, kernel: Kernel, *, stride: int, shape, size: int) -> Features:
    return slide(x, kernel, _pads(size), stride)


def _to_input(slide: Callable, gradient: Features, kernel: Kernel, *, stride: int, shape, size: int) -> Features:
    """Convolutions of the gradient with the kernel reversed and its channels exchanged, one for each phase.

    At stride 2, pixels of even and odd rows and columns meet different taps: four small convolutions, instead of one of
    a gradient filled up with zeros.
    """
    phase = partial(_phase, slide, gradient, kernel, stride, shape)
    if stride == 1:
        return phase((0, 0))
    rows = [jnp.stack([phase((row, column)) for column in range(stride)], 3) for row in range(stride)]
    b, h, w, *_ = rows[0].shape
    return jnp.stack(rows, 2).reshape(b, stride * h, stride * w, -1)[:, : shape[1], : shape[2]]


def _phase(slide: Callable, gradient, kernel, stride: int, shape, offsets: tuple[int, int]) -> Features:
    """The gradient to pixels offset, offset + stride, ... in both directions, as many as at offset 0."""
    size, taps, padding = kernel.shape[0], [], []
    for length, outputs, offset in zip(shape[1:3], gradient.shape[1:3], offsets, strict=True):
        behind, first = divmod(offset + (size - 1) // 2, stride)  # output pixels before; the first tap of the phase
        met = range(first, size, stride)
        taps.append(slice(first, None, stride))
        padding.append((len(met) - 1 - behind, -(-length // stride) + behind - outputs))
    kernel = kernel[tuple(taps)][::-1, ::-1]
    if 0 in kernel.shape[:2]:  # 1x1 at stride 2
        return jnp.zeros((*gradient.shape[:3], shape[-1]), gradient.dtype)
    return slide(gradient, kernel, tuple(padding), transposed=True)


def _to_kernel(slide: Callable, x: Features, gradient: Features, *, stride: int, shape, size: int) -> Kernel:
    """The convolution of x with the gradient, batch and channels exchanged; a product for each tap of tiny outputs."""
    if size == 1 or (slide is _xla_slide and math.prod(gradient.shape[1:3]) <= _FEW_PIXELS):
        return _tap_products(x, gradient, stride, size)
    low = (size - 1) // 2
    high, wide = ((steps - 1) * stride + size - low for steps in gradient.shape[1:3])  # rows and columns that are met
    padding = tuple((low, max(met - length, 0)) for met, length in zip((high, wide), x.shape[1:3], strict=True))
    x, gradient = _exchange(x[:, :high, :wide], (3, 1, 2, 0)), _exchange(gradient, (1, 2, 0, 3))
    return slide(x, gradient, padding, dilation=stride).transpose(1, 2, 0, 3)


def _tap_products(x: Features, gradient: Features, stride: int, size: int) -> Kernel:
    low, (high, wide) = (size - 1) // 2, gradient.shape[1:3]
    x = jnp.pad(_exchange(x, (3, 0, 1, 2)), ((0, 0), (0, 0), (low, size), (low, size)))
    seen = lambda row, column: x[:, :, row:, column:][:, :, : high * stride : stride, : wide * stride : stride]  # noqa: E731
    product = partial(jnp.einsum, "ibhw,bhwo->io", preferred_element_type=jnp.float32)
    taps = [jnp.stack([product(seen(row, column), gradient) for column in range(size)]) for row in range(size)]
    return jnp.stack(taps).astype(x.dtype)


def _exchange(x: Features, axes: tuple[int, ...]) -> Array:
    """x.transpose(axes), not fused: fused with other operations XLA:CPU would recompute those for each element read."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lambda x: x.transpose(axes))(x)


def _xla_slide(x: Features, kernel, padding, stride: int = 1, dilation: int = 1, transposed: bool = False) -> Features:
    """XLA's convolution, or matrix products: for 1x1 kernels and for outputs of few pixels, one for each.

    Inside a loop XLA:CPU would fold the exchange of channels into the convolution and miss its fast path, hence the
    barrier.
    """
    kernel = jax.lax.optimization_barrier(kernel.swapaxes(2, 3)) if transposed else kernel
    shape = onednn.output_shape(x.shape, kernel.shape, padding, stride, dilation)
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return product(x[:, ::stride, ::stride], kernel[0, 0]).astype(x.dtype)
    if math.prod(shape[1:3]) > _FEW_PIXELS or dilation != 1:
        return _slide(x, kernel, padding, stride, dilation)
    rows, columns = (list(_meet(x.shape[a], kernel.shape[a - 1], stride, padding[a - 1])) for a in (1, 2))
    pixels = [
        product(x[:, r, c].reshape(x.shape[0], -1), kernel[p, q].reshape(-1, kernel.shape[-1]))
        for r, p in rows
        for c, q in columns
    ]
    return jnp.stack(pixels, 1).reshape(shape).astype(x.dtype)


def _meet(length: int, size: int, stride: int, padding: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """For each output position along an axis: the input positions that the kernel meets, and its taps there."""
    for first in range(-padding[0], length + padding[1] - size + 1, stride):
        low, high = max(first, 0), min(first + size, length)
        yield slice(low, high), slice(low - first, high - first)


# The primitives.


def _lower_for_cpu(plain: Callable, forms: Callable) -> Callable:
    """The rule that chooses: exports get `plain`; oneDNN where it pays, but not for several devices outside of a
    `shard_map`, because XLA's partitioner does not know it; else XLA."""

    def lower(context: mlir.LoweringRuleContext, *operands, **how: Any):
        if context.module_context.lowering_parameters.for_export:
            chosen = plain
        else:
            chosen = partial(forms, onednn.convolve if _suits_onednn(context, **how) else _xla_slide)
        return mlir.lower_fun(partial(chosen, **how), multiple_results=False)(context, *operands)

    return lower


def _suits_onednn(context: mlir.LoweringRuleContext, *, stride: int, shape, size: int) -> bool:
    module, avals = context.module_context, (*context.avals_in, *context.avals_out)
    axes = module.axis_context
    manual = getattr(axes, "manual_axes", None)
    alone = getattr(axes, "num_devices", None) == 1 or bool(manual and manual == frozenset(axes.mesh.axis_names))
    same = len({aval.dtype for aval in avals}) == 1 and avals[0].dtype.name in onednn.DTYPES
    channels = {aval.shape[-1] for aval in avals if aval.shape != shape}
    outputs = onednn.output_shape(shape, (size, size, shape[-1], max(channels)), _pads(size), stride)
    worthwhile = onednn.worthwhile(outputs, (size, size, shape[-1]))
    return alone and same and worthwhile and onednn.available()


def _bilinear(name: str, plain: Callable, forms: Callable) -> Primitive:
    """A primitive that is `plain`, lowered for CPUs as `forms`."""
    primitive = Primitive(f"infofeat_jax_{name}")
    primitive.def_impl(lambda *operands, **how: jax.jit(partial(primitive.bind, **how))(*operands))
    primitive.def_abstract_eval(lambda *operands, **how: _abstract(partial(plain, **how), *operands))
    mlir.register_lowering(primitive, mlir.lower_fun(plain, multiple_results=False))
    mlir.register_lowering(primitive, _lower_for_cpu(plain, forms), platform="cpu")
    batching.primitive_batchers[primitive] = partial(_batch, primitive, plain)
    return primitive


def _abstract(function: Callable, *operands) -> jax.core.ShapedArray:
    found = jax.eval_shape(function, *operands)
    return jax.core.ShapedArray(found.shape, found.dtype)


def _batch(primitive: Primitive, plain: Callable, operands, axes, **how: Any):
    """Under `vmap` of the images or the gradients alone, one larger batch; else what JAX makes of it."""
    (x, kernel), (axis, other) = operands, axes
    if other is not None or primitive is _convolve_to_kernel:
        return jax.vmap(partial(plain, **how), axes)(x, kernel), 0
    x = jnp.moveaxis(x, axis, 0)
    how |= {"shape": (x.shape[0] * x.shape[1], *how["shape"][1:])}
    y = primitive.bind(x.reshape(-1, *x.shape[2:]), kernel, **how)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


_convolve = _bilinear("convolve", _plain, _forward)
_convolve_to_input = _bilinear("convolve_to_input", _plain_to_input, _to_input)
_convolve_to_kernel = _bilinear("convolve_to_kernel", _plain_to_kernel, _to_kernel)
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
