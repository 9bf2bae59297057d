"""Faults injected into main.py from outside: signals, a second run, a damaged file, several processes, one dying."""

import json
import re
import shutil
import signal
import socket
import subprocess

import numpy as np
import pytest
from jax.experimental import multihost_utils
from processes import (
    CLEAN,
    ROOT,
    TRAINED,
    free_port,
    lines,
    parameters,
    start_by_slurm,
    start_several,
    wait_for,
)

from infofeat_jax.runtime import processes as runtime_processes
from infofeat_jax.runtime import signals

STEPS = 24  # of TRAINED, 4 an epoch


def step(workdir) -> int:
    """The last step logged, which lags behind the steps taken."""
    path = workdir / "metrics.jsonl"
    return json.loads(("{}\n" + path.read_text()).rsplit("\n", 2)[-2]).get("step", 0) if path.exists() else 0


def assert_same_bits(workdir, other) -> None:
    for one, two in zip(parameters(workdir, STEPS), parameters(other, STEPS), strict=True):
        np.testing.assert_array_equal(one, two)


def test_one_run_a_directory_and_a_stop_that_loses_nothing(main, finished, tmp_path):
    workdir = tmp_path / "run"
    process = main.start(*CLEAN, f"--workdir={workdir}")
    wait_for(process, lambda: step(workdir) >= 6)
    process.send_signal(signal.SIGSTOP)  # it keeps the directory, however slow it is
    second = main(*CLEAN, f"--workdir={workdir}", check=False)
    assert second.returncode == 2
    assert second.stderr == (
        f"error: {workdir} is in use by process {process.pid} on {socket.gethostname()}:"
        " wait for it, or give another directory (--workdir)\n"
    )
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    stopped = int(re.search(r"stopped at step (\d+) of 24; the state is saved", errors)[1])
    assert stopped < STEPS
    assert not (workdir / "results.json").exists()
    shutil.move(workdir, tmp_path / "moved")
    continued = main(*CLEAN, f"--workdir={tmp_path / 'moved'}")
    assert f"continuing at step {stopped} of 24" in continued.stdout
    assert_same_bits(tmp_path / "moved", finished[0])


def test_ctrl_c_in_the_evaluation_keeps_what_was_measured(main, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    flags = [*TRAINED, f"--workdir={workdir}", "--config.eval.batch_size=20"]
    process = main.start(*flags, "--config.eval.attacks=('clean','noise','pgd3000')")
    measured = workdir / "outcomes.npz"  # the one of another setting is set aside
    wait_for(process, lambda: measured.exists() and "noise" in np.load(measured))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped during the evaluation; what was measured is saved" in errors
    again = main(*flags, "--config.eval.attacks=('clean','noise')")
    assert again.stderr.count("measured before") == 2


def test_a_truncated_checkpoint_costs_an_epoch_and_no_more(main, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    data = max((workdir / "checkpoints" / str(STEPS)).rglob("*"), key=lambda path: path.stat().st_size)
    data.write_bytes(data.read_bytes()[:-100])
    process = main(*CLEAN, f"--workdir={workdir}")
    assert re.search(rf"warning: checkpoint \S+/{STEPS} is damaged \(default/\S+: \d+ bytes, not \d+\)", process.stderr)
    assert f"continuing at step {STEPS - 4}" in process.stdout
    assert_same_bits(workdir, finished[0])


@pytest.fixture
def disk(tmp_path):
    """A file system of 16 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", directory], capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_when_there_is_room(main, finished, disk):
    workdir, ballast = disk / "run", disk / "ballast"
    process = main.start(*CLEAN, f"--workdir={workdir}")
    wait_for(process, lambda: step(workdir) >= 6 and (workdir / "checkpoints" / "4").exists())
    process.send_signal(signal.SIGSTOP)
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 2**19))
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    said = errors.splitlines()[-1]
    assert re.match(r"error: no room for the checkpoint of step \d+ in \S+: 1\.\d MiB needed, 0\.\d free", said)
    assert "Traceback" not in errors
    ballast.unlink()
    assert "continuing at step" in main(*CLEAN, f"--workdir={workdir}").stdout
    assert_same_bits(workdir, finished[0])


# Without the attack: at a gradient near zero it takes one rounding error for another sign, and from there another run.
# Seed 1: with 0 and 3 a ReLU of the blank pixels, which are all alike, comes to its kink within the eight steps.
SMOOTH = (
    *TRAINED, "--config.method.name=standard", "--config.num_epochs=2", "--config.eval.autoattack_examples=8",
    "--config.seed=1", "--config.eval.attacks=('clean','pgd7')",
)  # fmt: skip


@pytest.fixture(scope="module")
def smooth(main, tmp_path_factory):
    """A run of one process without an attack."""
    workdir = tmp_path_factory.mktemp("runs") / "smooth"
    main(*SMOOTH, f"--workdir={workdir}")
    return workdir


def test_several_processes_compute_what_one_does(main, smooth, tmp_path):
    flags = [*SMOOTH, f"--workdir={tmp_path / 'run'}"]
    processes = start_by_slurm(main, 4, *flags)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert "PGD7" in outputs[0][0]
    said = [line for out, _ in outputs[1:] for line in out.splitlines() if not line.startswith("[Gloo]")]
    assert not said  # one process writes
    assert [line["step"] for line in lines(tmp_path / "run")] == [line["step"] for line in lines(smooth)]
    for one, other in zip(parameters(smooth, 8), parameters(tmp_path / "run", 8), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    one, other = (json.loads((path / "results.json").read_text()) for path in (smooth, tmp_path / "run"))
    assert one["clean"] == other["clean"]
    assert abs(one["pgd7"] - other["pgd7"]) <= 0.02


def test_two_processes_split_autoattack_and_one_resumes_what_they_left(main, smooth, tmp_path):
    """Its stages work as the one that is run here. Examples take turns: 17 of 100 are left to it, 8 at once."""
    whole, stopped = (shutil.copytree(smooth, tmp_path / name) for name in ("whole", "stopped"))
    name, file = "square(epsilon=8,num_queries=400)", "square_epsilon_8_num_queries_400_.npz"
    flags = [flag for flag in SMOOTH if "eval.attacks" not in flag and "autoattack_examples" not in flag]
    flags += ["--mode=evaluate", f"--config.eval.attacks=('{name}',)", "--config.eval.autoattack_examples=0"]
    processes = start_several(main, 2, *flags, f"--workdir={whole}")
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    processes = start_several(main, 2, *flags, f"--workdir={stopped}")
    wait_for(processes[0], (stopped / file).exists)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    assert np.load(stopped / file)["stage"] <= 1
    main(*flags, f"--workdir={stopped}")
    one, other = (dict(np.load(path / file)) for path in (stopped, whole))
    assert other["stage"] == 2
    assert {0, 1} <= set(other["broken_by"])
    assert one.pop("seconds") > 0 < other.pop("seconds")
    for name, array in other.items():
        np.testing.assert_array_equal(one[name], array)


def test_a_signal_in_the_last_moment_of_a_run_does_not_hang_it(main, tmp_path):
    """The second process is told to stop, but the first has ended before JAX passes that on."""
    (tmp_path / "ends.py").write_text(
        "import os, signal, sys, time\n"
        "from infofeat_jax.runtime import processes, signals\n"
        "processes.start(sys.argv[1], 2, int(sys.argv[2]))\n"
        "signals.listen()\n"
        "processes.barrier('both are there')\n"
        "if sys.argv[2] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(2 * signals.LISTENING)\n"
        "signals.finish()\n"
    )
    host = f"localhost:{free_port()}"
    processes = [main.start(host, str(index), program="ends.py", folder=tmp_path) for index in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs


DIFFERENT = {
    "seed": "the processes have different configurations: give each of them the same command",
    "data": "the training images are not the same for all processes: give each of them the same files",
    "workdir": "run is not the same directory for all 2 processes: give one that they share",
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_processes_that_have_different_things_are_refused(main, tmp_path, what):
    """Each from a directory of its own, as on machines that share none."""
    host, started = f"--coordinator=localhost:{free_port()}", []
    for index in range(2):
        folder, rng = tmp_path / str(index), np.random.default_rng(index if what == "data" else 0)
        folder.mkdir()
        images = {f"image_{split}": rng.integers(0, 256, (600, 8, 8, 1), np.uint8) for split in ("train", "test")}
        labels = {f"label_{split}": np.arange(600) % 10 for split in ("train", "test")}
        np.savez(folder / "images.npz", **images, **labels)
        flags = ["--config=digits", *(flag for flag in CLEAN if not flag.startswith("--config="))]
        flags += ["--config.data.name=images.npz", host, "--num_processes=2", f"--process_id={index}"]
        flags += [f"--workdir={'run' if what == 'workdir' else tmp_path / 'run'}"]
        flags += [f"--config.seed={index if what == 'seed' else 0}"]
        started.append(main.start(*flags, program=str(ROOT / "main.py"), folder=folder, patience=10))
    outputs = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [2, 2], outputs
    assert all(DIFFERENT[what] in errors for _, errors in outputs), outputs


def test_one_of_several_processes_may_read_a_checkpoint(main, smooth, tmp_path):
    """Orbax's own readers wait for all: another job may finish a run while the processes look, one after the other."""
    (tmp_path / "alone.py").write_text(
        "import pathlib, sys\n"
        "from infofeat_jax.runtime import processes\n"
        "from infofeat_jax.training import checkpoint\n"
        "processes.start(sys.argv[1], 2, int(sys.argv[2]))\n"
        "if sys.argv[2] == '1':\n"
        "    workdir = pathlib.Path(sys.argv[3])\n"
        "    print(checkpoint.latest_step(workdir), int(checkpoint.read(workdir, 'latest')['step']))\n"
        "processes.barrier('the other has read')\n"
    )
    host = f"localhost:{free_port()}"
    started = [main.start(host, str(index), str(smooth), program="alone.py", folder=tmp_path) for index in range(2)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "8 8" in outputs[1][0]


def test_a_stop_that_several_processes_agreed_on_is_not_forgotten(monkeypatch):
    """JAX says so once. The step at which it does may be one that is skipped, so that training goes on."""
    monkeypatch.setattr(runtime_processes, "is_alone", lambda: False)
    monkeypatch.setattr(signals, "_asked", signals._asked | {"looks": 0})
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda look: look == 2)
    assert [signals.requested() for _ in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_of_several_processes_dies_the_others_end(main, tmp_path, victim):
    workdir = tmp_path / "run"
    flags = (*CLEAN, "--config.num_epochs=1000", f"--workdir={workdir}")
    processes = start_several(main, 2, *flags, patience=10)
    wait_for(processes[0], lambda: step(workdir) >= 6)
    processes[victim].kill()
    # At once, if the connection breaks; a silent partner is given 10 s, where JAX would give it 100.
    _, errors = processes[1 - victim].communicate(timeout=80)
    assert processes[1 - victim].returncode != 0
    assert "another" in errors  # one may have died, or task
    processes[victim].communicate()


def test_all_of_several_processes_stop_when_one_is_asked_to(main, tmp_path):
    workdir = tmp_path / "run"
    flags = (*CLEAN, "--config.num_epochs=1000", f"--workdir={workdir}")
    processes = start_several(main, 2, *flags)
    wait_for(processes[0], lambda: step(workdir) >= 6)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [75, 75], outputs
    at = int(re.search(r"stopped at step (\d+) of 4000", outputs[0][1])[1])
    assert str(at) in {path.name for path in workdir.glob("*/[0-9]*")}
