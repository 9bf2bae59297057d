"""A directory of one process: the kernel's lock, and the file that stands in where a file system has none."""

import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from infofeat_jax.runtime import lock
from infofeat_jax.types import InUse

ME = f"process {os.getpid()} on {socket.gethostname()}"


def test_the_second_is_told_who_is_there_and_the_first_leaves_nothing_that_keeps_others_out(tmp_path):
    with lock.lock(tmp_path):
        with pytest.raises(InUse, match=f"{tmp_path} is in use by {ME}: wait for it") as caught, lock.lock(tmp_path):
            pass
        assert caught.value.owner == ME
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with lock.lock(tmp_path):
        pass


def test_a_killed_process_keeps_nobody_out(tmp_path):
    code = (
        "import pathlib, sys, time; from infofeat_jax.runtime import lock\n"
        "with lock.lock(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    process.stdout.readline()
    with pytest.raises(InUse, match=f"process {process.pid} on"), lock.lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / lock.OWNER).exists()
    with lock.lock(tmp_path):
        assert (tmp_path / lock.OWNER).read_text().strip() == ME


@pytest.fixture(params=["missing", "one for each host"])
def no_locks(request, monkeypatch):
    """A file system whose locks are unknown, or do not keep other hosts out."""

    def flock(file, kind):
        if request.param == "missing":
            raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_hosts_do_not_see_each_others_locks_the_owner_keeps_them_out(tmp_path, monkeypatch, no_locks):
    """As long as it gives a sign of life; after that its run is taken up."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    path = tmp_path / lock.OWNER
    with lock.lock(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        time.sleep(1.2)
        with pytest.raises(InUse, match=f"in use by {ME}"), lock.lock(tmp_path):
            pass
        dead = path.read_text()
    path.write_text(dead)  # as a process that is killed leaves it
    with pytest.raises(InUse, match=ME), lock.lock(tmp_path):
        pass
    os.utime(path, (time.time() - 2, time.time() - 2))
    with lock.lock(tmp_path):
        assert path.read_text() == f"process {os.getpid()} on another\n"
    assert not path.exists()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("number", ["new", "reused"])
def test_of_two_hosts_that_find_an_abandoned_directory_one_takes_it(number, tmp_path, monkeypatch):
    """The other moves the file away that the first has just created, notices, and puts it back.

    File systems may give the new file the number of the one that was just removed.
    """
    path, rename, taken = tmp_path / lock.OWNER, pathlib.Path.rename, []

    def first_another(self, target):
        if not taken:
            if number == "new":
                rename(self, tmp_path / "stale")
            self.write_text("process 1 on another\n")
            taken.append(target)
        return rename(self, target)

    path.write_text("process 2 on a third\n")
    os.utime(path, (time.time() - 100, time.time() - 100))
    monkeypatch.setattr(pathlib.Path, "rename", first_another)
    with pytest.raises(InUse), lock.lock(tmp_path):
        pass
    assert path.read_text() == "process 1 on another\n"
    assert not taken[0].exists()


@pytest.mark.usefixtures("no_locks")
def test_who_waits_is_let_in_when_the_owner_leaves(tmp_path, monkeypatch):
    path = tmp_path / lock.OWNER
    path.write_text("process 1 on another\n")
    monkeypatch.setattr(time, "sleep", lambda seconds: path.unlink())
    with lock.lock(tmp_path, wait=True):
        assert path.read_text().strip() == ME


def test_of_two_hosts_that_begin_at_once_one_wins(tmp_path, monkeypatch, no_locks):
    """Also in the moment in which the other has created the file, but not yet written its name into it."""
    (tmp_path / lock.OWNER).touch()
    with pytest.raises(InUse, match="in use by another process"), lock.lock(tmp_path):
        pass
