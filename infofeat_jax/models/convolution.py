"""The convolution of all models, with implementations that avoid slow paths of XLA's CPU compiler."""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

Features = Float[Array, "b _ _ _"]
Kernel = Float[Array, "s s i o"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_PIXELS = 4  # of an output computed pixel by pixel
_FEW_INPUTS = 36  # values that an output pixel depends on: 3x3 of up to 4 channels
_MANY_CHANNELS = 32  # for which products in bfloat16 are faster than XLA:CPU's convolution
_NARROW = 4  # columns of an input for which a product over all nine taps is


def convolve(x: Features, kernel: Kernel, stride: int = 1) -> Features:
    """Convolution padded by (size - 1) // 2 on both sides, as PyTorch's (Flax's "SAME" differs at stride 2).

    On a CPU it is computed as matrix products where XLA's convolution is slower: 1x1 kernels, few input channels (a
    network's first layer), outputs of at most 2x2 pixels (30 times as fast), many channels in bfloat16, which XLA
    convolves in float32. Other cases use XLA's convolution with a custom input gradient.
    """
    if jax.default_backend() != "cpu":
        return plain_convolve(x, kernel, stride)
    if kernel.shape[0] == 1:
        return _product(x[:, ::stride, ::stride], kernel[0, 0])
    if math.prod((length - 1) // stride + 1 for length in x.shape[1:3]) <= _FEW_PIXELS:
        return _pixelwise_convolve(x, kernel, stride)
    if math.prod(kernel.shape[:3]) <= _FEW_INPUTS:
        wide = x.astype(jnp.float32), kernel.astype(jnp.float32)  # bfloat16 is slow to stack
        return _patchwise_convolve(*wide, stride).astype(x.dtype)
    return _loop_safe_convolve(x, kernel, stride)


def plain_convolve(x: Features, kernel: Kernel, stride: int = 1) -> Features:
    """XLA's convolution, differentiated by JAX."""
    pad = (kernel.shape[0] - 1) // 2
    return _slide(x, kernel, [(pad, pad)] * 2, stride=stride)


def _slide(
    x: Features, kernel: Float[Array, "_ _ i o"], padding: list[tuple[int, int]], *, stride: int = 1, dilation: int = 1
) -> Features:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 2, padding, lhs_dilation=(dilation,) * 2, dimension_numbers=_LAYOUT
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _loop_safe_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    if stride > 1 or x.dtype != jnp.bfloat16 or kernel.shape[0] != 3 or kernel.shape[2] < _MANY_CHANNELS:
        return plain_convolve(x, kernel, stride)
    return _patchwise_convolve(x, kernel, 1) if x.shape[2] <= _NARROW else _rowwise_convolve(x, kernel)


def _forward(x: Features, kernel: Kernel, stride: int):
    return _loop_safe_convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals, gradient: Features):
    x, kernel = residuals
    halves = stride == 2 and kernel.shape[0] == 3 and x.shape[1] % 2 == x.shape[2] % 2 == 0
    to_input = _input_gradient_of_halving if halves else partial(_input_gradient, stride=stride, shape=x.shape)
    return to_input(gradient, kernel), _kernel_gradient(x, gradient, size=kernel.shape[0], stride=stride)


_loop_safe_convolve.defvjp(_forward, _backward)


def _kernel_gradient(x: Features, gradient: Features, *, size: int, stride: int) -> Kernel:
    """The convolution of x with the gradient, batch and channels exchanged."""
    pad = (size - 1) // 2
    lengths = zip(x.shape[1:3], gradient.shape[1:3], strict=True)
    padding = [(pad, size - 1 - pad - length + (steps - 1) * stride + 1) for length, steps in lengths]
    x, gradient = _exchange(x, (3, 1, 2, 0)), _exchange(gradient, (1, 2, 0, 3))
    return jax.lax.conv_general_dilated(
        x, gradient, (1, 1), padding, rhs_dilation=(stride,) * 2, dimension_numbers=_LAYOUT
    ).transpose(1, 2, 0, 3)


def _exchange(x: Features, axes: tuple[int, ...]) -> Array:
    """x.transpose(axes), not fused: fused with other operations XLA:CPU would recompute those for each element read."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(lambda x: x.transpose(axes))(x)


def _input_gradient(gradient: Features, kernel: Kernel, *, stride: int, shape: tuple[int, ...]) -> Features:
    """The convolution of the gradient with the transposed kernel, the transpose behind a barrier.

    Inside a loop XLA:CPU folds JAX's own transpose into the convolution's dimension labels and misses its fast path.
    """
    size = kernel.shape[0]
    if stride == 1:
        return _loop_safe_convolve(gradient, _transpose(kernel[::-1, ::-1]), 1)
    pad = (size - 1) // 2
    padding = [(size - 1 - pad, size - 1 - pad + (n + 2 * pad - size) % stride) for n in shape[1:3]]
    return _slide(gradient, _transpose(kernel[::-1, ::-1]), padding, dilation=stride)


def _input_gradient_of_halving(gradient: Features, kernel: Kernel) -> Features:
    """For a 3x3 kernel at stride 2: even and odd rows and columns separately, instead of a dilated convolution.

    In each direction an even pixel only meets the kernel's middle tap, an odd one its last and its first.
    """
    transposed = _transpose(kernel)
    taps = slice(1, 2), slice(None, None, -2)
    pixels = [
        [_slide(gradient, transposed[taps[row], taps[column]], [(0, row), (0, column)]) for column in (0, 1)]
        for row in (0, 1)
    ]
    b, h, w, _ = gradient.shape
    return jnp.stack([jnp.stack(row, 3) for row in pixels], 2).reshape(b, 2 * h, 2 * w, -1)


def _transpose(kernel: Kernel) -> Float[Array, "s s o i"]:
    return jax.lax.optimization_barrier(kernel.swapaxes(2, 3))


def _patchwise_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    size = kernel.shape[0]
    pad = (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    high, wide = (n + 2 * pad - size + 1 for n in x.shape[1:3])
    patches = [
        padded[:, row : row + high : stride, column : column + wide : stride]
        for row in range(size)
        for column in range(size)
    ]
    return _product(jnp.stack(patches, 3).reshape(*patches[0].shape[:3], -1), kernel.reshape(-1, kernel.shape[-1]))


def _rowwise_convolve(x: Features, kernel: Kernel) -> Features:
    """A 3x3 kernel as one product of its nine taps with stacks of three rows; its columns are added up afterwards."""
    b, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # A concatenation of bfloat16 by channels would take XLA:CPU ten times as long as the stack.
    rows = jnp.stack([padded[:, row : row + h] for row in range(3)], 3).reshape(b * h, w + 2, -1)
    taps = kernel.transpose(0, 2, 1, 3).reshape(rows.shape[-1], -1)
    columns = jnp.split(jnp.matmul(rows, taps, preferred_element_type=jnp.float32), 3, axis=-1)
    total = columns[0][:, :w] + columns[1][:, 1 : 1 + w] + columns[2][:, 2 : 2 + w]
    return total.reshape(b, h, w, -1).astype(x.dtype)


def _pixelwise_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    def pixel(rows, row_taps, columns, column_taps):
        seen, taps = x[:, rows, columns], kernel[row_taps, column_taps]
        return _product(seen.reshape(x.shape[0], -1), taps.reshape(-1, kernel.shape[-1]))

    size = kernel.shape[0]
    across = list(_meet(x.shape[2], size, stride))
    lines = [jnp.stack([pixel(*row, *column) for column in across], 1) for row in _meet(x.shape[1], size, stride)]
    return jnp.stack(lines, 1)


def _product(x: Float[Array, "... i"], taps: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x @ taps; for bfloat16, accumulation in float32 is twice as fast on XLA:CPU, and more accurate."""
    return jnp.matmul(x, taps, preferred_element_type=jnp.float32).astype(x.dtype)


def _meet(length: int, size: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """For each output position along an axis: the input positions that the kernel meets, and its taps there."""
    pad = (size - 1) // 2
    for first in range(-pad, length + pad - size + 1, stride):
        low, high = max(first, 0), min(first + size, length)
        yield slice(low, high), slice(low - first, high - first)
