"""Convolution, batch normalisation and the CAM-returning head that every model is made of."""

import math
from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from infofeat_jax import cam
from infofeat_jax.types import Outputs

Features = Float[Array, "b _ _ _"]
Kernel = Float[Array, "s s i o"]
Channels = Float[Array, " o"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW_PIXELS = 4  # of an output that is computed pixel by pixel
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al., as the reference codes
linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


def _plain_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=_LAYOUT)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _loop_safe_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    return _plain_convolve(x, kernel, stride)


def _input_gradient(gradient: Features, kernel: Kernel, stride: int, shape: tuple[int, ...]) -> Features:
    size = kernel.shape[0]
    pad = (size - 1) // 2
    flipped = jax.lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))
    padding = [(size - 1 - pad, size - 1 - pad + (n + 2 * pad - size) % stride) for n in shape[1:3]]
    return jax.lax.conv_general_dilated(
        gradient, flipped, (1, 1), padding, lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT
    )


def _convolve_forward(x: Features, kernel: Kernel, stride: int):
    return _plain_convolve(x, kernel, stride), (x, kernel)


def _convolve_backward(stride: int, residuals, gradient: Features):
    x, kernel = residuals
    _, kernel_vjp = jax.vjp(lambda k: _plain_convolve(x, k, stride), kernel)
    return _input_gradient(gradient, kernel, stride, x.shape), kernel_vjp(gradient)[0]


_loop_safe_convolve.defvjp(_convolve_forward, _convolve_backward)


def _meet(length: int, size: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """For each output position along an axis: the input positions that the kernel meets, and its taps there."""
    pad = (size - 1) // 2
    for first in range(-pad, length + pad - size + 1, stride):
        low, high = max(first, 0), min(first + size, length)
        yield slice(low, high), slice(low - first, high - first)


def _pixelwise_convolve(x: Features, kernel: Kernel, stride: int) -> Features:
    def pixel(rows, row_taps, columns, column_taps):
        seen, taps = x[:, rows, columns], kernel[row_taps, column_taps]
        return seen.reshape(x.shape[0], -1) @ taps.reshape(-1, kernel.shape[-1])

    size = kernel.shape[0]
    across = list(_meet(x.shape[2], size, stride))
    lines = [jnp.stack([pixel(*row, *column) for column in across], 1) for row in _meet(x.shape[1], size, stride)]
    return jnp.stack(lines, 1)


def convolve(x: Features, kernel: Kernel, stride: int = 1) -> Features:
    """Convolution padded by (size - 1) // 2 on both sides, as PyTorch's (Flax's "SAME" differs at stride 2).

    XLA:CPU has two slow paths. Inside a loop it folds the kernel transpose of the input gradient into the
    convolution's dimension labels and then misses its fast path: the gradient is written out, the transpose
    behind a barrier. And maps of 2x2 and fewer pixels, as 8x8 images end in, take it 30 times as long as one
    matrix product a pixel.
    """
    if jax.default_backend() != "cpu":
        return _plain_convolve(x, kernel, stride)
    pixels = math.prod((length - 1) // stride + 1 for length in x.shape[1:3])
    return (_pixelwise_convolve if pixels <= _FEW_PIXELS else _loop_safe_convolve)(x, kernel, stride)


class Conv(nn.Module):
    """Square convolution without bias; its kernel may be scaled per output channel on the way."""

    features: int
    size: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Features, scale: Channels | None = None) -> Features:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape)
        if scale is not None:
            kernel = kernel * scale
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics: momentum 0.1, *unbiased* variance.

    Flax's own keeps the biased one. Statistics are float32 whatever the compute type.
    """

    features: int
    momentum: float = 0.9
    epsilon: float = 1e-5

    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        self.var = self.variable("batch_stats", "var", jnp.ones, (self.features,))

    def __call__(self, x: Features, *, train: bool) -> Features:
        if not train:
            scale, shift = self.affine()
            return x * scale.astype(x.dtype) + shift.astype(x.dtype)
        wide = x.astype(jnp.float32)
        mean = wide.mean((0, 1, 2))
        var = jnp.square(wide - mean).mean((0, 1, 2))
        if not self.is_initializing():
            self._update(mean, var, x.size // self.features)
        scale = self.scale * jax.lax.rsqrt(var + self.epsilon)
        return (wide * scale + (self.bias - mean * scale)).astype(x.dtype)

    def affine(self) -> tuple[Channels, Channels]:
        """(scale, shift) of normalisation by the running statistics."""
        scale = self.scale * jax.lax.rsqrt(self.var.value + self.epsilon)
        return scale, self.bias - self.mean.value * scale

    def _update(self, mean: Channels, var: Channels, count: int) -> None:
        unbiased = var * (count / max(count - 1, 1))
        self.mean.value = self.momentum * self.mean.value + (1 - self.momentum) * mean
        self.var.value = self.momentum * self.var.value + (1 - self.momentum) * unbiased


def conv_bn(conv: Conv, bn: BatchNorm, x: Features, *, train: bool) -> Features:
    """bn(conv(x)); on fixed statistics the scale is folded into the kernel, which leaves one addition."""
    if train:
        return bn(conv(x), train=True)
    scale, shift = bn.affine()
    return conv(x, scale) + shift.astype(conv.dtype)


class Head(nn.Module):
    """Global average pooling and the last fully connected layer, in float32; returns `Outputs`."""

    num_classes: int
    nonnegative_maps: bool = True

    @nn.compact
    def __call__(self, maps: Features) -> Outputs:
        maps = maps.astype(jnp.float32)
        kernel = self.param("kernel", linear_init, (maps.shape[-1], self.num_classes))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        features = maps.mean((1, 2))
        activation = cam.positive_cam(maps, kernel, nonnegative_maps=self.nonnegative_maps)
        return Outputs(features @ kernel + bias, features, maps, activation, kernel)


def normalize(images: Features, mean, std, dtype) -> Features:
    """The models' first operation: [0, 1] pixels to (x - mean) / std, per channel or for all."""
    return ((images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)
