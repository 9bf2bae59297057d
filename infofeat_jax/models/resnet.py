"""ResNet-18 (He et al., 2016a) and PreAct-ResNet-18 (2016b), CIFAR form. Names follow PyTorch's keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from infofeat_jax.models.layers import BatchNorm, Conv, Features, Head, conv_bn, normalize
from infofeat_jax.types import Images, Outputs

Normalization = float | tuple[float, ...]


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""

    features: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        conv = lambda name, size, stride: Conv(self.features, size, stride, self.dtype, name=name)  # noqa: E731
        bn = lambda name: BatchNorm(self.features, name=name)  # noqa: E731
        y = conv_bn(conv("conv1", 3, self.stride), bn("bn1"), x, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv_bn(conv("shortcut_0", 1, self.stride), bn("shortcut_1"), x, train=train, relu=False)
        return conv_bn(conv("conv2", 3, 1), bn("bn2"), y, x, train=train)


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + shortcut; the shortcut convolves relu(bn(x)), or the raw x."""

    features: int
    stride: int
    dtype: DTypeLike
    activated_shortcut: bool = True
    shortcut: str = "shortcut_0"

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        conv = lambda name, size, stride: Conv(self.features, size, stride, self.dtype, name=name)  # noqa: E731
        activated = jax.nn.relu(BatchNorm(x.shape[-1], name="bn1")(x, train=train))
        bn2 = BatchNorm(self.features, name="bn2")
        y = conv_bn(conv("conv1", 3, self.stride), bn2, activated, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.shortcut, 1, self.stride)(activated if self.activated_shortcut else x)
        return conv("conv2", 3, 1)(y, residual=x)


class ResNet(nn.Module):
    """Post-activation ResNet for small images; `width` channels in the first of four stages."""

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    mean: Normalization = 0.5
    std: Normalization = 0.5
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # in training, recompute the blocks' activations in the backward pass

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Outputs:
        x = normalize(images, self.mean, self.std, self.dtype)
        stem = Conv(self.width, 3, 1, self.dtype, name="conv1")
        x = conv_bn(stem, BatchNorm(self.width, name="bn1"), x, train=train)
        for name, features, stride in stages(self.width, self.blocks):
            x = rematerialised(BasicBlock, self.remat and train)(features, stride, self.dtype, name=name)(x, train)
        return Head(self.num_classes, name="linear")(x)


class PreActResNet(nn.Module):
    """Pre-activation ResNet; `final_norm=False, activated_shortcut=False` is RobustBench's default."""

    num_classes: int
    width: int = 64
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    final_norm: bool = True
    activated_shortcut: bool = True
    mean: Normalization = 0.5
    std: Normalization = 0.5
    dtype: DTypeLike = jnp.float32
    remat: bool = False  # in training, recompute the blocks' activations in the backward pass

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Outputs:
        x = normalize(images, self.mean, self.std, self.dtype)
        x = Conv(self.width, 3, 1, self.dtype, name="conv1")(x)
        for name, features, stride in stages(self.width, self.blocks):
            block = rematerialised(PreActBlock, self.remat and train)
            x = block(features, stride, self.dtype, self.activated_shortcut, name=name)(x, train)
        if self.final_norm:
            x = jax.nn.relu(BatchNorm(x.shape[-1], name="bn")(x, train=train))
        return Head(self.num_classes, nonnegative_maps=self.final_norm, name="linear")(x)


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
