"""Runs of main.py in separate processes, and the files that they write; conftest.py has its fixtures."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TRAINED = (
    "--config=configs/digits.py", "--config.model.name=tiny_net:TinyNet", "--config.num_epochs=6",
    "--config.data.train_size=256", "--config.data.test_size=100", "--config.attack.num_steps=2",
    "--config.optimizer.milestones=(2.0,)",
    "--config.eval.validation_attack=pgd2", "--config.log_every=1", "--config.eval.probe_examples=0",
    "--config.checkpoint.every_minutes=0",
)  # fmt: skip
QUICK = (*TRAINED, "--config.eval.attacks=('clean','fgsm','pgd7')")
CLEAN = (*TRAINED, "--config.eval.attacks=('clean',)", "--config.eval.cam_images=0")  # where training is what matters


def environment(cache: pathlib.Path, devices: int = 1) -> dict:
    """Compiled programs are shared between the runs of a suite; tiny_net is found."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }


# Imports once what main.py and its runs import; then a forked process runs each program asked for. Answers with its
# process id, and with the exit status of one that is asked about, null while it runs.
SERVER = """
import contextlib, faulthandler, gc, json, os, runpy, signal, sys
import jax
from infofeat_jax import cli, command
from infofeat_jax.export import convert
from infofeat_jax.runtime import processes
with contextlib.suppress(ImportError):
    from clu import parameter_overview
gc.freeze(), gc.set_threshold(100_000)  # as in conftest.py
for line in sys.stdin:
    asked = json.loads(line)
    if "ended" in asked:
        child, status = os.waitpid(asked["ended"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if child else None), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        break
else:
    sys.exit()
signal.alarm(300)
for number, path in enumerate(asked["files"]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
os.environ.update(asked["variables"])
faulthandler.dump_traceback_later(100)  # where one hangs
jax.config.update("jax_num_cpu_devices", asked["devices"])
processes.PATIENCE = asked["patience"] or processes.PATIENCE
sys.argv = [asked["program"], *asked["flags"]]
os.chdir(asked["folder"])
if asked["program"].endswith(".py"):
    runpy.run_path(asked["program"], run_name="__main__")
else:
    sys.modules.pop(asked["program"], None)
    runpy.run_module(asked["program"], run_name="__main__")
"""


class Process:
    """A process of the server, with what the tests use of a Popen."""

    def __init__(self, ask: Callable, folder: pathlib.Path, request: dict) -> None:
        self._ask, self._outputs = ask, [folder / name for name in ("stdout", "stderr")]
        self.pid = ask(request | {"files": [os.devnull, *map(str, self._outputs)]})
        self.returncode = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, ("it has not ended", *self._said())
            time.sleep(0.005)
        return self._said()

    def _said(self) -> tuple[str, str]:
        return tuple(path.read_text() for path in self._outputs)


@pytest.fixture(scope="session")
def main(tmp_path_factory):
    """Runs main.py, or another `program`, with the given flags in a process of its own; returns it when finished.

    `main.start` returns it at once. `patience`: seconds for one of several processes to respond, in place of a minute.
    """
    cache = tmp_path_factory.mktemp("compiled")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, env=environment(cache), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def ask(asked):
        print(json.dumps(asked), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline())

    def start(*flags, devices=1, program="main.py", folder=ROOT, variables=None, patience=None):
        asked = {"flags": flags, "devices": devices, "program": program, "folder": str(folder)}
        asked |= {"variables": variables or {}, "patience": patience}
        return Process(ask, tmp_path_factory.mktemp("outputs"), asked)

    def run(*flags, check=True, **given):
        process = start(*flags, **given)
        outputs = process.communicate()
        done = subprocess.CompletedProcess(flags, process.returncode, *outputs)
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    run.cache, run.start = cache, start
    yield run
    server.communicate()  # the end of its stdin is the end of it


@pytest.fixture(scope="session")
def finished(main, tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = main(*QUICK, f"--workdir={workdir}")
    return workdir, process


def lines(workdir: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def parameters(workdir: pathlib.Path, step: int) -> list[np.ndarray]:
    """All arrays of a checkpoint, read by orbax without any of our code."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(workdir / "checkpoints", options=ocp.CheckpointManagerOptions(read_only=True)) as m:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.leaves(m.restore(step, args=ocp.args.StandardRestore(fallback_sharding=here)))


def start_several(main, count: int, *flags: str, patience: float | None = None) -> list[Process]:
    """The processes of one run in the background, one device each."""
    hosts = f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"
    return [main.start(*flags, *hosts, f"--process_id={index}", patience=patience) for index in range(count)]


def start_by_slurm(main, count: int, *flags: str) -> list[Process]:
    """The same with what SLURM tells the tasks of a job step."""
    job = {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
        "JAX_COORDINATOR_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]
    return [main.start(*flags, "--coordinator=auto", variables=job | task) for task in tasks]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait_for(process: Process, happened: Callable[[], bool], seconds: float = 150) -> None:
    """Waits for a condition while the process is alive."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
