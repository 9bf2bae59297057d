"""One process a directory: a lock that the kernel holds."""

import fcntl
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from infofeat_jax.types import InvalidInput


@contextmanager
def lock(directory: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a run's directory until the end, however this process ends.

    Raises InvalidInput naming the process that is there. The kernel holds the lock, so none is left behind.
    """
    path = directory / "lock"
    try:
        opened = path.open("a+")
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be opened ({error}): remove it, or give another directory (--workdir)"
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InvalidInput(
                f"{directory} is in use by {owner}: wait for it, or give another directory (--workdir)"
            ) from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path} cannot be locked ({error}): start no second run there", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
