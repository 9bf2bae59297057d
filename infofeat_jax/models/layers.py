"""The layers of all models: convolution, batch normalisation, and the head that returns CAMs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from infofeat_jax import cam
from infofeat_jax.convolution import Features, convolve
from infofeat_jax.types import InvalidInput, Outputs

Channels = Float[Array, " o"]

conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # He et al., as the reference codes
linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default


# Of one argument; ReLU, by its name, is fused with the convolution before it.
ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}
# What a convolution of stride 2 pads: both sides, as PyTorch's, or the high side, as TensorFlow's and Haiku's "SAME".
PADDINGS = ("symmetric", "same")


class Conv(nn.Module):
    """Convolution with a square kernel; `scale` multiplies the kernel per output channel, the rest as `convolve`'s."""

    features: int
    size: int = 3
    stride: int = 1
    dtype: DTypeLike = jnp.float32
    padding: str = "symmetric"

    @nn.compact
    def __call__(self, x: Features, scale: Channels | None = None, **follows) -> Features:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", conv_init, shape)
        if scale is not None:
            kernel = kernel * scale
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding=self.padding, **follows)


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
        moved, mean, var = moments(x, jax.lax.stop_gradient(self.mean.value))
        if not self.is_initializing():
            self._update(mean, var, x.size // self.features)
        scale = self.scale * jax.lax.rsqrt(var + self.epsilon)
        return (moved * scale + (self.bias - mean * scale)).astype(x.dtype)

    def affine(self) -> tuple[Channels, Channels]:
        """(scale, shift) of normalisation by the running statistics."""
        scale = self.scale * jax.lax.rsqrt(self.var.value + self.epsilon)
        return scale, self.bias - self.mean.value * scale

    def _update(self, change: Channels, var: Channels, count: int) -> None:
        unbiased = var * (count / max(count - 1, 1))
        self.mean.value = self.mean.value + (1 - self.momentum) * change
        self.var.value = self.momentum * self.var.value + (1 - self.momentum) * unbiased


def moments(x: Features, shift: Channels) -> tuple[Features, Channels, Channels]:
    """(x - shift in float32, its mean, its variance) over all but the channels: one pass, one sum over devices.

    The variance is E[(x - shift)^2] - E[x - shift]^2, with the relative error of a sum in float32 times
    1 + ((mean - shift) / std)^2: negligible with the running mean as shift. What float32 cannot resolve counts as
    variance, so that no output is too large even where the shift is far away.
    """
    moved = x.astype(jnp.float32) - shift
    mean, square = moved.mean((0, 1, 2)), jnp.square(moved).mean((0, 1, 2))
    return moved, mean, jnp.maximum(square - jnp.square(mean), 2e-7 * jnp.square(mean))


def conv_bn(
    conv: Conv,
    bn: BatchNorm,
    x: Features,
    residual: Features | None = None,
    *,
    train: bool,
    activation: str | None = "relu",
) -> Features:
    """activation(bn(conv(x)) + residual); `activation` is a name in ACTIVATIONS, or None.

    On fixed statistics the scale is folded into the kernel, which leaves a bias.
    """
    if train:
        y = bn(conv(x), train=True)
        if residual is not None and activation == "relu":
            return relu_of_sum(y + residual)
        y = y if residual is None else y + residual
    else:
        scale, shift = bn.affine()
        relu = activation == "relu"
        y = conv(x, scale, bias=shift.astype(conv.dtype), residual=residual, relu=relu)
        activation = None if relu else activation
    return y if activation is None else ACTIVATIONS[activation](y)


@jax.custom_jvp
def relu_of_sum(x: Features) -> Features:
    """max(x, 0), whose derivative, 0 at 0, reads from the result where it is positive.

    On GPUs behind a barrier: else XLA reads both summands to add them again.
    """
    keep = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(jax.nn.relu(x), cuda=keep, rocm=keep, default=lambda y: y)


@relu_of_sum.defjvp
def _differentiate_relu(primals, tangents):
    y, (dx,) = relu_of_sum(*primals), tangents
    return y, jnp.where(y > 0, dx, jnp.zeros_like(dx))


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
    """The models' first operation: [0, 1] pixels to (x - mean) / std, a number for all channels or one for each.

    Raises InvalidInput for other shapes, which would broadcast to images of more channels.
    """
    check_channels(mean, std, images.shape[-1])
    return ((images - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)).astype(dtype)


def check_channels(mean, std, channels: int) -> None:
    """Raises InvalidInput unless `mean` and `std` are one number each or one for each channel."""
    for name, value in (("mean", mean), ("std", std)):
        if np.shape(value) not in ((), (1,), (channels,)):
            raise InvalidInput(f"model {name} = {value}: expected one number, or {channels}, one for each channel")
