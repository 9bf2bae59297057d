"""The forms a convolution and its two gradients can take: JAX's own on any platform, and faster ones for CPUs."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from infofeat_jax.convolution import onednn

Features = Float[Array, "b _ _ _"]
Kernel = Float[Array, "s s i o"]
Added = Float[Array, " o"] | Features

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_PIXELS = 4  # of an output computed as products


class Geometry(NamedTuple):
    """A convolution's shapes: of images [b, h, w, i] and a square kernel [s, s, i, o]."""

    images: tuple
    kernel: tuple
    stride: int
    padding: onednn.Padding  # (low, high) of rows, of columns

    @property
    def outputs(self) -> tuple:
        """The shape [b, _, _, o] of the result."""
        return onednn.output_shape(self.images, self.kernel, self.padding, self.stride)


def geometry(images: tuple, kernel: tuple, stride: int, padding: int | str) -> Geometry:
    """That of a convolution which the forms below can compute, padded by at most (s - 1) // 2 or until it is "same".

    Args:
      padding: pixels on all sides; "symmetric": (s - 1) // 2, as PyTorch's usual padding; "same": until each pixel at
        distance `stride` is an output, the larger half on the high side, as TensorFlow's.

    Raises:
      ValueError: the padding is none of these.
    """
    size = kernel[0]
    if padding == "same":
        rows, columns = (max((length - 1) // stride * stride + size - length, 0) for length in images[1:3])
        return Geometry(images, kernel, stride, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)))
    pixels = (size - 1) // 2 if padding == "symmetric" else padding
    if not isinstance(pixels, int) or not 0 <= pixels <= (size - 1) // 2:
        raise ValueError(f"padding={padding!r}: expected symmetric, same, or 0 to {(size - 1) // 2} for this kernel")
    return Geometry(images, kernel, stride, ((pixels, pixels),) * 2)


# On any platform.


def forward(x: Features, kernel: Kernel, *, geometry: Geometry) -> Features:
    """XLA's convolution, which JAX can differentiate."""
    return _convolve(x, kernel, geometry.padding, geometry.stride)


def to_input(gradient: Features, kernel: Kernel, *, geometry: Geometry) -> Features:
    """The gradient to the images, as JAX writes it."""
    x = jax.ShapeDtypeStruct(geometry.images, gradient.dtype)
    return jax.linear_transpose(lambda x: forward(x, kernel, geometry=geometry), x)(gradient)[0]


def to_kernel(x: Features, gradient: Features, *, geometry: Geometry) -> Kernel:
    """The gradient to the kernel, as JAX writes it."""
    kernel = jax.ShapeDtypeStruct(geometry.kernel, x.dtype)
    return jax.linear_transpose(lambda kernel: forward(x, kernel, geometry=geometry), kernel)(gradient)[0]


def _convolve(x: Features, kernel: Float[Array, "_ _ i o"], padding, stride: int, dilation=(1, 1)) -> Features:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, rhs_dilation=dilation, dimension_numbers=_LAYOUT
    )


# On a CPU. `slide` is oneDNN's convolution (`onednn.convolve`) or XLA's (`xla_slide`, with the same arguments).


def cpu_forward(slide: Callable, x: Features, kernel: Kernel, *, geometry: Geometry) -> Features:
    """The convolution."""
    return slide(x, kernel, geometry.padding, geometry.stride)


def cpu_to_input(slide: Callable, gradient: Features, kernel: Kernel, *, geometry: Geometry) -> Features:
    """Convolutions of the gradient with the kernel reversed and its channels exchanged, one for each phase.

    At stride 2, pixels of even and odd rows and columns meet different taps: four small convolutions, instead of one of
    a gradient filled up with zeros.
    """
    phase, stride, images = partial(_phase, slide, gradient, kernel, geometry), geometry.stride, geometry.images
    if stride == 1:
        return phase((0, 0))
    rows = [jnp.stack([phase((row, column)) for column in range(stride)], 3) for row in range(stride)]
    b, h, w, *_ = rows[0].shape
    return jnp.stack(rows, 2).reshape(b, stride * h, stride * w, -1)[:, : images[1], : images[2]]


def _phase(slide: Callable, gradient, kernel, geometry: Geometry, offsets: tuple[int, int]) -> Features:
    """The gradient to pixels offset, offset + stride, ... in both directions, as many as at offset 0."""
    size, stride, taps, padding = kernel.shape[0], geometry.stride, [], []
    axes = zip(geometry.images[1:3], gradient.shape[1:3], offsets, geometry.padding, strict=True)
    for length, outputs, offset, (low, _) in axes:
        behind, first = divmod(offset + low, stride)  # output pixels before; the first tap of the phase
        met = range(first, size, stride)
        taps.append(slice(first, None, stride))
        padding.append((len(met) - 1 - behind, -(-length // stride) + behind - outputs))
    kernel = kernel[tuple(taps)][::-1, ::-1]
    # A phase may begin after the first outputs: negative padding, which oneDNN does not know.
    met = zip(padding, gradient.shape[1:3], strict=True)
    rows, columns = (slice(max(-low, 0), outputs + min(high, 0)) for (low, high), outputs in met)
    gradient = gradient[:, rows, columns]
    if not (kernel.size and gradient.size):  # pixels between the kernel's positions, as of 1x1 at stride 2
        b, h, w, channels = geometry.images
        return jnp.zeros((b, -(-h // stride), -(-w // stride), channels), gradient.dtype)
    return slide(gradient, kernel, tuple((max(low, 0), max(high, 0)) for low, high in padding), transposed=True)


def cpu_to_kernel(slide: Callable, x: Features, gradient: Features, *, geometry: Geometry) -> Kernel:
    """A convolution of x with the gradient, summed over images; a product for each tap of 1x1 kernels and tiny outputs.

    The images become the channels. The channels become part of a row, between its pixels, and the gradient's columns
    lie as far apart: so an output's row has s * i pixels, where one image for each channel would have s.
    """
    size, stride, channels = geometry.kernel[0], geometry.stride, geometry.kernel[2]
    if size == 1 or (slide is xla_slide and math.prod(gradient.shape[1:3]) <= _FEW_PIXELS):
        return _tap_products(x, gradient, geometry)
    lows = [low for low, _ in geometry.padding]
    high, wide = (  # rows and columns that are met
        (steps - 1) * stride + size - low for steps, low in zip(gradient.shape[1:3], lows, strict=True)
    )
    rows, columns = (
        (low, max(met - length, 0)) for low, met, length in zip(lows, (high, wide), x.shape[1:3], strict=True)
    )
    x, gradient = _exchange(x[:, :high, :wide], (1, 2, 3, 0)), _exchange(gradient, (1, 2, 0, 3))
    x = x.reshape(1, x.shape[0], -1, x.shape[3])
    padding = rows, tuple(channels * count for count in columns)
    return slide(x, gradient, padding, dilation=(stride, stride * channels)).reshape(geometry.kernel)


def _tap_products(x: Features, gradient: Features, geometry: Geometry) -> Kernel:
    size, stride, (high, wide) = geometry.kernel[0], geometry.stride, gradient.shape[1:3]
    padding = ((low, size) for low, _ in geometry.padding)
    x = jnp.pad(_exchange(x, (3, 0, 1, 2)), ((0, 0), (0, 0), *padding))
    seen = lambda row, column: x[:, :, row:, column:][:, :, : high * stride : stride, : wide * stride : stride]  # noqa: E731
    product = partial(jnp.einsum, "ibhw,bhwo->io", preferred_element_type=jnp.float32)
    taps = [jnp.stack([product(seen(row, column), gradient) for column in range(size)]) for row in range(size)]
    return jnp.stack(taps).astype(x.dtype)


def _exchange(x: Features, axes: tuple[int, ...]) -> Array:
    """x.transpose(axes), not fused: fused with other operations XLA:CPU would recompute those for each element read."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lambda x: x.transpose(axes))(x)


def xla_slide(x: Features, kernel, padding, stride: int = 1, dilation=(1, 1), transposed: bool = False) -> Features:
    """XLA's convolution, or matrix products: for 1x1 kernels and for outputs of few pixels, one for each.

    Inside a loop XLA:CPU would fold the exchange of channels into the convolution and miss its fast path, hence the
    barrier.
    """
    kernel = jax.lax.optimization_barrier(kernel.swapaxes(2, 3)) if transposed else kernel
    shape = onednn.output_shape(x.shape, kernel.shape, padding, stride, dilation)
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return product(x[:, ::stride, ::stride], kernel[0, 0]).astype(x.dtype)
    if math.prod(shape[1:3]) > _FEW_PIXELS or dilation != (1, 1):
        return _convolve(x, kernel, padding, stride, dilation)
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
