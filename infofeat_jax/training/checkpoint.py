"""Orbax checkpoints: written in the background and sealed with checksums; damaged ones are set aside.

Each run has two directories. checkpoints/ holds the state at the end of an epoch, with its validation score; the newest
few and the best are kept. interrupted/ holds the state at which the run was last interrupted, within an epoch.
"""

import json
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from infofeat_jax.runtime import processes
from infofeat_jax.types import InvalidInput, RunFailed

SCORE = "validation_score"  # what "best" means: robust validation accuracy; clean accuracy for standard training
EPOCHS, INTERRUPTED, DAMAGED = "checkpoints", "interrupted", "damaged"
OVERHEAD = 2**20  # bytes: ample for the metadata that orbax and file systems add
SEAL = "seal.json"  # in each checkpoint: {file: [bytes, CRC-32]}


class Checkpoints(NamedTuple):
    """The checkpoint managers of a run, open for writing."""

    epochs: ocp.CheckpointManager
    interrupted: ocp.CheckpointManager


@contextmanager
def opened(workdir: pathlib.Path, keep: int = 2) -> Iterator[Checkpoints]:
    """Opens the checkpoints of `workdir` to resume from and to write; damaged ones are moved to damaged/ first.

    Raises RunFailed if the last checkpoint cannot be written.
    """
    if processes.is_writer():
        for path in finished(workdir):
            if why := damage(path):
                set_aside(path, why)
    processes.barrier("checkpoints verified")
    best = checkpoint_managers.BestN(get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False)
    policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), best])
    managers = Checkpoints(
        _manager(
            workdir / EPOCHS, preservation_policy=policy, best_fn=lambda m: m[SCORE], cleanup_tmp_directories=True
        ),
        _manager(
            workdir / INTERRUPTED, preservation_policy=checkpoint_managers.LatestN(1), cleanup_tmp_directories=True
        ),
    )
    try:
        yield managers
        for manager in managers:
            finish(manager)
    finally:
        for manager in managers:
            manager.close()


class _Manager(ocp.CheckpointManager):
    """Leaves polling JAX for preemption to runtime/signals.py: all polls of a run are numbered in one sequence."""

    def reached_preemption(self, step: int) -> bool:
        """Always False: orbax would poll with the step's number, a lower one, and could miss the agreed number."""
        return False


def _manager(directory: pathlib.Path, **options) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(**options)
    handler = ocp.StandardCheckpointHandler()
    return _Manager(directory.absolute(), options=options, item_handlers=handler)


def save(manager: ocp.CheckpointManager, step: int, state: PyTree, score: float | None = None) -> None:
    """Starts saving `state` and returns before it is on disk. Unfinished saves never count as checkpoints.

    Raises RunFailed if the previous checkpoint could not be written, or if there is no disk space for this one.
    """
    finish(manager)
    need = OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(manager.directory).free
    if free < need:  # one line here is better than the tracebacks of orbax's threads
        raise RunFailed(
            f"no room for the checkpoint of step {step} in {manager.directory}: {need / 2**20:.1f} MiB needed,"
            f" {free / 2**20:.1f} free: free some space, then run the same command again to resume from the last one"
        )
    manager.save(step, args=ocp.args.StandardSave(state), metrics=None if score is None else {SCORE: score})


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until the last save is on disk, and seals it. Raises RunFailed if it could not be written."""
    try:
        manager.wait_until_finished()
        if processes.is_writer():
            seal(pathlib.Path(manager.directory))
    except Exception as error:  # orbax and TensorStore have no common one
        raise RunFailed(
            f"a checkpoint could not be written to {manager.directory} ({_brief(error)});"
            f" the last one is of step {manager.latest_step()}: run the same command again to resume from it"
        ) from error


def restore_newest(checkpoints: Checkpoints, like: PyTree) -> PyTree | None:
    """The newest readable state, placed as in `like` (shapes, types and shardings); None if there is none.

    An unreadable one is set aside. Raises InvalidInput if its shapes differ from `like`.
    """
    found = [(step, manager) for manager in checkpoints for step in manager.all_steps()]
    for step, manager in sorted(found, key=lambda pair: pair[0], reverse=True):
        path = pathlib.Path(manager.directory) / str(step)
        if (path / SEAL).exists():
            return _restore(manager, step, like)
        try:  # the process died before it could be sealed
            return _restore(manager, step, like)
        except InvalidInput as error:
            if processes.is_writer():
                set_aside(path, str(error))
            processes.barrier(f"{path} set aside")
            manager.reload()
    return None


def restore(workdir: pathlib.Path, which: str, like: PyTree) -> PyTree:
    """The state in the "best" or "latest" checkpoint, placed as in `like`. Changes nothing in `workdir`.

    Raises InvalidInput if there is none, if it is damaged, or if its shapes differ from `like`.
    """
    with _reader(workdir) as manager:
        return _restore(manager, _find(manager, which), like)


def read(workdir: pathlib.Path, which: str) -> PyTree:
    """The state in the "best" or "latest" checkpoint, whatever its shapes, on one device. Raises as `restore`."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _reader(workdir) as manager:
        step = _find(manager, which)
        try:
            stored = manager.item_metadata(step).tree
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), stored)
            return manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:  # orbax and TensorStore have no common one
            raise InvalidInput(f"checkpoint {manager.directory}/{step} cannot be read: {_brief(error)}") from error


def latest_step(workdir: pathlib.Path) -> int:
    """The step of the newest end-of-epoch checkpoint; 0 if there is none."""
    with _reader(workdir) as manager:
        return manager.latest_step() or 0


@contextmanager
def _reader(workdir: pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    directory = workdir / EPOCHS
    for path in finished(workdir):
        if path.parent == directory and (why := damage(path)):
            raise InvalidInput(f"checkpoint {path} is damaged ({why}): train with --mode=train to set it aside")
    with _manager(
        directory, read_only=True, save_interval_steps=0, create=False, best_fn=lambda m: m[SCORE]
    ) as manager:
        yield manager


def _find(manager: ocp.CheckpointManager, which: str) -> int:
    step = manager.best_step() if which == "best" else manager.latest_step()
    if step is None:
        raise InvalidInput(f"no finished checkpoint in {manager.directory}: train first, with --mode=train")
    return step


def _restore(manager: ocp.CheckpointManager, step: int, like: PyTree) -> PyTree:
    where = f"checkpoint {manager.directory}/{step}"
    try:
        there = _shapes(manager.item_metadata(step).tree)
        now = _shapes(like)
        if wrong := [name for name in sorted(there.keys() | now.keys()) if there.get(name) != now.get(name)]:
            name = wrong[0]
            raise InvalidInput(
                f"{where} does not fit this configuration's model: {len(wrong)} arrays differ, such as"
                f" {name}: {there.get(name, 'absent')} there, {now.get(name, 'absent')} now"
            )
        return manager.restore(step, args=ocp.args.StandardRestore(like))
    except InvalidInput:
        raise
    except Exception as error:  # orbax and TensorStore have no common one
        raise InvalidInput(f"{where} cannot be read: {_brief(error)}") from error


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def finished(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The directories of all finished checkpoints; one that is being written has a name that is not a number."""
    return sorted(path for name in (EPOCHS, INTERRUPTED) for path in (workdir / name).glob("*") if path.name.isdigit())


def seal(directory: pathlib.Path) -> None:
    """Records size and checksum of every file of the checkpoints in `directory` that have no seal yet.

    The sibling directory is left alone: orbax may be deleting old checkpoints there.
    """
    for path in finished(directory.parent):
        if path.parent == directory and not (path / SEAL).exists():
            files = {str(file.relative_to(path)): _checksum(file) for file in path.rglob("*") if file.is_file()}
            partial = path.with_name(f"{path.name}-{SEAL}.partial")
            with partial.open("w") as file:
                file.write(json.dumps(files))
                file.flush()
                os.fsync(file.fileno())  # a seal that is lost in a power failure would condemn the checkpoint
            partial.rename(path / SEAL)


def damage(path: pathlib.Path) -> str:
    """What is wrong with a checkpoint according to its seal; "" if nothing is."""
    try:
        if path.parent.name == EPOCHS:
            json.loads((path / "metrics" / "metrics").read_text())[SCORE]  # orbax reads this file of every checkpoint
        expected = dict(json.loads((path / SEAL).read_text()) if (path / SEAL).exists() else {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    for name, checksum in expected.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (found := _checksum(path / name)) != checksum:
            what = "its content has changed" if found[0] == checksum[0] else f"{found[0]} bytes, not {checksum[0]}"
            return f"{name}: {what}"
    return ""


def set_aside(path: pathlib.Path, why: str) -> None:
    """Moves a damaged checkpoint out of the way, with a warning."""
    target = path.parent.parent / DAMAGED / f"{path.parent.name}-{path.name}"
    target.parent.mkdir(exist_ok=True)
    while target.exists():
        target = target.with_name(target.name + "-again")
    path.rename(target)
    print(f"warning: checkpoint {path} is damaged ({why}): moved to {target}", file=sys.stderr, flush=True)


def _checksum(path: pathlib.Path, piece: int = 2**24) -> list[int]:
    size, value = 0, 0
    with path.open("rb") as file:
        while data := file.read(piece):
            size, value = size + len(data), zlib.crc32(data, value)
    return [size, value]


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:150]} ... {text[-150:]}"
