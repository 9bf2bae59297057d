"""Conversion of a PyTorch checkpoint, or of DeepMind's Haiku parameters, to one of our models."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from infofeat_jax.models.layers import ACTIVATIONS
from infofeat_jax.models.pytorch import deepmind
from infofeat_jax.models.pytorch.architectures import choose
from infofeat_jax.models.pytorch.files import as_arrays, is_array, read_checkpoint
from infofeat_jax.models.pytorch.names import StateDict, listing, to_variables
from infofeat_jax.models.resnet import Normalization
from infofeat_jax.types import InvalidInput, check_choice

# How the key of a network's first convolution ends.
_STEMS = ("conv1.weight", deepmind.WIDE_STEM, deepmind.PREACT_STEM)
# Put in front by DataParallel, torch.compile, AveragedModel, attack classes, Sequential(normalise, network).
_WRAPPERS = re.compile(r"^(?:(?:module|model|basic_net|_orig_mod|net|network|backbone|ema|[01])\.)+")
# Counters, and what classes hold but never run: a branch of the WideResNet of TRADES, MART and AWP; second names of the
# first layers in Andriushchenko & Flammarion's PreActResNet.
_UNUSED = re.compile(r"(?:.*\.)?num_batches_tracked|n_averaged|(?:sub_block1|model_preact_hl1)\..*")
_MEAN = re.compile(r"(?:\w*norm\w*\.)?(?:mu|mean|new_mean)")
_STD = re.compile(r"(?:\w*norm\w*\.)?(?:sigma|std|new_std)")


def from_torch(
    path_or_state_dict: str | Path | Mapping[str, Any],
    arch: str | None = None,
    *,
    mean: Normalization | None = None,
    std: Normalization | None = None,
    activation: str | None = None,
    key: str | None = None,
) -> tuple[nn.Module, dict[str, dict]]:
    """The PyTorch network in a file or state_dict as (module, variables), a function of images in [0, 1].

    Knows the CIFAR networks of FeatureScatter, AdvInterp, TRADES, MART, AWP, robust_overfitting and
    RobustBench: ResNet-18, PreAct-ResNet-18 (and other depths made of the same blocks) and WideResNet-D-W; and
    DeepMind's (RobustBench's DMWideResNet and DMPreActResNet), also as Haiku's parameters and state in an .npy.
    Depth, width and number of classes are read from the shapes. Prefixes such as `module.`, nesting, counters
    and unused branches are ignored. Code in a file is never executed.

    Args:
      path_or_state_dict: .safetensors, .npz or .npy; .pt, .pth and the like (these need PyTorch); or arrays or
        tensors by key.
      arch: the expected architecture: resnet18, preact_resnet18, wrn_34_10 ...; None accepts any. No shape tells
        what a PreActResNet's shortcuts convolve: assumed to be relu(bn(x)) where there is a final BatchNorm
        (robust_overfitting, RobustBench's bn_before_fc with out_shortcut) and the raw x where there is none
        (RobustBench's default). preact_resnet18_activated_shortcut and preact_resnet18_raw_shortcut choose.
        DeepMind's: dm_wrn_28_10, dm_preact_resnet18 ...
      mean, std: the normalisation it was trained with, a number or one per channel, in units of [0, 1] pixels:
        0.5 and 0.5 for networks of images in [-1, 1] (FeatureScatter, AdvInterp). None: its own buffers (mu
        and sigma, mean and std, normalize.mean ...); without those none, 0 and 1, but for DeepMind's networks
        that of CIFAR-10 or CIFAR-100 in their code, by the number of classes.
      activation: "relu" or "silu"; None: SiLU for DeepMind's networks, ReLU for others. No key or shape tells.
      key: which network, where a file holds several: "net", or "ema.net" if nested.

    Raises:
      InvalidInput: one line, with the keys or shapes at fault.
    """
    in_memory = isinstance(path_or_state_dict, Mapping)
    source = "state_dict" if in_memory else path_or_state_dict
    check_choice("activation", activation or "relu", ACTIVATIONS)
    try:
        checkpoint = path_or_state_dict if in_memory else read_checkpoint(path_or_state_dict)
        module, variables = _convert(_unwrap(as_arrays(_select(checkpoint, key))), arch, mean, std)
        return module.clone(activation=activation or module.activation), variables
    except InvalidInput as error:
        raise InvalidInput(f"{source}: {error}") from error
    except RecursionError:  # a pickle's dictionary may hold itself
        raise InvalidInput(f"{source}: dictionaries within dictionaries without end") from None


def _select(checkpoint: Any, key: str | None) -> Mapping[str, Any]:
    if not isinstance(checkpoint, Mapping):
        raise InvalidInput(f"holds a {type(checkpoint).__name__}, expected a dictionary of tensors by key")
    networks = dict(_networks(checkpoint))
    if not networks:
        keys = listing("keys", checkpoint) or "empty"
        raise InvalidInput(f"no network that is known here, none of its keys ends in {' or '.join(_STEMS)}: {keys}")
    if key is None and len(networks) == 1:
        return next(iter(networks.values()))
    if key not in networks:
        raise InvalidInput(f"key {key!r} does not tell which network: {', '.join(map(repr, networks))}")
    return networks[key]


def _networks(tree: Mapping[Any, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(path, dictionary) of every dictionary in `tree`, itself included, that directly holds a network."""
    if any(str(name).endswith(_STEMS) and is_array(value) for name, value in tree.items()):
        yield path, tree
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _networks(value, f"{path}.{name}" if path else str(name))


def _unwrap(state: StateDict) -> StateDict:
    """`state` without the wrappers' prefixes. Raises InvalidInput where two keys become one."""
    bare = {key: _WRAPPERS.sub("", key) for key in state}
    counts = Counter(bare.values())
    if twice := [key for key in state if counts[bare[key]] > 1]:
        raise InvalidInput(f"the same network under several prefixes: {listing('keys', twice)}")
    return {bare[key]: array for key, array in state.items()}


def _convert(state: StateDict, arch: str | None, mean, std) -> tuple[nn.Module, dict[str, dict]]:
    ignored = (_UNUSED, _MEAN, _STD)
    network = {k: array for k, array in state.items() if not any(p.fullmatch(k) for p in ignored)}
    module = choose(network, arch)
    variables = to_variables(network, module)
    mean = _buffer(state, _MEAN) if mean is None else mean
    std = _buffer(state, _STD) if std is None else std
    key = deepmind.naming(module)
    channels = network[key("conv1.weight")].shape[1]
    if mean is None and std is None and deepmind.is_of_deepmind(module):
        mean, std = deepmind.normalization(module.num_classes, channels)
    mean, std = normalization(mean, std, channels=channels)
    return module.clone(mean=mean, std=std), variables


def _buffer(state: StateDict, pattern: re.Pattern) -> np.ndarray | None:
    found = [key for key in state if pattern.fullmatch(key)]
    if len(found) > 1:
        raise InvalidInput(f"several normalisations: {', '.join(found)}: give mean and std")
    return state[found[0]] if found else None


def normalization(mean, std, *, channels: int) -> tuple[Normalization, Normalization]:
    """(mean, std), each a number or one a channel; (0, 1) if both are None. Raises InvalidInput."""
    if mean is None and std is None:
        return 0.0, 1.0
    given = f"mean {_text(mean)}, std {_text(std)}"
    if mean is None or std is None:
        raise InvalidInput(f"{given}: one without the other: give both")
    values = [np.asarray(value, np.float32).ravel() for value in (mean, std)]
    sizes = {value.size for value in values}
    if not sizes <= {1, channels} or not all(np.isfinite(v).all() for v in values) or not (values[1] > 0).all():
        raise InvalidInput(f"{given}: expected one number or {channels}, finite, std > 0")
    mean, std = (float(v[0]) if v.size == 1 else tuple(map(float, v)) for v in values)
    return mean, std


def _text(value) -> str:
    """`value` on one line; of many numbers, how many: a checkpoint may hold an image as its mean."""
    if np.ndim(value) == 0:
        return str(value)
    return str(tuple(np.ravel(value).tolist())) if np.size(value) <= 4 else f"of {np.size(value)} numbers"
