"""A network that compiles quickly, for processes too: `--config.model.name=tiny_net:TinyNet`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from infofeat_jax.models import layers


class TinyNet(nn.Module):
    """One convolution with batch normalisation: the parts of the real networks, compiled in a second."""

    num_classes: int = 5
    norm: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        conv, bn = layers.Conv(6, stride=2, dtype=self.dtype, name="conv1"), layers.BatchNorm(6, name="bn1")
        images = images - 0.5
        maps = layers.conv_bn(conv, bn, images, train=train) if self.norm else jax.nn.relu(conv(images))
        return layers.Head(self.num_classes, name="linear")(maps)
