"""What the operating system means to a run: one process a directory, and signals that ask it to stop.

A stop is asked for by SIGTERM (preemption, a scheduler's time limit) or Ctrl-C. It is noted, and heeded between two
steps, where the state can be saved. A second signal ends the process as usual.
"""

import fcntl
import os
import pathlib
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

from infofeat_jax.types import InvalidInput, Stopped

_asked = {"stop": False, "looks": 0}  # signals belong to the process, and so does this


def listen() -> None:
    """Notes signals from now on. In a run of several processes JAX itself notes SIGTERM, to agree on one step."""
    several = jax.process_count() > 1

    def note(number, frame) -> None:
        _asked["stop"] = True
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.write(2, b"\nstopping at the next step; once more to stop at once\n")  # print may be what was interrupted
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, note)
    if not several:
        signal.signal(signal.SIGTERM, note)


def requested() -> bool:
    """Whether to stop here. All processes of a run must ask equally often: they get the same answers."""
    if jax.process_count() == 1:
        return _asked["stop"]
    _asked["looks"] += 1
    return multihost_utils.reached_preemption_sync_point(_asked["looks"])


def check() -> None:
    """Raises Stopped, between two batches of an evaluation, if asked to stop."""
    if requested():
        raise Stopped("stopped in the evaluation; what was measured is saved: the same command goes on from there")


@contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a run's directory until the end, however this process ends.

    Raises InvalidInput naming the process that is there. The kernel holds the lock, so none is left behind.
    """
    path = directory / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InvalidInput(f"{directory} is in use by {owner}: wait for it, or give another --workdir") from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({error}): start no second run there", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
