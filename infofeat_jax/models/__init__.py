"""CAM-returning Linen models: `module.apply(variables, images in [0, 1])` -> Outputs."""

import re
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from infofeat_jax.models.pytorch.reading import from_torch
from infofeat_jax.models.pytorch.writing import save_torch, to_torch
from infofeat_jax.models.resnet import Normalization, PreActResNet, ResNet
from infofeat_jax.models.serving import export
from infofeat_jax.models.wide_resnet import WideResNet
from infofeat_jax.types import InvalidInput

__all__ = [
    "MODELS",
    "Normalization",
    "PreActResNet",
    "ResNet",
    "WideResNet",
    "create",
    "export",
    "from_torch",
    "save_torch",
    "to_torch",
]

MODELS = {
    "resnet10": partial(ResNet, blocks=(1, 1, 1, 1)),
    "resnet18": ResNet,
    "preact_resnet18": PreActResNet,
}


def create(
    name: str,
    *,
    num_classes: int,
    width: int = 0,
    dtype: str = "float32",
    mean: Normalization = 0.5,
    std: Normalization = 0.5,
    **options,
) -> nn.Module:
    """Builds the module `name`: resnet18, preact_resnet18, or wrn_D_W such as wrn_28_10.

    `width`: channels of the first stage (ResNets: 64) or of the stem (WideResNets: 16); 0 is that default.
    `dtype`: of the computation, "float32" or "bfloat16"; parameters, statistics and the head are float32.
    `mean`, `std`: normalisation of [0, 1] pixels, a number or one a channel. Raises InvalidInput.
    """
    if dtype not in ("float32", "bfloat16"):
        raise InvalidInput(f"unknown dtype {dtype!r}: choose float32 or bfloat16")
    if width < 0 or num_classes < 2:
        raise InvalidInput(f"width {width}, num_classes {num_classes}: expected width >= 0, 2 or more classes")
    if width:
        options["width"] = width
    build = _lookup(name)
    return build(num_classes=num_classes, mean=mean, std=std, dtype=jnp.dtype(dtype), **options)


def _lookup(name: str):
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        depth, widen_factor = map(int, match.groups())
        if depth < 10 or (depth - 4) % 6 or widen_factor < 1:
            raise InvalidInput(f"model {name!r}: a WideResNet's depth is 10, 16, 22, 28, ..., its factor >= 1")
        return partial(WideResNet, depth=depth, widen_factor=widen_factor)
    if name not in MODELS:
        raise InvalidInput(f"unknown model {name!r}: choose one of {', '.join(MODELS)}, wrn_D_W (as wrn_28_10)")
    return MODELS[name]
