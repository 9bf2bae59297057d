"""The directory of an evaluation: what it is of, and its results as a run's, so that a report can be made of them."""

import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from infofeat_jax.adapters.calling import difference
from infofeat_jax.runtime import devices, files, lock, processes
from infofeat_jax.types import LEVELS, InvalidInput

FILE = "evaluation.json"
SAME = 1e-3  # relative difference of logits between two computations of one model, on whatever device


class Setting(NamedTuple):
    """All that outcomes depend on but the attack, and how it came about."""

    model: str
    weights: str  # digest; of a function that closes over its weights, of nothing
    images: str  # digest, with the labels
    norm: str
    epsilon: float
    batch_size: int
    seed: int
    notes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The setting as one string, without the notes, which may say more than it."""
        return json.dumps({name: value for name, value in self._asdict().items() if name != "notes"})


@contextmanager
def opened(directory: str | pathlib.Path | None, setting: Setting, logits: np.ndarray) -> Iterator[pathlib.Path]:
    """The directory, for this process, or the processes of this evaluation, alone; a temporary one for None.

    Raises InvalidInput if it cannot be written, or holds an evaluation in another setting or of another model, which
    is told by the `logits` of the first few images.
    """
    if directory is None:
        with tempfile.TemporaryDirectory() as path:
            yield pathlib.Path(path)
        return
    path = pathlib.Path(directory)
    otherwise = InvalidInput(f"{path} cannot be used: process 0 says why")
    with processes.held_by_writer(claimed(path, setting, logits), path, otherwise):
        yield path


@contextmanager
def claimed(path: pathlib.Path, setting: Setting, logits: np.ndarray) -> Iterator[None]:
    """Owns the directory, made if it is not there, and says in it what it is of. Raises InvalidInput."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"directory {path} cannot be made ({error.strerror}): give another one") from None
    with lock.lock(path):
        check_same(path, setting, logits)
        about = setting._asdict() | {"logits": logits.tolist()}
        files.write_atomically(path / FILE, json.dumps(about, indent=2) + "\n")
        yield


def check_same(directory: pathlib.Path, setting: Setting, logits: np.ndarray) -> None:
    """Raises InvalidInput if the directory holds anything but an evaluation in this setting, or nothing."""
    stored = files.read_json(directory / FILE)
    if stored is None:
        if any((directory / name).exists() for name in ("config.json", "results.json", "checkpoints")):
            raise InvalidInput(f"{directory} holds a run: give another directory")
        return
    for name, value in json.loads(setting.text).items():
        if stored.get(name) != value:
            raise InvalidInput(
                f"{directory} holds an evaluation with {name} {str(stored.get(name))[:20]}, not {str(value)[:20]}:"
                " give another directory"
            )
    before = np.asarray(stored.get("logits"), np.float32)
    if before.shape != logits.shape or difference(before, logits) > SAME:
        raise InvalidInput(f"{directory} holds an evaluation of another model, by its logits: give another directory")


def write(directory: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes results.json."""
    if processes.is_writer():
        files.write_atomically(directory / "results.json", json.dumps(results, indent=2) + "\n")


def complete(results: dict[str, Any], setting: Setting, step_size: float, mesh: Mesh) -> dict[str, Any]:
    """The results with what a report needs: the fields of a run's results.json, budgets in 8-bit levels."""
    levels = {"epsilon": LEVELS * setting.epsilon, "step_size": LEVELS * step_size}
    config = {
        "seed": setting.seed, "batch_size": setting.batch_size, "num_epochs": 0, "model": {"name": "given", "width": 0},
        "data": {"name": f"images {setting.images[:8]}", "train_size": 0}, "method": {"name": "given"},
        "attack": {"norm": setting.norm, "num_steps": None, **levels},
        "eval": {"attacks": list(results["examples"]), "step_size": levels["step_size"], "validation_attack": "clean"},
    }  # fmt: skip
    return results | {
        "checkpoint": "as given", "finished": True, "given": setting._asdict(), "hardware": devices.hardware(mesh),
        "jax": jax.__version__, "config": config,
    }  # fmt: skip
