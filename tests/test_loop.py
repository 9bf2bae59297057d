"""The loop in this process, on a tiny network: bit-exact resumption after any stop; non-finite losses; collapse."""

import hashlib
import itertools
import json
import sys
import time

import jax
import numpy as np
import pytest
from test_step import create_experiment

from infofeat_jax import experiment as experiments
from infofeat_jax import run as runs
from infofeat_jax.runtime import memory, signals
from infofeat_jax.training import checkpoint, health, loop
from infofeat_jax.types import InvalidInput, RunFailed, Stopped

EPOCHS = 3  # of 2 steps each


@pytest.fixture
def training(tmp_path) -> loop.Training:
    """Three epochs of standard training in an empty directory."""
    return in_directory(tmp_path)


def in_directory(workdir, count: int = 1, **changes) -> loop.Training:
    one = create_experiment("standard", count)
    config = one.config.copy_and_resolve_references()
    config.update({"num_epochs": EPOCHS, "log_every": 2, **changes})
    config.eval.validation_attack, config.eval.batch_size = "fgsm", 32
    workdir.mkdir(exist_ok=True)
    return runs.create_training(one._replace(config=config, workdir=workdir))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of an uninterrupted run, and its records."""
    workdir = tmp_path_factory.mktemp("whole")
    state = jax.device_get(loop.train(in_directory(workdir)))
    return state, records(workdir)


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(jax.device_get(other)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_the_same_run_twice_gives_the_same_bits_whatever_the_clock_says(training, whole, monkeypatch):
    """In the second run the clock runs backwards."""
    moments = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(moments))
    assert same(whole[0], loop.train(training))
    assert checkpoint.latest_step(training.workdir) == 2 * EPOCHS


def test_stopped_after_any_step_or_in_validation_it_goes_on_to_the_same_bits(training, whole, monkeypatch):
    """The run is interrupted at every place where it may stop, and each time resumes from there."""
    stops = 0
    while True:
        asked = iter([False, False, True])  # a step or a validation further each time
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked, True))
        try:
            state = loop.train(training)
            break
        except Stopped:
            stops += 1
    assert stops >= 4
    assert same(whole[0], state)
    kept = [record for record in records(training.workdir) if "interrupted" not in record]
    assert [(r["step"], r.get("loss"), r.get("epoch")) for r in kept] == [
        (r["step"], r.get("loss"), r.get("epoch")) for r in whole[1]
    ]
    for ours, theirs in zip(kept, whole[1], strict=True):
        assert ours.get("validation_robust_accuracy") == theirs.get("validation_robust_accuracy")


def test_the_learning_rate_that_is_logged_is_that_of_the_logged_step(whole):
    """Decays after each of the first two epochs, of 2 steps each; every second step is logged."""
    rates = [record["learning_rate"] for record in whole[1] if "learning_rate" in record]
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.001], rtol=1e-5)


def test_records_of_steps_that_are_taken_again_are_replaced(training, whole, monkeypatch):
    """What was logged after the last checkpoint, by a process that died before the next."""
    asked = iter([False] * 4)  # two steps and their validation
    monkeypatch.setattr(signals, "requested", lambda: next(asked, True))
    with pytest.raises(Stopped):
        loop.train(training)
    with (training.workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "loss": -1.0}) + "\n")
    monkeypatch.setattr(signals, "requested", lambda: False)
    loop.train(training)
    assert [(r["step"], r.get("loss")) for r in records(training.workdir)] == [
        (r["step"], r.get("loss")) for r in whole[1]
    ]


def poisoned(training: loop.Training, at: int, leaf: str) -> loop.Training:
    """The same, but the step returns non-finite values after step `at` (counted from 1)."""

    @jax.jit
    def poison(moved, values):
        factor = jax.numpy.where(moved.step == at, jax.numpy.nan, 1.0)
        if leaf == "loss":
            return moved, values | {"loss": values["loss"] * factor}
        params = jax.tree.map(lambda p: p * factor, moved.params)
        return moved._replace(params=params), values | {"parameter_norm": values["parameter_norm"] * factor}

    return training._replace(step=lambda *arguments: poison(*training.step(*arguments)))


@pytest.mark.parametrize(("at", "leaf"), [(3, "loss"), (4, "parameters")])
def test_a_step_that_is_not_finite_stops_the_run_before_it_is_saved(training, at, leaf):
    rows = loop.batch_rows(training, at - 1)
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12]
    training = poisoned(training, at, leaf)
    noted = f"step {at}, epoch 2, images {digest}"
    expected = rf"nan.* at {noted}; the last earlier checkpoint is of step 2.*skip_batches=1"
    with pytest.raises(RunFailed, match=expected):
        loop.train(training)
    assert checkpoint.latest_step(training.workdir) == 2
    assert all(np.isfinite(record.get("loss", 0.0)) for record in records(training.workdir))


def test_stopping_while_parameters_are_not_finite_saves_nothing(training, monkeypatch):
    training = poisoned(training, 3, "parameters")
    asked = iter([False] * 5 + [True])  # 2 steps, 2 validations, 1 step
    monkeypatch.setattr(signals, "requested", lambda: next(asked, True))
    with pytest.raises(RunFailed, match="step 3"):
        loop.train(training)
    assert [path.name for path in checkpoint.finished(training.workdir)] == ["2"]


def test_a_bad_batch_can_be_left_out(tmp_path, capsys):
    """A skipped batch leaves the state as if its step had not been taken, and so again when the run is continued."""
    state = jax.device_get(loop.train(poisoned(in_directory(tmp_path / "poisoned", skip_batches=1), 3, "parameters")))
    assert "resuming from there, this batch is skipped" in capsys.readouterr().out
    assert [batch["step"] for batch in health.read(tmp_path / "poisoned")] == [3]
    assert state.step == 2 * EPOCHS
    clean = in_directory(tmp_path / "clean")
    (clean.workdir / health.SKIPPED).write_text(json.dumps([{"step": 3}]))
    assert same(state, loop.train(clean))


def test_a_loss_beyond_the_limit_stops_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"step 1, epoch 1, .*; there is no earlier checkpoint"):
        loop.train(in_directory(tmp_path, max_loss=1e-3))


def test_a_step_that_does_not_fit_is_refused_with_the_estimate(training, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    with pytest.raises(
        InvalidInput, match=r"a step takes 0\.\d+ GiB a device, which has 0\.00: lower config\.batch_size"
    ):
        loop.train(training)


@pytest.mark.parametrize(
    ("method", "history", "now", "collapsed"),
    [
        ("madry", [(0.7, 0.50)], (0.8, 0.05), True),
        ("madry", [(0.7, 0.50)], (0.7, 0.30), False),
        ("madry", [(0.7, 0.30)], (0.7, 0.01), False),  # never above twice chance, 0.4 of 5 classes
        ("madry", [(0.7, 0.50)], (0.2, 0.05), False),  # the whole model has collapsed
        ("madry", [], (0.7, 0.05), False),
        ("standard", [(0.7, 0.50)], (0.8, 0.05), False),  # was not trained to be robust
    ],
)
def test_collapse_of_robust_accuracy(tmp_path, monkeypatch, method, history, now, collapsed):
    names = "validation_clean_accuracy", "validation_robust_accuracy"
    lines = [json.dumps({"step": 2, "epoch": 1} | dict(zip(names, rates, strict=True))) for rates in history]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    saved = []
    monkeypatch.setattr(loop.checkpoint, "save", lambda *arguments: saved.append(arguments))
    validations = {name: lambda state, rate=rate: rate for name, rate in zip(("clean", "robust"), now, strict=True)}
    experiment = create_experiment(method)._replace(workdir=tmp_path)
    training = runs.create_training(experiment)._replace(validations=validations)
    written, none = [], checkpoint.Checkpoints(None, None)
    reporting = loop.Reporting(none, lambda step, values: written.append(values), lambda *texts: None, frozenset())
    loop.finish_epoch(training, reporting, experiments.create_state(experiment), 4, 0.0)
    assert written[0].get("catastrophic_overfitting", False) is collapsed
    assert saved[0][-1] == now[0 if method == "standard" else 1]  # what early stopping judges by


def test_the_template_of_a_restored_state_is_the_state():
    experiment = create_experiment("standard")
    described, state = experiments.describe_state(experiment), experiments.create_state(experiment)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), described) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), state
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, whole, monkeypatch):
    """Two steps on 1 device, two on 8, two on 1: as on 1 device to float tolerance."""
    state = None
    for count, stop in ((1, 3), (8, 6), (1, 99)):
        asked = iter([False] * stop)
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked, True))
        training = in_directory(tmp_path, count)
        try:
            state = loop.train(training)
        except Stopped:
            assert [path.name for path in checkpoint.finished(tmp_path)]
    for one, other in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(jax.device_get(state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_training_needs_no_clu_only_its_table_of_parameters_does(training, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "clu", None)
    state = training.initial()
    loop.describe(training, state, 0)
    assert not (training.workdir / "parameters.txt").exists()
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert f"({count:,} parameters): training for 6 steps" in capsys.readouterr().out


def test_a_stop_at_a_moment_is_requested_from_then_on():
    signals.stop_at(time.monotonic() + 3600)
    assert not signals.requested()
    signals.stop_at(time.monotonic())
    assert signals.requested()
    signals.stop_at()
    assert not signals.requested()
