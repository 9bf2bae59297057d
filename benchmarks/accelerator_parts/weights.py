"""Weights as float16 in files small enough to carry away: NAME.0.npz, NAME.1.npz, ...

`read(directory, name)` returns them as float32 variables for `models.create("resnet18", num_classes=10).apply`.
"""

import io
import json
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from infofeat_jax.runtime import files

LIMIT = 15 * 10**6  # bytes of arrays in a file


def write(directory: pathlib.Path, name: str, variables: Mapping[str, PyTree], about: Mapping) -> list[str]:
    """Writes the variables, rounded to float16, and `about`; returns the names of the files."""
    flat = flatten_dict(jax.device_get(dict(variables)), sep="/")
    pieces, room = [{}], LIMIT
    for path, leaf in flat.items():
        half = np.asarray(leaf, np.float16)
        if half.nbytes > room and pieces[-1]:
            pieces, room = [*pieces, {}], LIMIT
        pieces[-1][path], room = half, room - half.nbytes
    names = [f"{name}.{index}.npz" for index in range(len(pieces))]
    for file, piece in zip(names, pieces, strict=True):
        save(directory / file, {"about": json.dumps(about), **piece})
    return names


def save(path: pathlib.Path, arrays: Mapping) -> None:
    """Replaces an .npz as a whole, compressed."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    files.write_atomically(path, content.getvalue())


def read(directory: pathlib.Path, name: str) -> dict[str, PyTree]:
    """The variables, as float32."""
    flat = {}
    for path in sorted(directory.glob(f"{name}.*.npz")):
        with np.load(path, allow_pickle=False) as piece:
            flat |= {key: piece[key].astype(np.float32) for key in piece.files if key != "about"}
    return unflatten_dict(flat, sep="/")
