"""main.py as a user runs it: train, be killed, resume, evaluate; and a one-line error for every mistake."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from processes import CLEAN, QUICK, ROOT, environment, lines, parameters

from infofeat_jax import cli


def test_a_run_leaves_its_records(finished):
    workdir, process = finished
    results = json.loads((workdir / "results.json").read_text())
    assert {"clean", "fgsm", "pgd7", "config", "checkpoint_step", "num_examples", "seconds"} <= results.keys()
    assert results["num_examples"] == 100
    assert results["pgd7"] <= results["fgsm"] <= results["clean"] <= 1
    with np.load(workdir / "outcomes.npz") as outcomes:
        for name in ("clean", "fgsm", "pgd7"):
            assert outcomes[name].mean() == results[name]
    epochs = [line for line in lines(workdir) if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    best = max(epochs, key=lambda line: line["validation_robust_accuracy"])
    assert results["checkpoint_step"] in {
        line["step"] for line in epochs if line["validation_robust_accuracy"] == best["validation_robust_accuracy"]
    }
    rates = [line["learning_rate"] for line in lines(workdir) if "learning_rate" in line]
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.01)
    assert json.loads((workdir / "config.json").read_text())["method"]["name"] == "infofeature"
    assert "conv1" in (workdir / "parameters.txt").read_text()
    assert "PGD7" in process.stdout


def test_a_killed_run_goes_on_to_the_same_bits(main, finished, tmp_path):
    workdir = tmp_path / "killed"
    command = [sys.executable, "main.py", *CLEAN, f"--workdir={workdir}"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(main.cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "results.json").exists()
    continued = main(*CLEAN, f"--workdir={workdir}")
    assert "continuing at step" in continued.stdout
    for one, other in zip(parameters(workdir, 24), parameters(finished[0], 24), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [line["step"] for line in lines(workdir)] == [line["step"] for line in lines(finished[0])]


def test_a_finished_run_is_not_trained_again_and_can_be_evaluated_otherwise(main, finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    main(*QUICK, f"--workdir={workdir}", "--mode=evaluate", "--config.eval.attacks=('clean','noise','cw3')")
    results = json.loads((workdir / "results.json").read_text())
    assert {"clean", "noise", "cw3"} <= results.keys()
    assert (workdir / "metrics.jsonl").read_text() == before


def test_autoattack_on_a_trained_run(main, finished):
    """On the first examples only; an evaluation that finds its resume state on disk repeats no work."""
    workdir, _ = finished
    flags = (
        "--mode=evaluate", "--config.eval.attacks=('clean','autoattack')", "--config.eval.autoattack_examples=32",
        "--config.eval.probe_examples=8", "--config.eval.step_size=0.01",
    )  # fmt: skip
    printed = " ".join(main(*QUICK, f"--workdir={workdir}", *flags).stdout.split())
    results = json.loads((workdir / "results.json").read_text())
    with np.load(workdir / "outcomes.npz") as outcomes, np.load(workdir / "autoattack.npz") as state:
        assert outcomes["autoattack"].shape == (32,)
        assert not (outcomes["autoattack"] & ~outcomes["clean"][:32]).any()
        assert results["autoattack"] == results["worst_case"] == outcomes["autoattack"].mean()
        assert list(results["autoattack_stages"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert results["autoattack_stages"]["square"] == results["autoattack"]
        queries = state["queries"]
    for flag in results["flags"]:
        assert f"warning: {workdir.name}: {flag}" in printed
    written = (workdir / "autoattack.npz").stat().st_mtime_ns
    main(*QUICK, f"--workdir={workdir}", *flags)
    assert (workdir / "autoattack.npz").stat().st_mtime_ns >= written
    with np.load(workdir / "autoattack.npz") as state:
        assert state["queries"] == queries


def test_a_study_is_one_command_and_goes_on(main, tmp_path):
    flags = (
        *QUICK, "--config.num_epochs=1", "--config.eval.cam_images=0", f"--workdir={tmp_path / 'study'}",
        "--config.study.rows=('standard','weak: method.weight=0.0')", "--config.eval.attacks=('fgsm@standard-seed0',)",
    )  # fmt: skip
    first = main(*flags)
    results = {row: tmp_path / "study" / f"{row}-seed0" / "results.json" for row in ("standard", "weak")}
    rows = {row: json.loads(path.read_text()) for row, path in results.items()}
    assert [rows[row]["config"]["method"]["name"] for row in rows] == ["standard", "infofeature"]
    assert rows["standard"]["fgsm@standard-seed0"] < rows["standard"]["finished"] == 1
    jobs = [line.partition(" (")[0] for line in first.stdout.splitlines() if line.startswith("[")]
    assert jobs == [f"[{i + 1}/2] {row}-seed0: {job}" for job in ("train", "evaluate") for i, row in enumerate(results)]
    assert (tmp_path / "study" / "report" / "index.html").read_text().endswith("</html>")
    results["weak"].unlink()
    second = main(*flags)
    assert "[1/2] standard-seed0: finished" in second.stdout
    assert "measured before" in second.stderr
    again = json.loads(results["weak"].read_text())
    assert again["fgsm@standard-seed0"] == rows["weak"]["fgsm@standard-seed0"]
    broken = main(*flags, "--config.eval.attacks=('fgsm@nobody-seed0',)", check=False)
    assert broken.returncode == 2
    assert broken.stderr.startswith("error: attacks crafted on 'nobody-seed0': no run in")


def test_what_would_alter_a_run_is_refused(main, finished):
    workdir, _ = finished
    process = main(*QUICK, f"--workdir={workdir}", "--config.optimizer.momentum=0.5", check=False)
    assert process.returncode == 2
    assert "optimizer.momentum: 0.9 there, 0.5 now" in process.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no --config: give an experiment, as --config=configs/digits.py"),
        (["--config=configs/none.py"], "configs/none.py"),
        ([QUICK[0], "--config.optimiser.momentum=1"], "optimiser"),
        ([QUICK[0], "--config.method.name=magic"], "unknown method 'magic': choose one of"),
        (["--config=configs/digits.py:magic"], "unknown method 'magic'"),
        ([QUICK[0], "--config.model.name=vgg"], "unknown model 'vgg': choose one of"),
        ([QUICK[0], "--config.data.name=mnist"], "unknown data set 'mnist': choose one of"),
        ([QUICK[0], "--config.data.name=none.npz"], "none.npz"),
        ([QUICK[0], "--config.attack.epsilon=-1.0"], "config.attack.epsilon = -1.0: expected 0 or more"),
        (
            [QUICK[0], "--config.eval.attacks=('pgd',)"],
            "unknown attack 'pgd': choose one of clean",
        ),
        ([QUICK[0], "--config.data.validation_size=5000"], "validation_size=5000"),
        (
            ["--config=configs/studies/table1.py:tiny"],
            "unknown scale 'tiny': choose one of few, small, thousand, digits",
        ),
        ([QUICK[0], "--config.study.rows=('x: batch_size=many',)"], "'batch_size=many'"),
        ([QUICK[0], "--config.eval.attacks=('pgd7@none',)"], "attacks crafted on 'none': no run in"),
        ([QUICK[0], "--config.eval.distances=('fgsm',)"], "'fgsm' is not an iterated attack"),
        ([QUICK[0], "--config.batch_size=5000"], "batch_size=5000 is larger than the training set"),
        ([QUICK[0], "--mode=evaluate"], "no finished checkpoint"),
        ([QUICK[0], "--workdir=/proc/nothing"], "workdir /proc/nothing cannot be written"),
        ([QUICK[0], "--config.tensorboard=True"], "needs TensorFlow"),
    ],
)
def test_mistakes_are_answered_in_one_line(main, tmp_path, flags, message):
    if "TensorFlow" in message and any((pathlib.Path(p) / "tensorflow").exists() for p in sys.path):
        pytest.skip("TensorFlow is installed")
    workdir = [] if any("--workdir" in flag for flag in flags) else [f"--workdir={tmp_path / 'run'}"]
    process = main(*flags, *workdir, check=False)
    assert process.returncode == 2, process.stderr
    assert message in process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()  # nothing half-written is left behind


def test_batch_must_divide_over_the_devices(main, tmp_path):
    process = main(*QUICK, f"--workdir={tmp_path / 'run'}", "--config.batch_size=12", check=False, devices=8)
    assert process.returncode == 2
    assert "config.batch_size = 12: expected a multiple of the 8 devices, such as 16" in process.stderr


def test_memory_that_runs_out_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as end, cli.one_line_errors():
        jnp.zeros(2**46)
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: a device has too little memory (RESOURCE_EXHAUSTED")
    assert "lower config.eval.batch_size" in error
    assert error.count("\n") == 1
