"""CAM-returning Linen models: `module.apply(variables, images in [0, 1])` -> Outputs."""

import re
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from infofeat_jax import parts
from infofeat_jax.models import own
from infofeat_jax.models.layers import ACTIVATIONS, PADDINGS
from infofeat_jax.models.pytorch.reading import from_torch
from infofeat_jax.models.pytorch.writing import save_torch, to_torch
from infofeat_jax.models.resnet import Normalization, PreActResNet, ResNet
from infofeat_jax.models.serving import export
from infofeat_jax.models.wide_resnet import WideResNet
from infofeat_jax.types import InvalidInput, check_choice

__all__ = [
    "ACTIVATIONS",
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

MAX_LAYERS = 1000  # a deeper network is a mistake, and would be traced for hours

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
    """Builds the module `name`: resnet10, resnet18, preact_resnet18, wrn_D_W such as wrn_28_10, or package.module:name.

    `width`: channels of the first stage (ResNets: 64) or of the stem (WideResNets: 16); 0 is that default.
    `dtype`: of the computation, "float32" or "bfloat16"; parameters, statistics and the head are float32.
    `mean`, `std`: normalisation of [0, 1] pixels, a number or one a channel, finite and std above 0.
    `options`: further fields of the module, as `activation`, "relu" or "silu", or a ResNet's `blocks`.
    A part of one's own is called with `num_classes`, and with the others only where they differ from their defaults.
    Raises InvalidInput.

    >>> import jax
    >>> module = create("wrn_10_1", num_classes=10)
    >>> images = jnp.zeros((2, 8, 8, 1))
    >>> variables = jax.jit(module.init)(jax.random.key(0), images)
    >>> module.apply(variables, images).logits.shape
    (2, 10)
    """
    if dtype not in ("float32", "bfloat16"):
        raise InvalidInput(f"unknown dtype {dtype!r}: choose float32 or bfloat16")
    if width < 0 or num_classes < 2:
        raise InvalidInput(f"width {width}, num_classes {num_classes}: expected width >= 0, 2 or more classes")
    if parts.is_own(name):
        defaults = {"width": 0, "mean": 0.5, "std": 0.5, "dtype": "float32", "remat": False}
        given = {"width": width, "mean": mean, "std": std, "dtype": dtype, **options}
        chosen = {field: value for field, value in given.items() if field not in defaults or value != defaults[field]}
        return own.create(name, num_classes=num_classes, **chosen)
    _check_normalization("mean", mean, -np.inf)
    _check_normalization("std", std, 0.0)
    _check_blocks(options.get("blocks", (1,)))
    check_choice("activation", options.get("activation", "relu"), ACTIVATIONS)
    check_choice("padding", options.get("padding", "same"), PADDINGS)
    if width:
        options["width"] = width
    build = _lookup(name)
    return build(num_classes=num_classes, mean=mean, std=std, dtype=jnp.dtype(dtype), **options)


def _lookup(name: str):
    if match := re.fullmatch(r"wrn_(\d{1,9})_(\d{1,9})", name):
        depth, widen_factor = map(int, match.groups())
        if not 10 <= depth <= MAX_LAYERS or (depth - 4) % 6 or widen_factor < 1:
            raise InvalidInput(
                f"model {name!r}: a WideResNet's depth is 10, 16, 22, 28, ... up to {MAX_LAYERS}, its factor >= 1"
            )
        return partial(WideResNet, depth=depth, widen_factor=widen_factor)
    if name not in MODELS:
        raise InvalidInput(
            f"unknown model {name!r}: choose one of {', '.join(MODELS)}, wrn_D_W (as wrn_28_10), or package.module:name"
        )
    return MODELS[name]


def _check_normalization(name: str, value: object, above: float) -> None:
    try:
        with np.errstate(over="ignore"):
            numbers = np.asarray(value, np.float64).astype(np.float32)  # as the models compute
    except (TypeError, ValueError, OverflowError):
        numbers = np.full((), np.nan)
    if numbers.ndim > 1 or not numbers.size or not np.isfinite(numbers).all() or not (numbers > above).all():
        finite = "a finite number" if above < 0 else f"a finite number above {above}"
        raise InvalidInput(f"model {name} = {value!r}: expected {finite}, or one for each channel")


def _check_blocks(blocks: object) -> None:
    sizes = isinstance(blocks, tuple) and all(type(count) is int and count > 0 for count in blocks)
    if not sizes or not blocks or sum(blocks) > MAX_LAYERS // 2:
        raise InvalidInput(
            f"model option blocks = {blocks!r}: expected how many each stage has, as (2, 2, 2, 2),"
            f" at most {MAX_LAYERS // 2} in all"
        )
