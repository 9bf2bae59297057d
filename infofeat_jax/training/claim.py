"""The directory of a training without a configuration, for one process and one training, which fit.json describes."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax

from infofeat_jax.runtime import files, lock
from infofeat_jax.training import checkpoint
from infofeat_jax.types import InvalidInput

FILE = "fit.json"
OTHERS = ("config.json", "checkpoints", "evaluation.json")  # of the command's runs, and of evaluations


@contextmanager
def claimed(workdir: pathlib.Path, setting: Mapping[str, Any]) -> Iterator[None]:
    """Owns the directory. Raises InvalidInput if it cannot be, or if it holds the checkpoints of another training."""
    if jax.process_count() > 1:
        raise InvalidInput(f"fit is for one process, not {jax.process_count()}: several take main.py")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"directory {workdir} cannot be made ({error.strerror}): give another one") from None
    with lock.lock(workdir):
        stored = files.read_json(workdir / FILE)
        begun = checkpoint.has_begun(workdir)  # a training that failed before its first checkpoint binds nobody
        if stored is None and any((workdir / name).exists() for name in OTHERS):
            raise InvalidInput(f"{workdir} holds something else: give another directory")
        for name, value in json.loads(json.dumps(setting)).items():
            if begun and stored is not None and stored.get(name, value) != value:
                raise InvalidInput(
                    f"{workdir} holds a training with {name} {str(stored.get(name))[:80]}, not {str(value)[:80]}:"
                    " repeat its arguments to continue it, or give another directory"
                )
        files.write_atomically(workdir / FILE, json.dumps(setting, indent=2) + "\n")
        yield


def text(module: nn.Module) -> str:
    """The module with its fields, without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(module).split()))
