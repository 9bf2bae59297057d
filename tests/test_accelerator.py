"""benchmarks/accelerator.py: its planning, and that what fails is noted and the next part begins; no clock is judged.

Workers are small scripts or parts made up here; nothing is trained.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infofeat_jax.runtime import signals
from infofeat_jax.types import InvalidInput, Stopped

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "benchmarks"))

import train_step
from accelerator_parts import page, planning, profile, supervisor, weights, worker
from accelerator_parts import state as states
from accelerator_parts.parts import Part
from accelerator_parts.state import Call, Options, State

IMAGES = {"train_images": 49_000, "test_images": 10_000, "epochs": 120, "autoattack_images": 1000}


@pytest.fixture(autouse=True)
def clock():
    """No test leaves a stop requested."""
    yield
    signals.stop_at()


def in_time(number: int = 1) -> Call:
    """A call with ample time."""
    return Call(number, *[time.monotonic() + 600] * 3)


# Planning.


def test_with_enough_time_the_plan_is_the_papers():
    plan = planning.plan(planning.rates({"madry": 20_000.0, "infofeature": 19_000.0}), 7200, **IMAGES)
    assert plan[:3] == (120, (60.0, 90.0), 1000)


@given(
    speed=st.floats(10, 1e5), seconds=st.floats(1, 1e4), compiling=st.floats(0, 300), epoch_end=st.floats(0, 2),
    survivor=st.floats(1e-4, 10),
)  # fmt: skip
def test_a_plan_fits_and_one_more_epoch_would_not(speed, seconds, compiling, epoch_end, survivor):
    """Added up here from what is done: every epoch of both methods, every image evaluated on both models."""
    found = {"compiling": compiling, "epoch_end": epoch_end, "survivor": survivor}
    plan = planning.plan(planning.rates({"madry": speed, "infofeature": speed / 2}, found), seconds, **IMAGES)
    passes = min(17 * speed, 18 * speed / 2)
    evaluating = sum(10_000 / passes + 10_000 * 41 / passes + plan.autoattack_images * survivor / 2 for _ in range(2))
    epoch = 1.1 * 49_000 / speed + 1.1 * 49_000 / (speed / 2) + 2 * epoch_end
    spare = 0.95 * seconds - compiling - evaluating - plan.epochs * epoch
    assert plan.epochs == 0 or spare >= -1e-6 * seconds
    assert plan.epochs == 120 or spare < epoch * (1 + 1e-6)
    assert 0 <= plan.autoattack_images <= 1000
    assert plan.milestones == (plan.epochs / 2, plan.epochs * 0.75)


def test_autoattack_gets_fewer_images_rather_than_more_than_its_share():
    rates = planning.rates({"madry": 1e4, "infofeature": 1e4}, {"survivor": 0.5})
    plan = planning.plan(rates, 600, **IMAGES)
    assert 0 < plan.autoattack_images < 1000
    assert plan.evaluation_seconds <= 0.35 * 600
    assert plan.epochs > 0


def test_rates_that_were_not_measured_follow_from_the_steps():
    """An infofeature step has 18 forward passes' worth of arithmetic, PGD20 41."""
    rates = planning.rates({"madry": 1000.0, "infofeature": 100.0}, {"pgd20": 7.0})
    assert (rates.clean, rates.pgd20) == (1800.0, 7.0)
    assert planning.rates({"infofeature": 100.0}).pgd20 == pytest.approx(1800 / 41)


# Parts that fail.


def run_parts(directory: pathlib.Path, number: int, *acts) -> tuple[bool, State]:
    """(nothing is left, the state as it is on disk) after one call with the parts "0", "1" ..."""
    call = in_time(number=number)
    wanted = [Part(str(index), act, call.stop, call.end, index == 0) for index, act in enumerate(acts)]
    finished = worker.run_parts(wanted, states.read(directory), call)
    return finished, states.read(directory)


def raise_(error: Exception):
    def act():
        raise error

    return act


def test_a_part_that_fails_is_noted_and_the_next_begins(tmp_path, capsys):
    finished, state = run_parts(tmp_path, 1, dict, raise_(ZeroDivisionError("by\nzero")), lambda: {"found": 2})
    assert [state.parts[name]["status"] for name in "012"] == [states.DONE, states.FAILED, states.DONE]
    assert state.parts["1"]["error"] == "ZeroDivisionError: by zero"
    assert state.result("2") == {"found": 2}
    assert state.result("1") == {}
    assert finished  # with what can be done in this call
    assert "Traceback" in capsys.readouterr().err  # for log.txt


def test_what_failed_is_tried_once_more_by_the_next_call_and_what_is_done_never(tmp_path):
    tries = Counter()

    def act(name: str, error: Exception | None = None):
        tries[name] += 1
        if error:
            raise error
        return {}

    for number in (1, 2, 3, 4):
        run_parts(tmp_path, number, lambda: act("sound"), lambda: act("broken", MemoryError()))
    assert tries == {"sound": 1, "broken": 2}


def test_what_was_stopped_goes_on_in_the_next_call(tmp_path):
    finished, state = run_parts(tmp_path, 1, dict, raise_(Stopped("saved")))
    assert (finished, state.parts["1"]["status"]) == (False, states.STOPPED)
    finished, state = run_parts(tmp_path, 2, dict, lambda: {"found": 1})
    assert (finished, state.result("1"), state.parts["1"]["error"]) == (True, {"found": 1}, None)


def test_a_mistake_in_what_all_depends_on_ends_the_command(tmp_path):
    with pytest.raises(InvalidInput, match="no such file"):
        run_parts(tmp_path, 1, raise_(InvalidInput("no such file")), dict)
    assert list(states.read(tmp_path).parts) == ["0"]


def test_nothing_begins_when_its_time_is_over_and_what_runs_is_asked_to_stop(tmp_path, monkeypatch):
    now, seen = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def act(seconds: float) -> dict:
        now[0] += seconds
        seen.append(signals.requested())
        return {}

    wanted = [Part("quick", lambda: act(9), 110.0, 200.0), Part("slow", lambda: act(9), 110.0, 200.0)]
    wanted += [Part("late", lambda: act(9), 110.0, 200.0), Part("later", lambda: act(9), 150.0, 200.0)]
    assert not worker.run_parts(wanted, states.read(tmp_path), Call(1, 200.0, 200.0, 200.0))
    assert seen == [False, True, False]
    assert list(states.read(tmp_path).parts) == ["quick", "slow", "later"]


# Workers that die.

SCRIPT = """
import json, os, pathlib, sys, time
from accelerator_parts import state as states
given = json.loads(sys.argv[1])
call, state = given["call"], states.read(pathlib.Path(given["directory"]))
for name, act in (("aborts", os.abort), ("hangs", lambda: time.sleep(600)), ("works", dict)):
    if state.is_due(name, call[0]):
        state.note(name, status=states.RUNNING, end=time.monotonic() + (0.1 if name == "hangs" else 600))
        state.note(name, status=states.DONE, result=act())
"""


def supervise(directory: pathlib.Path, script: str, call: Call) -> tuple[int, dict, str]:
    history = {"options": list(Options()), "calls": []}
    (directory / "out").mkdir(exist_ok=True)
    status = supervisor.supervise(call, history, directory, directory / "out", [sys.executable, "-c", script])
    results = json.loads((directory / "out" / "results.json").read_text())
    return status, results["parts"], (directory / "out" / "accelerator.md").read_text()


def test_a_process_that_dies_or_hangs_costs_the_part_it_was_at(tmp_path):
    status, parts, text = supervise(tmp_path, SCRIPT, in_time())
    assert status == 1
    assert {name: part["status"] for name, part in parts.items()} == {
        "aborts": states.FAILED, "hangs": states.FAILED, "works": states.DONE,
    }  # fmt: skip
    assert "status -6" in parts["aborts"]["error"]
    assert "| hangs | failed | its process took too long" in text


def test_what_an_earlier_command_left_when_it_was_killed_is_begun_again(tmp_path):
    for name in ("aborts", "hangs", "works"):  # of a call whose clock is over
        states.read(tmp_path).note(name, status=states.RUNNING, end=-1.0)
    script = SCRIPT.replace("os.abort", "dict").replace("time.sleep(600)", "{}")
    status, parts, _ = supervise(tmp_path, script, in_time())
    assert status == 0
    assert {part["status"] for part in parts.values()} == {states.DONE}


def test_the_time_of_a_call_ends_what_does_not_end_by_itself(tmp_path):
    class EndsOnceBegun(Call):
        @property
        def end(self) -> float:
            return 0.0 if states.read(tmp_path).running() else math.inf

    script = SCRIPT.replace("os.abort", "lambda: time.sleep(600)")
    status, parts, text = supervise(tmp_path, script, EndsOnceBegun(*in_time()))
    assert status == os.EX_TEMPFAIL
    assert [part["status"] for part in parts.values()] == [states.STOPPED]
    assert "| aborts | stopped | the time was over |" in text


def test_a_process_that_dies_before_its_first_part_is_not_started_again(tmp_path, capsys):
    count = tmp_path / "count"
    status, parts, _ = supervise(tmp_path, f"open({str(count)!r}, 'a').write('x'); 1 / 0", in_time())
    assert (status, parts, count.read_text()) == (1, {}, "x")
    assert "died (status 1)" in capsys.readouterr().err
    assert "ZeroDivisionError" in (tmp_path / "out" / "log.txt").read_text()


# What is carried away.


def test_weights_are_carried_in_small_files_and_read_back_as_float16_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "LIMIT", 3000)
    rng = np.random.default_rng(0)
    leaves = {name: {"kernel": rng.normal(size=(30, 30)).astype(np.float32)} for name in "abc"}
    variables = {"params": leaves, "batch_stats": {"a": {"mean": np.float32([0.1, 2.0])}}}
    names = weights.write(tmp_path, "madry", variables, {"step": 7})
    assert len(names) == 3
    assert all((tmp_path / name).stat().st_size < 3000 for name in names)
    back = weights.read(tmp_path, "madry")
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.float16(x), y), variables, back)


def test_the_page_shows_accuracies_with_intervals_and_what_is_missing():
    """Wilson's interval for 50 of 100 is 40.4 to 59.6 % (a textbook's value)."""
    found = {"clean": 0.8, "pgd20": 0.5, "examples": {"clean": 100, "pgd20": 100}, "checkpoint_step": 5}
    parts = {
        "evaluate madry": {"status": states.DONE, "result": {**found, "finished": True}},
        "step: x": {"status": states.FAILED, "error": "MemoryError: no | room"},
    }
    text = page.create({"options": {}, "calls": [{"when": "now", "seconds": 60}], "parts": parts})
    assert "| madry | 80.0 (71.1 to 86.7; 100) | 50.0 (40.4 to 59.6; 100) |  | 5 | yes |" in text
    assert "| step: x | failed | MemoryError: no \\| room |" in text


def test_the_arithmetic_of_a_forward_pass_is_resnet18s():
    """Counted here: a 3x3 kernel at `size` outputs a side meets 3 `size` - 2 inputs a side (stride 2: 3 `size` - 1)."""
    products, channels = 3 * 64 * (3 * 32 - 2) ** 2 + 512 * 10, 64
    for width, size, stride in ((64, 32, 1), (128, 16, 2), (256, 8, 2), (512, 4, 2)):
        products += channels * width * (3 * size - (3 - stride)) ** 2 + 3 * width**2 * (3 * size - 2) ** 2
        products += channels * width * size**2 if stride == 2 else 0
        channels = width
    elementwise = train_step.forward_flops("resnet18", width=0) - 2 * products
    assert 0 < elementwise < 0.02 * 2 * products


def test_a_trace_is_read_by_kinds_of_operation(tmp_path):
    product = jax.jit(lambda x: jnp.sin(x @ x).sum())
    x = jnp.ones((300, 300))
    product(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        product(x).block_until_ready()
    found = profile.summarise(profile.operations(tmp_path), 1)
    assert found["kinds"]["matrix product"] > 0
    assert sum(found["kinds"].values()) == pytest.approx(1, abs=1e-3)
    assert not any(name.startswith(profile.OTHERS) for name in found["operations"])
    with pytest.raises(ValueError, match="no operations"):
        profile.summarise(Counter(), 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"), ("loop_convert_fusion_3", "other fusions"),
        ("input_reduce_fusion", "reduction"), ("nvjet_hsh_128x256", "matrix product"),
        ("all-reduce.1", "communication"), ("%convolution.12", "convolution"), ("MemcpyD2D", "copy, transpose"),
        ("sine", "other"),
    ],
)  # fmt: skip
def test_kinds_of_operations(name, kind):
    assert profile.kind(name) == kind
