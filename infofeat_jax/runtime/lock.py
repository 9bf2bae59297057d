"""One process a directory: a lock that the kernel holds, and a file that says whose the directory is.

The lock ends with the process, however it ends, but a network file system may have none, or one for each host. The file
OWNER then keeps other hosts out: creating it is atomic everywhere, its owner touches it every HEARTBEAT seconds, and a
process that no longer does so for PATIENCE seconds counts as dead.
"""

import fcntl
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infofeat_jax.types import InUse, InvalidInput

OWNER = "owner"
HEARTBEAT, PATIENCE = 20.0, 90.0  # seconds


@contextmanager
def lock(directory: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Keeps other processes out of a directory until the end, however this process ends.

    Raises InUse naming the process that is there, unless it is to `wait` for that one. Raises InvalidInput if no file
    can be opened there.
    """
    path = directory / "lock"
    try:
        opened = path.open("a+")
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be opened ({error}): remove it, or give another directory (--workdir)"
        ) from None
    with opened as file:
        alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise InUse(directory, file.read().strip() or "another process") from None
        except OSError as error:  # some network file systems have no locks
            alone = False
            print(f"warning: {path} cannot be locked ({error}): {directory / OWNER} alone protects it", file=sys.stderr)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        with _owned(directory, alone, wait):
            yield


@contextmanager
def _owned(directory: pathlib.Path, alone: bool, wait: bool) -> Iterator[None]:
    """Holds the file OWNER. `alone`: no other process on this host holds the lock, so that its owner has died."""
    path, host = directory / OWNER, socket.gethostname()
    while owner := _claim(path, f" on {host}" if alone else None):
        if not wait:
            raise InUse(directory, owner)
        time.sleep(1)
    path.write_text(f"process {os.getpid()} on {host}\n")
    ended = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set(), thread.join()
        path.unlink(missing_ok=True)


def _claim(path: pathlib.Path, dead: str | None) -> str:
    """Creates the file OWNER, in place of one that nobody touches any more; or says whose it is.

    `dead`: how the text of one ends whose process is known to have died. Of several that find one abandoned, one
    moves it away; what another has created meanwhile is put back.
    """
    while True:
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            return ""
        with suppress(FileNotFoundError):  # it has just ended
            seen, owner = path.stat(), path.read_text().strip() or "another process"
            if not (dead and owner.endswith(dead)) and _age(path) < PATIENCE:
                return owner
            moved = path.with_name(f"{OWNER}.{uuid.uuid4().hex}")
            path.rename(moved)
            found = moved.stat()  # a new file may have the number of the one that was just removed
            if (found.st_ino, found.st_mtime_ns) != (seen.st_ino, seen.st_mtime_ns):
                moved.rename(path)
                return "another process"
            moved.unlink()


def _touch(path: pathlib.Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with suppress(OSError):  # the directory was moved, or the disk is full
            os.utime(path)


def _age(path: pathlib.Path) -> float:
    """Seconds since the file was touched, by the clock of its file system."""
    with tempfile.NamedTemporaryFile(dir=path.parent) as now:
        return os.stat(now.name).st_mtime - path.stat().st_mtime
