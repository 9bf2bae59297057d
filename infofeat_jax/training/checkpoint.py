"""Orbax checkpoints: written and sealed in the background; damaged ones are set aside.

Each run has two directories. checkpoints/ holds the state at the end of an epoch, with its validation score; the newest
few and the best are kept. interrupted/ holds the state at which the run was last interrupted, within an epoch.
"""

import logging
import pathlib
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from infofeat_jax.runtime import processes
from infofeat_jax.training.seals import EPOCHS, INTERRUPTED, SCORE, SEAL, damage, finished, seal, set_aside
from infofeat_jax.types import InvalidInput, RunFailed, check_choice

OVERHEAD = 2**20  # bytes: ample for the metadata that orbax and file systems add
# Orbax warns, in a user's notebook too, that a directory is opened for reading only, as was asked.
logging.getLogger("absl").addFilter(lambda record: "Given directory is read only" not in record.getMessage())


class Snapshot(NamedTuple):
    """A state to be saved, which no later step may take over (donate)."""

    step: int
    state: PyTree
    score: float | None = None  # by which the best is chosen; None: an interrupted run's state, within an epoch


class Checkpoints(NamedTuple):
    """The checkpoint managers of a run, open for writing, and the thread that writes."""

    epochs: ocp.CheckpointManager
    interrupted: ocp.CheckpointManager
    worker: ThreadPoolExecutor  # one thread: checkpoints are written one after the other
    writing: list[Future]  # what it was last asked to write, unless `finish` has seen it done

    def best_score(self) -> float | None:
        """The score of the best checkpoint; None if there is none."""
        best = self.epochs.best_step()
        return None if best is None else self.epochs.metrics(best)[SCORE]


def has_begun(workdir: pathlib.Path) -> bool:
    """Whether a training has a state to continue from: one that failed before, for lack of memory say, binds nobody."""
    return any(path.name.isdigit() for name in (EPOCHS, INTERRUPTED) for path in (workdir / name).glob("*"))


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
    epochs = _manager(
        workdir / EPOCHS, preservation_policy=policy, best_fn=lambda m: m[SCORE], cleanup_tmp_directories=True
    )
    interrupted = _manager(
        workdir / INTERRUPTED, preservation_policy=checkpoint_managers.LatestN(1), cleanup_tmp_directories=True
    )
    worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
    try:
        checkpoints = Checkpoints(epochs, interrupted, worker, [])
        yield checkpoints
        finish(checkpoints)
        _complete(epochs), _complete(interrupted)  # seals what a process that was killed has left without
    finally:
        worker.shutdown()
        for manager in (epochs, interrupted):
            with suppress(Exception):  # orbax raises an error of its threads once more in each thread that asks
                manager.close()


class _Manager(ocp.CheckpointManager):
    """Leaves polling JAX for preemption to runtime/signals.py: all polls of a run are numbered in one sequence."""

    def reached_preemption(self, step: int) -> bool:
        """Always False: orbax would poll with the step's number, a lower one, and could miss the agreed number."""
        return False


def _manager(directory: pathlib.Path, **options) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(**options)
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=options.multiprocessing_options)
    return _Manager(directory.absolute(), options=options, item_handlers=handler)


def save(checkpoints: Checkpoints, *snapshots: Snapshot) -> None:
    """Starts saving, one after the other; waits only for what an earlier call has started.

    Each is on disk and sealed before the next is begun, and none is begun after one that failed: unfinished saves never
    count as checkpoints. Raises RunFailed if the previous checkpoint could not be written, or, then or at the next call
    of `save`, `check` or `finish`, if there is no disk space for this one.
    """
    finish(checkpoints)
    if jax.process_count() == 1:
        checkpoints.writing.append(checkpoints.worker.submit(_write, checkpoints, snapshots))
        return
    for snapshot in snapshots:  # orbax lets the devices of several processes wait for each other: not in a thread
        finish(checkpoints)
        manager = _begin(checkpoints, snapshot)
        checkpoints.writing.append(checkpoints.worker.submit(_complete, manager))


def check(checkpoints: Checkpoints) -> None:
    """Raises RunFailed if it is known that the last save has failed; does not wait for it."""
    if all(job.done() for job in checkpoints.writing):
        finish(checkpoints)


def finish(checkpoints: Checkpoints) -> None:
    """Waits until the last save is on disk and sealed. Raises RunFailed if it could not be written."""
    while checkpoints.writing:
        checkpoints.writing.pop().result()


def _write(checkpoints: Checkpoints, snapshots: tuple[Snapshot, ...]) -> None:
    for snapshot in snapshots:
        _complete(_begin(checkpoints, snapshot))


def _begin(checkpoints: Checkpoints, snapshot: Snapshot) -> ocp.CheckpointManager:
    """Starts writing, if there is room."""
    step, state, score = snapshot
    manager = checkpoints.interrupted if score is None else checkpoints.epochs
    need = OVERHEAD + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(manager.directory).free
    if free < need:  # one line here is better than the tracebacks of orbax's threads
        raise RunFailed(
            f"no room for the checkpoint of step {step} in {manager.directory}: {need / 2**20:.1f} MiB needed,"
            f" {free / 2**20:.1f} free: free some space, then run the same command again to resume from the last one"
        )
    manager.save(step, args=ocp.args.StandardSave(_stored(state)), metrics=None if score is None else {SCORE: score})
    return manager


def _complete(manager: ocp.CheckpointManager) -> None:
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
    managers = checkpoints.epochs, checkpoints.interrupted
    found = [(step, manager) for manager in managers for step in manager.all_steps()]
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
    """The state in the "best" or "latest" checkpoint, whatever its shapes, on one device. Raises as `restore`.

    One of several processes may call this alone.
    """
    device, me = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{me}")
    with _reader(workdir, alone) as manager:
        step = _find(manager, which)
        try:
            stored = manager.item_metadata(step).tree
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), stored)
            return manager.restore(step, args=ocp.args.StandardRestore(like))
        except Exception as error:  # orbax and TensorStore have no common one
            raise InvalidInput(f"checkpoint {manager.directory}/{step} cannot be read: {_brief(error)}") from error


def latest_step(workdir: pathlib.Path) -> int:
    """The step of the newest end-of-epoch checkpoint; 0 if there is none. Raises InvalidInput for damaged ones.

    One of several processes may call this alone.
    """
    return max((int(path.name) for path in _sound(workdir)), default=0)


def _sound(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The end-of-epoch checkpoints. Raises InvalidInput if one is damaged."""
    found = [path for path in finished(workdir) if path.parent.name == EPOCHS]
    for path in found:
        if why := damage(path):
            raise InvalidInput(f"checkpoint {path} is damaged ({why}): train with --mode=train to set it aside")
    return found


@contextmanager
def _reader(
    workdir: pathlib.Path, who: ocp.options.MultiprocessingOptions | None = None
) -> Iterator[ocp.CheckpointManager]:
    """A manager that changes nothing. All processes of a run are to open it, unless `who` says which."""
    _sound(workdir)
    options = {"multiprocessing_options": who, "save_root_metadata": False} if who else {}
    with _manager(
        workdir / EPOCHS, read_only=True, save_interval_steps=0, create=False, best_fn=lambda m: m[SCORE], **options
    ) as manager:
        yield manager


def _find(manager: ocp.CheckpointManager, which: str) -> int:
    check_choice("checkpoint", which, ("best", "latest"))
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
        found = manager.restore(step, args=ocp.args.StandardRestore(_stored(like)))
        return found if isinstance(like, dict) else like._replace(**found)
    except InvalidInput:
        raise
    except Exception as error:  # orbax and TensorStore have no common one
        raise InvalidInput(f"{where} cannot be read: {_brief(error)}") from error


def _stored(state: PyTree) -> PyTree:
    """`state`, a dict or a NamedTuple, as a dict without its fields that are (): so versions without them stored it."""
    fields = state if isinstance(state, dict) else state._asdict()
    return {name: value for name, value in fields.items() if type(value) is not tuple or value}


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:150]} ... {text[-150:]}"
