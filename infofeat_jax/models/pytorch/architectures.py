"""The architecture of a PyTorch network, from the keys and shapes of its state_dict."""

import flax.linen as nn

from infofeat_jax.models.pytorch.deepmind import PREACT_STEM, WIDE_STEM, naming
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
    modules = _fitting(state)
    if arch is None:
        return next(iter(modules.values()))
    if arch not in modules:
        raise InvalidInput(f"not {arch!r}: by its keys and shapes it is {' or '.join(modules)}")
    return modules[arch]


def _fitting(state: StateDict) -> dict[str, nn.Module]:
    """The modules that `state` may be of, by name."""
    if WIDE_STEM in state:
        return _wide_resnet(state, "dm_", activation="silu", padding="same")
    if PREACT_STEM in state:
        options = {"activated_shortcut": False, "shortcut_size": 3, "activation": "silu", "padding": "same"}
        name, sizes = _resnet_sizes(state, PreActResNet(2, **options))
        return {f"dm_preact_{name}": PreActResNet(*sizes, **options)}
    return _wide_resnet(state) if "block1.layer.0.conv1.weight" in state else _resnet(state)


def _wide_resnet(state: StateDict, prefix: str = "", **options) -> dict[str, nn.Module]:
    key = naming(WideResNet(2, **options))
    stem = _size(state, key("conv1.weight"), 4)
    stage = _size(state, key("block1.layer.0.conv1.weight"), 4)
    if stage % stem:
        raise InvalidInput(f"a WideResNet whose first stage, {stage} channels, is no multiple of its stem, {stem}")
    depth, widen_factor = 6 * _count(state, key("block1.layer.")) + 4, stage // stem
    classes = _size(state, key("fc.weight"), 2)
    return {f"{prefix}wrn_{depth}_{widen_factor}": WideResNet(classes, depth, widen_factor, width=stem, **options)}


def _resnet(state: StateDict) -> dict[str, nn.Module]:
    if "layer1.0.conv1.weight" not in state:
        families = "a ResNet (layer1.0.conv1.weight) nor a WideResNet (block1.layer.0.conv1.weight)"
        raise InvalidInput(f"neither {families}: {listing('keys', state)}")
    name, sizes = _resnet_sizes(state, ResNet(2))
    if any(key.startswith("bn1.") or ".shortcut.1." in key for key in state):
        return {name: ResNet(*sizes)}
    final_norm = any(key.startswith("bn.") for key in state)
    preact = lambda activated: PreActResNet(*sizes, final_norm=final_norm, activated_shortcut=activated)  # noqa: E731
    return {
        f"preact_{name}": preact(final_norm),
        f"preact_{name}_activated_shortcut": preact(True),
        f"preact_{name}_raw_shortcut": preact(False),
    }


def _resnet_sizes(state: StateDict, like: nn.Module) -> tuple[str, tuple[int, int, tuple[int, ...]]]:
    """("resnet18", (classes, width, blocks)) from the keys of a network of the same class as `like`."""
    key = naming(like)
    blocks = tuple(_count(state, key(f"layer{stage}.")) for stage in (1, 2, 3, 4))
    sizes = (_size(state, key("linear.weight"), 2), _size(state, key("conv1.weight"), 4), blocks)
    return f"resnet{2 * sum(blocks) + 2}", sizes


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
