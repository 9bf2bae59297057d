"""The processes of a multi-host run: connecting them, choosing the writer, ending them."""

import os
import pathlib
import secrets
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from infofeat_jax.types import InvalidInput, RunFailed, one_line

PATIENCE = 60  # seconds
T = TypeVar("T", bool, int)


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a multi-host run.

    `coordinator` is "host:port" of process 0; "auto" finds everything itself (TPU pods, SLURM); "" is one process.
    A process that does not respond for PATIENCE seconds ends the others. Raises InvalidInput, RunFailed.
    """
    timeouts = {"heartbeat_timeout_seconds": PATIENCE, "shutdown_timeout_seconds": PATIENCE}
    if coordinator and coordinator != "auto" and num_processes < 1:
        raise InvalidInput(
            f"num_processes {num_processes}: expected how many there are, beside --coordinator=HOST:PORT"
        )
    if coordinator and coordinator != "auto" and not 0 <= process_id < num_processes:
        raise InvalidInput(f"process_id {process_id}: expected 0 to num_processes - 1 = {num_processes - 1}")
    if not coordinator and (num_processes or process_id >= 0):
        raise InvalidInput("num_processes and process_id: expected --coordinator=HOST:PORT, of process 0, beside them")
    try:
        if coordinator == "auto":
            jax.distributed.initialize(**timeouts)
        elif coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)
    except (RuntimeError, ValueError) as error:
        raise RunFailed(f"--coordinator={coordinator}: no connection: {one_line(error)}") from error
    if not coordinator:
        check_devices()
    else:
        sys.excepthook = _leave_after


def _leave_after(kind, error, trace) -> None:
    sys.__excepthook__(kind, error, trace)
    leave(1)


def check_devices() -> None:
    """Raises InvalidInput where JAX finds none of the devices that JAX_PLATFORMS asks for."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # jax 0.10 with CUDA and without its driver: an assertion
        asked, why = os.environ.get("JAX_PLATFORMS"), one_line(error)
        advice = f" with JAX_PLATFORMS={asked}: unset it to take what is there" if asked else ""
        raise InvalidInput(f"JAX finds no device{f' ({why})' if why else ''}{advice}") from None


def leave(status: int) -> None:
    """Ends this process after an error; of several, without waiting for the others as JAX would, which may hang."""
    if jax.distributed.is_initialized():
        sys.stdout.flush(), sys.stderr.flush()
        time.sleep(1.0 if is_writer() else 0.0)  # the others, if they end too, are not to miss it before they have
        os._exit(status)
    sys.exit(status)


def is_writer() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether there is no other process of this run."""
    return jax.process_count() == 1


def barrier(name: str) -> None:
    """Waits for all processes of the run."""
    if not is_alone():
        multihost_utils.sync_global_devices(name)


def agreed(value: T) -> T:
    """The writer's value, a boolean or an integer, in all processes of the run."""
    if is_alone():
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(value))


def all_have(text: str) -> bool:
    """Whether all processes of the run have the same text. All of them must call this; they get the same answer."""
    if is_alone():
        return True
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return bool((found == found[0]).all())


@contextmanager
def held_by_writer(held: AbstractContextManager, directory: pathlib.Path, otherwise: InvalidInput) -> Iterator[None]:
    """Enters `held`, which owns `directory`, in process 0, for all processes of the run; all of them must call this.

    Raises InvalidInput: in process 0 that of `held`, in the others `otherwise`; in all if they do not share it.
    """
    with ExitStack() as stack:
        refused = None
        if is_writer():
            try:
                stack.enter_context(held)
            except InvalidInput as error:
                refused = error
        if agreed(refused is not None):
            raise refused or otherwise
        check_shared(directory)
        yield


def check_shared(directory: pathlib.Path) -> None:
    """Raises InvalidInput, in all processes of the run, unless all of them see this directory, made by the writer.

    On a network file system it may take seconds until a file of one process is visible to the others.
    """
    if is_alone():
        return
    mark, deadline = directory / f"shared-{agreed(secrets.randbits(31))}", time.monotonic() + PATIENCE / 3
    if is_writer():
        mark.touch()
    barrier("a mark is written")
    while not (seen := os.path.exists(mark)) and time.monotonic() < deadline:
        with suppress(OSError):
            os.listdir(directory.parent), os.listdir(directory)  # NFS asks the server anew
        time.sleep(0.1)
    shared = all_have(str(seen))
    if is_writer():
        mark.unlink()
    if not shared:
        raise not_shared(directory)


def not_shared(directory: pathlib.Path) -> InvalidInput:
    """The error for a directory that some processes of the run do not see."""
    return InvalidInput(
        f"{directory} is not the same directory for all {jax.process_count()} processes: give one that they share"
    )
