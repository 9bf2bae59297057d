"""Files that are replaced as a whole: a reader, or a kill, sees the old content or the new."""

import json
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from infofeat_jax.types import InvalidInput


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces `path` as a whole: readers and kills see the old content or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def write_arrays_atomically(path: pathlib.Path, arrays: Mapping) -> None:
    """The same for an .npz of arrays."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def read_json(path: pathlib.Path) -> dict | None:
    """The object in a JSON file; None without the file. Raises InvalidInput if it is damaged or holds no object."""
    if not os.path.lexists(path):  # which answers False for names that no file can have
        return None
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not JSON, or not even text
        raise InvalidInput(f"{path} is not readable as JSON ({error}): remove or repair it") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path} holds a JSON {type(value).__name__}, expected an object: remove or repair it")
    return value


def read_arrays(path: pathlib.Path, setting: str, *names: str) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz of the same "setting", or those `names`; None without such a file, or a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved if not names or name in ("setting", *names)}
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        return None
    return arrays if str(arrays.pop("setting", "")) == setting else None
