"""Checkpoint files of PyTorch models: read without executing anything that they hold, and written.

.safetensors, .npz and .npy (DeepMind's Haiku parameters) need no PyTorch; every other name is opened by
torch.load(weights_only=True).
"""

import importlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from infofeat_jax import installation
from infofeat_jax.models.pytorch import deepmind, pickled
from infofeat_jax.models.pytorch.names import StateDict
from infofeat_jax.types import InvalidInput, one_line, summary


def read_checkpoint(path: str | Path) -> Any:
    """The contents of the file, nested as they are there. Raises InvalidInput; never runs code from the file."""
    path = Path(path)
    if not path.is_file():
        raise InvalidInput("no such file")
    try:
        return _READERS.get(path.suffix, _read_torch)(path)
    except InvalidInput:
        raise
    except Exception as error:  # damaged files make the readers raise nearly anything
        raise InvalidInput(f"truncated, or not a checkpoint ({summary(error)})") from error


def write_checkpoint(path: str | Path, state: StateDict) -> None:
    """Writes `state` as .pt or .pth (needs PyTorch), .safetensors or .npz. Raises InvalidInput."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise InvalidInput(f"{path}: unknown kind of file: choose one of {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path}: no such folder: {path.parent}")
    _WRITERS[path.suffix](path, state)


def as_arrays(values: Mapping[str, Any]) -> StateDict:
    """The numeric arrays and tensors among `values`, as NumPy arrays; numbers, strings ... are left out.

    Raises InvalidInput for a tensor that is not dense or has no values here (PyTorch's device "meta").
    """
    arrays = {str(name): _as_array(str(name), value) for name, value in values.items() if is_array(value)}
    return {name: array for name, array in arrays.items() if array.dtype.kind not in "OSUMm"}


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy or JAX, or a PyTorch tensor."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.generic)


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value  # NumPy has no bfloat16
        return np.asarray(value)
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:  # each kind of tensor has its own
        raise InvalidInput(f"{name} cannot be read as an array: {one_line(error)}") from error


def _import(package: str):
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InvalidInput(
            f"this kind of file needs {package.split('.')[0]}: {installation.command('torch')}, or have the"
            " state_dict saved as .safetensors or .npz where there is PyTorch"
        ) from error


def _read_torch(path: Path) -> Any:
    torch = _import("torch")
    try:
        with warnings.catch_warnings(action="ignore"):  # about files that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "a pickle that PyTorch does not write"
        raise InvalidInput(
            f"refused: it holds more than tensors ({what}); nothing was executed. Whoever trusts its"
            " author can load it and save the bare state_dict"
        ) from error


def _read_npz(path: Path) -> StateDict:
    if not zipfile.is_zipfile(path):
        raise InvalidInput("truncated, or not an .npz")
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _write_torch(path: Path, state: StateDict) -> None:
    torch = _import("torch")
    torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)


_READERS = {
    ".safetensors": lambda path: _import("safetensors.numpy").load_file(path),
    ".npz": _read_npz,
    ".npy": lambda path: deepmind.from_haiku(pickled.read(path)),
}
_WRITERS = {
    ".pt": _write_torch,
    ".pth": _write_torch,
    ".safetensors": lambda path, state: _import("safetensors.numpy").save_file(state, path),
    ".npz": lambda path, state: np.savez(path, **state),
}
