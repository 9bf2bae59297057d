"""Runs of main.py in separate processes, and the files that they write; fixtures for the tests that import them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
TRAINED = (
    "--config=configs/digits.py", "--config.model.width=4", "--config.model.name=wrn_10_1", "--config.num_epochs=6",
    "--config.data.train_size=256", "--config.data.test_size=100", "--config.attack.num_steps=2",
    "--config.optimizer.milestones=(2.0,)",
    "--config.eval.validation_attack=pgd2", "--config.log_every=1", "--config.eval.probe_examples=0",
    "--config.checkpoint.every_minutes=0",
)  # fmt: skip
QUICK = (*TRAINED, "--config.eval.attacks=('clean','fgsm','pgd7')")
CLEAN = (*TRAINED, "--config.eval.attacks=('clean',)", "--config.eval.cam_images=0")  # where training is what matters


def environment(cache: pathlib.Path, devices: int = 1) -> dict:
    """Compiled programs are shared between the runs of this file."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }


# Imports once what main.py imports; then a forked process for each line of stdin runs it.
SERVER = """
import json, os, runpy, signal, sys
import jax
from infofeat_jax import cli, command
from infofeat_jax.export import convert
for line in sys.stdin:
    asked = json.loads(line)
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)
for number, path in enumerate(asked["files"]):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
jax.config.update("jax_num_cpu_devices", asked["devices"])
sys.argv = [asked["program"], *asked["flags"]]
os.chdir(asked["folder"])
if asked["program"].endswith(".py"):
    runpy.run_path(asked["program"], run_name="__main__")
else:
    sys.modules.pop(asked["program"], None)
    runpy.run_module(asked["program"], run_name="__main__")
"""


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """Runs main.py, or another `program`, with the given flags in a process of its own; returns it when finished."""
    cache = tmp_path_factory.mktemp("compiled")
    outputs = [tmp_path_factory.mktemp("outputs") / name for name in ("stdout", "stderr")]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, env=environment(cache), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def run(*flags, check=True, devices=1, program="main.py", folder=ROOT):
        for path in outputs:
            path.write_text("")
        asked = {"flags": flags, "devices": devices, "files": [os.devnull, *map(str, outputs)]}
        asked |= {"program": program, "folder": str(folder)}
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        process = subprocess.CompletedProcess(flags, code, *(path.read_text() for path in outputs))
        assert not check or process.returncode == 0, process.stderr[-3000:]
        return process

    run.cache = cache
    yield run
    server.communicate()  # the end of its stdin is the end of it


@pytest.fixture(scope="module")
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


def start(main, *flags: str, devices: int = 1, **variables: str) -> subprocess.Popen:
    """main.py in the background, with these environment variables."""
    return subprocess.Popen(
        [sys.executable, "main.py", *flags], cwd=ROOT, env=environment(main.cache, devices) | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def start_several(main, count: int, *flags: str) -> list[subprocess.Popen]:
    """The processes of one run in the background, one device each."""
    hosts = f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"
    return [start(main, *flags, *hosts, f"--process_id={index}") for index in range(count)]


def start_by_slurm(main, count: int, *flags: str) -> list[subprocess.Popen]:
    """The same with what SLURM tells the tasks of a job step."""
    job = {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count),
        "JAX_COORDINATOR_PORT": str(free_port()),
    }  # fmt: skip
    tasks = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]
    return [start(main, *flags, "--coordinator=auto", **job, **task) for task in tasks]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def wait_for(process: subprocess.Popen, happened: Callable[[], bool], seconds: float = 150) -> None:
    """Waits for a condition while the process is alive."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
