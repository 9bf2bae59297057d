"""The architecture of a PyTorch network, from the keys and shapes of its state_dict."""

import flax.linen as nn

from infofeat_jax.models.pytorch.names import StateDict, listing
from infofeat_jax.models.resnet import PreActResNet, ResNet
from infofeat_jax.models.wide_resnet import WideResNet
from infofeat_jax.types import InvalidInput


def choose(state: StateDict, arch: str | None) -> nn.Module:
    """The module that `state` describes, without regard to normalisation.

    Args:
      state: arrays by key, without prefixes.
      arch: the name that it must have; None takes the first that fits.

    Raises:
      InvalidInput: no architecture fits, or none of the name `arch`.
    """
    modules = _wide_resnet(state) if "block1.layer.0.conv1.weight" in state else _resnet(state)
    if arch is None:
        return next(iter(modules.values()))
    if arch not in modules:
        raise InvalidInput(f"not {arch!r}: by its keys and shapes it is {' or '.join(modules)}")
    return modules[arch]


def _wide_resnet(state: StateDict) -> dict[str, nn.Module]:
    stem = _size(state, "conv1.weight", 4)
    stage = _size(state, "block1.layer.0.conv1.weight", 4)
    if stage % stem:
        raise InvalidInput(f"a WideResNet whose first stage, {stage} channels, is no multiple of its stem, {stem}")
    depth, widen_factor = 6 * _count(state, "block1.layer.") + 4, stage // stem
    classes = _size(state, "fc.weight", 2)
    return {f"wrn_{depth}_{widen_factor}": WideResNet(classes, depth, widen_factor, width=stem)}


def _resnet(state: StateDict) -> dict[str, nn.Module]:
    if "layer1.0.conv1.weight" not in state:
        families = "a ResNet (layer1.0.conv1.weight) nor a WideResNet (block1.layer.0.conv1.weight)"
        raise InvalidInput(f"neither {families}: {listing('keys', state)}")
    blocks = tuple(_count(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    sizes = (_size(state, "linear.weight", 2), _size(state, "conv1.weight", 4), blocks)
    name = f"resnet{2 * sum(blocks) + 2}"
    if any(key.startswith("bn1.") or ".shortcut.1." in key for key in state):
        return {name: ResNet(*sizes)}
    final_norm = any(key.startswith("bn.") for key in state)
    return {
        f"preact_{name}": PreActResNet(*sizes, final_norm, activated_shortcut=final_norm),
        f"preact_{name}_activated_shortcut": PreActResNet(*sizes, final_norm, activated_shortcut=True),
        f"preact_{name}_raw_shortcut": PreActResNet(*sizes, final_norm, activated_shortcut=False),
    }


def _count(state: StateDict, stage: str) -> int:
    """How many blocks `stage` has; at least one, so that an absent stage is reported by its missing keys."""
    return max(1, len({key.removeprefix(stage).split(".")[0] for key in state if key.startswith(stage)}))


def _size(state: StateDict, key: str, rank: int) -> int:
    """The number of outputs of the layer `key`."""
    if key not in state:
        raise InvalidInput(f"1 missing: {key}, which tells the architecture's size")
    if state[key].ndim != rank:
        raise InvalidInput(f"1 misshapen: {key} {state[key].shape}, expected {rank} dimensions")
    return state[key].shape[0]
