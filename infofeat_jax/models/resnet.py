"""ResNet-18 (He et al., 2016a) and PreAct-ResNet-18 (2016b), CIFAR form. Names follow PyTorch's keys."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from infofeat_jax.models.layers import ACTIVATIONS, BatchNorm, Conv, Features, Head, conv_bn, normalize
from infofeat_jax.types import Images, Outputs

Normalization = float | tuple[float, ...]


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with the `activation` in place of relu."""

    features: int
    stride: int
    dtype: DTypeLike
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        conv = lambda name, size, stride: Conv(self.features, size, stride, self.dtype, name=name)  # noqa: E731
        bn = lambda name: BatchNorm(self.features, name=name)  # noqa: E731
        activation = self.activation
        y = conv_bn(conv("conv1", 3, self.stride), bn("bn1"), x, train=train, activation=activation)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_bn(conv("shortcut_0", 1, self.stride), bn("shortcut_1"), x, train=train, activation=None)
        return conv_bn(conv("conv2", 3, 1), bn("bn2"), y, x, train=train, activation=activation)


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + shortcut; the shortcut convolves relu(bn(x)), or the raw x.

    `activation` takes the place of relu, `padding` is that of all convolutions.
    """

    features: int
    stride: int
    dtype: DTypeLike
    activated_shortcut: bool = True
    shortcut: str = "shortcut_0"
    shortcut_size: int = 1
    activation: str = "relu"
    padding: str = "symmetric"

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        conv = lambda name, size, stride: Conv(self.features, size, stride, self.dtype, self.padding, name=name)  # noqa: E731
        activated = ACTIVATIONS[self.activation](BatchNorm(x.shape[-1], name="bn1")(x, train=train))
        bn2 = BatchNorm(self.features, name="bn2")
        y = conv_bn(conv("conv1", 3, self.stride), bn2, activated, train=train, activation=self.activation)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.shortcut, self.shortcut_size, self.stride)(activated if self.activated_shortcut else x)
        return conv("conv2", 3, 1)(y, residual=x)


class ResNet(nn.Module):
    """Post-activation ResNet for small images; `width` channels in the first of four stages."""

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    activation: str = "relu"
    mean: Normalization = 0.5
    std: Normalization = 0.5
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # in training, recompute the blocks' activations in the backward pass

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Outputs:
        x = normalize(images, self.mean, self.std, self.dtype)
        stem = Conv(self.width, 3, 1, self.dtype, name="conv1")
        x = conv_bn(stem, BatchNorm(self.width, name="bn1"), x, train=train, activation=self.activation)
        for name, features, stride in stages(self.width, self.blocks):
            block = rematerialised(BasicBlock, self.remat and train)
            x = block(features, stride, self.dtype, self.activation, name=name)(x, train)
        return Head(self.num_classes, nonnegative_maps=self.activation == "relu", name="linear")(x)


class PreActResNet(nn.Module):
    """Pre-activation ResNet; `final_norm=False, activated_shortcut=False` is RobustBench's default.

    DeepMind's: `activation="silu", activated_shortcut=False, shortcut_size=3, padding="same"`.
    """

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    final_norm: bool = True
    activated_shortcut: bool = True
    shortcut_size: int = 1
    activation: str = "relu"
    padding: str = "symmetric"
    mean: Normalization = 0.5
    std: Normalization = 0.5
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # in training, recompute the blocks' activations in the backward pass

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Outputs:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.width, 3, 1, self.dtype, name="conv1")(x)
        options = {
            "activated_shortcut": self.activated_shortcut, "shortcut_size": self.shortcut_size,
            "activation": self.activation, "padding": self.padding,
        }  # fmt: skip
        for name, features, stride in stages(self.width, self.blocks):
            block = rematerialised(PreActBlock, self.remat and train)
            x = block(features, stride, self.dtype, **options, name=name)(x, train)
        if self.final_norm:
            x = ACTIVATIONS[self.activation](BatchNorm(x.shape[-1], name="bn")(x, train=train))
        return Head(self.num_classes, nonnegative_maps=self.final_norm and self.activation == "relu", name="linear")(x)


def rematerialised(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """`block`; with `remat` only its input is kept for the backward pass, and its activations are recomputed."""
    return nn.remat(block, static_argnums=(2,)) if remat else block  # 2: train


def stages(width: int, blocks: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """(name, features, stride) of each block: width doubles and resolution halves from stage to stage."""
    return [
        (f"layer{s + 1}_{b}", width * 2**s, 2 if s > 0 and b == 0 else 1)
        for s, count in enumerate(blocks)
        for b in range(count)
    ]
