"""Conversion between PyTorch's keys and axes and ours. Nearly mechanical: modules are named after PyTorch's keys.

`params/layer2_0/shortcut_0/kernel` [h, w, in, out] is `layer2.0.shortcut.0.weight` [out, in, h, w];
`batch_stats/bn1/mean` is `bn1.running_mean`.
"""

from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from infofeat_jax.models.pytorch.deepmind import StateDict, naming
from infofeat_jax.types import InvalidInput

Variables = Mapping[str, Mapping]
Path = tuple[str, ...]

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# By rank: vectors, the kernel of a linear layer, of a convolution.
_TO_TORCH_AXES = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_TO_FLAX_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def torch_key(path: Path) -> str:
    """The key of the variable at `path`: (collection, module, ..., leaf)."""
    *modules, leaf = path[1:]
    return ".".join([*(name.replace("_", ".") for name in modules), _LEAVES.get(leaf, leaf)])


def to_state_dict(variables: Variables) -> StateDict:
    """The variables under PyTorch's keys and in its layout: contiguous, writable copies."""
    if not {"params", "batch_stats"} <= set(variables):
        raise InvalidInput(f"variables with {', '.join(variables) or 'nothing'}: need params and batch_stats")
    leaves = flatten_dict({name: variables[name] for name in ("params", "batch_stats")})
    return {torch_key(path): _torch_layout(np.asarray(leaf)) for path, leaf in leaves.items()}


def _torch_layout(array: np.ndarray) -> np.ndarray:
    return np.array(array.transpose(_TO_TORCH_AXES.get(array.ndim)), np.float32, order="C")


def to_variables(state: Mapping[str, np.ndarray], module: nn.Module) -> dict[str, dict]:
    """The variables of `module` from `state`, as float32. InvalidInput also lists the keys with impossible values."""
    keys = match(state, module)
    if unsound := [key for key in keys.values() if not _sound(key, state[key])]:
        raise InvalidInput(listing("with impossible values (not finite, complex, negative variance)", unsound))
    arrays = {path: state[key] for path, key in keys.items()}
    leaves = {path: array.transpose(_TO_FLAX_AXES[array.ndim]) for path, array in arrays.items()}
    # Copied, because JAX may share a NumPy array's memory, and PyTorch updates its statistics in place.
    return unflatten_dict({path: jnp.asarray(np.array(leaf, np.float32)) for path, leaf in leaves.items()})


def _sound(key: str, array: np.ndarray) -> bool:
    """Whether a trained network can hold such values. Otherwise a damaged file would pass for a poor model."""
    real = array.dtype.kind != "c" and bool(np.isfinite(array).all())
    return real and not (key.endswith("running_var") and (array < 0).any())


def match(state: Mapping[str, np.ndarray], module: nn.Module) -> dict[Path, str]:
    """The key in `state` of each variable of `module`. InvalidInput lists all keys and shapes that differ."""
    rename = naming(module)
    images = jax.ShapeDtypeStruct((1, 32, 32, state[rename("conv1.weight")].shape[1]), jnp.float32)
    template = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), images))
    keys = {path: rename(torch_key(path)) for path in template}
    shapes = {keys[path]: _torch_shape(jnp.shape(leaf)) for path, leaf in template.items()}
    wrong = {key: shape for key, shape in shapes.items() if key in state and state[key].shape != shape}
    problems = [
        listing("missing", shapes.keys() - state.keys()),
        listing("unexpected", state.keys() - shapes.keys()),
        listing("misshapen", [f"{key} {state[key].shape} for {shape}" for key, shape in wrong.items()]),
    ]
    if any(problems):
        raise InvalidInput("; ".join(filter(None, problems)))
    return keys


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _TO_TORCH_AXES[len(shape)])


def listing(kind: str, names: Iterable[str], first: int = 4) -> str:
    """'6 missing: a, b, c, d ...', or '' where there are none."""
    names = sorted(map(str, names))
    return f"{len(names)} {kind}: {', '.join(names[:first])}{' ...' * (len(names) > first)}" if names else ""
