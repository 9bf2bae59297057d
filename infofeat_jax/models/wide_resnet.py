"""WideResNet-D-W (Zagoruyko & Komodakis, 2016), as FeatureScatter, TRADES, RobustBench use it. No dropout."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from infofeat_jax.models.layers import ACTIVATIONS, BatchNorm, Conv, Head, normalize
from infofeat_jax.models.resnet import Normalization, PreActBlock, rematerialised
from infofeat_jax.types import Images, Outputs


class WideResNet(nn.Module):
    """`depth` = 6 n + 4 layers, stages of `widen_factor` times `width`, 2 `width` and 4 `width` channels.

    DeepMind's: `activation="silu", padding="same"`.
    """

    num_classes: int
    depth: int = 28
    widen_factor: int = 10
    width: int = 16
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
        options = {"shortcut": "convShortcut", "activation": self.activation, "padding": self.padding}
        for stage in range(3):
            features = self.width * self.widen_factor * 2**stage
            for layer in range((self.depth - 4) // 6):
                stride = 2 if stage > 0 and layer == 0 else 1
                name = f"block{stage + 1}_layer_{layer}"
                block = rematerialised(PreActBlock, self.remat and train)
                x = block(features, stride, self.dtype, **options, name=name)(x, train)
        x = ACTIVATIONS[self.activation](BatchNorm(x.shape[-1], name="bn1")(x, train=train))
        return Head(self.num_classes, nonnegative_maps=self.activation == "relu", name="fc")(x)
