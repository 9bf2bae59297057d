"""Conversion of our models to PyTorch state_dicts, under the keys of the public classes."""

from pathlib import Path

import numpy as np

from infofeat_jax.models.pytorch import deepmind
from infofeat_jax.models.pytorch.architectures import choose
from infofeat_jax.models.pytorch.files import write_checkpoint
from infofeat_jax.models.pytorch.names import StateDict, Variables, match, to_state_dict
from infofeat_jax.models.pytorch.reading import normalization
from infofeat_jax.models.resnet import Normalization
from infofeat_jax.types import InvalidInput


def to_torch(
    variables: Variables,
    arch: str | None = None,
    *,
    mean: Normalization | None = None,
    std: Normalization | None = None,
    deepmind_keys: bool = False,
    sub_block1: bool = False,
    num_batches_tracked: int = 0,
) -> StateDict:
    """The state_dict, NumPy arrays by key, that the public PyTorch class loads with strict=True.

    `from_torch` reads it back bit for bit. Normalisation is part of our modules and of no public class: give
    those (images - mean) / std, with the module's `mean` and `std`. (It cannot go into the first convolution,
    which pads with zeros *after* normalisation.) Classes that normalise by buffers: `mean` and `std` below.

    Args:
      variables: params and batch_stats of a ResNet, PreActResNet or WideResNet from `models.create`.
      arch: the expected architecture (see `from_torch`); None accepts any.
      mean, std: written as the buffers `mu` and `sigma` [1, c, 1, 1] of RobustBench's classes; None: none.
      deepmind_keys: for DMWideResNet and DMPreActResNet, which compute what our modules with padding "same" do;
        `mean` and `std` are then the buffers `mean` and `std` [c, 1, 1] of RobustBench's.
      sub_block1: adds the branch, never run, of the WideResNet of TRADES, MART and AWP: a copy of block1.
      num_batches_tracked: PyTorch's count of training steps, unused at its default momentum; we keep none.

    Raises:
      InvalidInput: one line, with the keys or shapes at fault.
    """
    state = to_state_dict(variables)
    if deepmind_keys:
        rename = deepmind.wide_key if "fc.weight" in state else deepmind.preact_key
        state = {rename(key): array for key, array in state.items()}
    module = choose(state, arch)
    channels = state[match(state, module)["params", "conv1", "kernel"]].shape[1]
    state |= _buffers(mean, std, channels, deepmind_keys)
    state |= _unused_branch(state) if sub_block1 else {}
    norms = [key.removesuffix("running_var") for key in state if key.endswith(".running_var")]
    return state | {f"{norm}num_batches_tracked": np.array(num_batches_tracked, np.int64) for norm in norms}


def save_torch(path: str | Path, variables: Variables, arch: str | None = None, **options) -> None:
    """Writes `to_torch(variables, arch, **options)` as .pt or .pth (needs PyTorch), .safetensors or .npz."""
    write_checkpoint(path, to_torch(variables, arch, **options))


def _buffers(mean, std, channels: int, deepmind_keys: bool) -> StateDict:
    if mean is None and std is None:
        return {}
    keys, shape = (("mean", "std"), (channels, 1, 1)) if deepmind_keys else (("mu", "sigma"), (1, channels, 1, 1))
    values = zip(keys, normalization(mean, std, channels=channels), strict=True)
    return {key: np.full(shape, np.reshape(value, (-1, 1, 1)), np.float32) for key, value in values}


def _unused_branch(state: StateDict) -> StateDict:
    branch = {f"sub_{key}": array.copy() for key, array in state.items() if key.startswith("block1.")}
    if not branch:
        raise InvalidInput("sub_block1: only a WideResNet has it")
    return branch
