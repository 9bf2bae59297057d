"""DeepMind's networks (Gowal et al., 2020; Rebuffi et al., 2021), RobustBench's DMWideResNet and DMPreActResNet.

They are our WideResNet and PreActResNet with padding "same" and, as released, SiLU. Their PyTorch classes have keys of
their own, and their Haiku parameters are .npy files: both are read and written under the PyTorch keys.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from infofeat_jax.models.resnet import PreActResNet
from infofeat_jax.types import InvalidInput

StateDict = dict[str, np.ndarray]

WIDE_STEM, PREACT_STEM = "init_conv.weight", "conv_2d.weight"  # by which their state_dicts are known
# Their classes' normalisation, by the number of classes: CIFAR-10's and CIFAR-100's. Older files do not hold it.
MEAN = {10: (0.4914, 0.4822, 0.4465), 100: (0.5071, 0.4865, 0.4409)}
STD = {10: (0.2471, 0.2435, 0.2616), 100: (0.2673, 0.2564, 0.2762)}


class _Keys(NamedTuple):
    """How a public class's keys are changed: those of its blocks, numbered from 1, and the others."""

    stage: str
    renamed: str
    inside: dict[str, str]
    outside: dict[str, str]


_BLOCK = {"bn1": "batchnorm_0", "bn2": "batchnorm_1"}
_WIDE = _Keys(
    r"block(\d)\.layer\.", "layer.{}.block.",
    _BLOCK | {"conv1": "conv_0", "conv2": "conv_1", "convShortcut": "shortcut"},
    {"conv1": "init_conv", "bn1": "batchnorm", "fc": "logits"},
)  # fmt: skip
_PREACT = _Keys(
    r"layer(\d)\.", "layer_{}.",
    _BLOCK | {"conv1": "conv_2d_1", "conv2": "conv_2d_2", "shortcut.0": "shortcut"},
    {"conv1": "conv_2d", "bn": "batchnorm", "linear": "logits"},
)  # fmt: skip


def wide_key(key: str) -> str:
    """The key in DMWideResNet of the public WideResNet's `key`, or of the first part of one."""
    return _rename(_WIDE, key)


def preact_key(key: str) -> str:
    """The key in DMPreActResNet of the public PreActResNet's `key`, or of the first part of one."""
    return _rename(_PREACT, key)


def _rename(keys: _Keys, key: str) -> str:
    stage, parts, prefix = re.match(keys.stage, key), keys.outside, ""
    if stage:
        parts, prefix, key = keys.inside, keys.renamed.format(int(stage[1]) - 1), key[stage.end() :]
    for ours, theirs in parts.items():
        key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\1{theirs}.", key, count=1)
    return prefix + key


def is_of_deepmind(module: nn.Module) -> bool:
    """Whether DeepMind's classes, not the public ones, compute what `module` does."""
    return getattr(module, "padding", "symmetric") == "same"


def naming(module: nn.Module) -> Callable[[str], str]:
    """The function from a public class's keys to those of the class that computes what `module` does."""
    if not is_of_deepmind(module):
        return lambda key: key
    return preact_key if isinstance(module, PreActResNet) else wide_key


def normalization(num_classes: int, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The (mean, std) of their code for CIFAR-10 or CIFAR-100. Raises InvalidInput for other data."""
    if channels != 3 or num_classes not in MEAN:
        found = f"a network of DeepMind's for {channels} channels and {num_classes} classes without its normalisation"
        raise InvalidInput(f"{found}: give mean and std")
    return MEAN[num_classes], STD[num_classes]


def from_haiku(variables: Any) -> StateDict:
    """The state_dict of DMWideResNet from its Haiku form, (parameters, state) as dictionaries by module.

    Running statistics are what Haiku evaluates with, the bias-corrected averages. Raises InvalidInput.
    """
    pair = isinstance(variables, list | tuple) and len(variables) == 2
    if not pair or not all(isinstance(part, Mapping) for part in variables):
        raise InvalidInput("expected Haiku's parameters and state, two dictionaries of dictionaries of arrays")
    modules = [(str(name), leaves) for part in variables for name, leaves in part.items()]
    if wrong := [name for name, leaves in modules if not isinstance(leaves, Mapping)]:
        raise InvalidInput(f"expected a dictionary of arrays for each module: not {wrong[0]!r}")
    found = {_haiku_key(name, leaf): value for name, leaves in modules for leaf, value in leaves.items()}
    state = {key: _torch_layout(key, value) for key, value in found.items() if key and isinstance(value, np.ndarray)}
    norms = [key.removesuffix("weight") for key in state if "batchnorm" in key and key.endswith(".weight")]
    without_offset = {f"{norm}bias": np.zeros_like(state[f"{norm}weight"]) for norm in norms}
    return without_offset | state


_HAIKU_LEAVES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
_HAIKU_AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}


def _haiku_key(name: str, leaf: str) -> str:
    """The PyTorch key of a Haiku variable; "" for what evaluation does not use."""
    *path, last = re.sub(r"^wide_res_net/~/", "", name).split("/~/")
    if last in _HAIKU_AVERAGES:
        kept, leaf = leaf == "average", _HAIKU_AVERAGES[last]
    else:
        kept, path, leaf = True, [*path, last], _HAIKU_LEAVES.get(leaf, leaf)
    key = ".".join([*path, leaf])
    return re.sub(r"^resnet_lay_(\d+)_block_(\d+)\.", r"layer.\1.block.\2.", key) if kept else ""


def _torch_layout(key: str, value: np.ndarray) -> np.ndarray:
    """Kernels [h, w, in, out] and matrices [in, out] transposed; normalisation's [1, 1, 1, channels] as vectors."""
    if "batchnorm" in key:
        return value.reshape(-1)
    return value.transpose({2: (1, 0), 4: (3, 2, 0, 1)}.get(value.ndim))
