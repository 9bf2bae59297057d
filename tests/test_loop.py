"""The loop in this process, on a tiny network: stopped anywhere it goes on to the same bits; bad numbers; collapse."""

import itertools
import json
import time

import jax
import numpy as np
import pytest
from test_step import create_run

from infofeat_jax import experiment as runs
from infofeat_jax.runtime import memory, signals
from infofeat_jax.training import checkpoint, health, loop
from infofeat_jax.training.step import update
from infofeat_jax.types import InvalidInput, RunFailed, Stopped

EPOCHS = 3  # of 2 steps each


@pytest.fixture
def run(tmp_path) -> runs.Run:
    """Three epochs of standard training in an empty directory."""
    return in_directory(tmp_path)


def in_directory(workdir, **changes) -> runs.Run:
    one = create_run("standard")
    config = one.config.copy_and_resolve_references()
    config.update({"num_epochs": EPOCHS, "log_every": 2, **changes})
    config.eval.validation_attack, config.eval.batch_size = "fgsm", 32
    return one._replace(config=config, workdir=workdir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The final state of a run that nothing interrupted, and its records."""
    workdir = tmp_path_factory.mktemp("whole")
    state = jax.device_get(loop.train(in_directory(workdir)))
    return state, records(workdir)


def records(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def same(one, other) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(jax.device_get(other)), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_the_same_run_twice_gives_the_same_bits_whatever_the_clock_says(run, whole, monkeypatch):
    """The second time it goes backwards."""
    moments = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(moments))
    assert same(whole[0], loop.train(run))
    assert checkpoint.latest_step(run.workdir) == 2 * EPOCHS


def test_stopped_after_any_step_or_in_validation_it_goes_on_to_the_same_bits(run, whole, monkeypatch):
    """Every place where the run asks whether to stop is one to stop at; each time it goes on from there."""
    stops = 0
    while True:
        asked = iter([False, False, True])  # a step or a validation further each time
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked, True))
        try:
            state = loop.train(run)
            break
        except Stopped:
            stops += 1
    assert stops >= 4
    assert same(whole[0], state)
    kept = [record for record in records(run.workdir) if "interrupted" not in record]
    assert [(r["step"], r.get("loss"), r.get("epoch")) for r in kept] == [
        (r["step"], r.get("loss"), r.get("epoch")) for r in whole[1]
    ]
    for ours, theirs in zip(kept, whole[1], strict=True):
        assert ours.get("validation_robust_accuracy") == theirs.get("validation_robust_accuracy")


def poisoned(at: int, leaf: str):
    """The update, but what it returns is no number after step `at` (counted from 1)."""

    def one_step(run, state, batch, key, *, average):
        moved, values = update(run, state, batch, key, average=average)
        factor = jax.numpy.where(moved.step == at, jax.numpy.nan, 1.0)
        if leaf == "loss":
            return moved, values | {"loss": values["loss"] * factor}
        norm = values["parameter_norm"] * factor
        return moved._replace(params=jax.tree.map(lambda p: p * factor, moved.params)), values | {
            "parameter_norm": norm
        }

    return one_step


@pytest.mark.parametrize(("at", "leaf"), [(3, "loss"), (4, "parameters")])
def test_numbers_that_go_bad_stop_the_run_before_they_are_saved(run, monkeypatch, at, leaf):
    monkeypatch.setattr(loop, "update", poisoned(at, leaf))
    digest = health.describe_batch(run, at - 1)["images"]
    expected = rf"nan.* at step {at}, epoch 2, images {digest}; the last checkpoint before is of step 2.*skip_batches=1"
    with pytest.raises(RunFailed, match=expected):
        loop.train(run)
    assert checkpoint.latest_step(run.workdir) == 2
    assert all(np.isfinite(record.get("loss", 0.0)) for record in records(run.workdir))


def test_stopping_while_numbers_are_bad_saves_nothing(run, monkeypatch):
    monkeypatch.setattr(loop, "update", poisoned(3, "parameters"))
    asked = iter([False] * 5 + [True])  # 2 steps, 2 validations, 1 step
    monkeypatch.setattr(signals, "requested", lambda: next(asked, True))
    with pytest.raises(RunFailed, match="step 3"):
        loop.train(run)
    assert [path.name for path in checkpoint.finished(run.workdir)] == ["2"]


def test_a_bad_batch_can_be_left_out(tmp_path, monkeypatch, capsys):
    """As if its step had not been taken; and so again when the run is continued."""
    monkeypatch.setattr(loop, "update", poisoned(3, "parameters"))
    state = jax.device_get(loop.train(in_directory(tmp_path / "poisoned", skip_batches=1)))
    assert "going back, this batch is left out" in capsys.readouterr().out
    assert [batch["step"] for batch in health.read(tmp_path / "poisoned")] == [3]
    assert state.step == 2 * EPOCHS
    monkeypatch.undo()
    clean = in_directory(tmp_path / "clean")
    clean.workdir.mkdir()
    (clean.workdir / health.SKIPPED).write_text(json.dumps([{"step": 3}]))
    assert same(state, loop.train(clean))


def test_a_loss_beyond_the_limit_stops_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"step 1, epoch 1, .*; there is no checkpoint before"):
        loop.train(in_directory(tmp_path, max_loss=1e-3))


def test_a_step_that_does_not_fit_is_refused_with_the_estimate(run, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    with pytest.raises(
        InvalidInput, match=r"a step takes 0\.\d+ GiB a device, which has 0\.00: lower config\.batch_size"
    ):
        loop.train(run)


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
def test_collapse_of_robust_accuracy(tmp_path, method, history, now, collapsed):
    names = "validation_clean_accuracy", "validation_robust_accuracy"
    lines = [json.dumps({"step": 2, "epoch": 1} | dict(zip(names, rates, strict=True))) for rates in history]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = create_run(method)._replace(workdir=tmp_path)
    assert health.has_collapsed(run, dict(zip(("clean", "robust"), now, strict=True))) is collapsed


def test_the_template_of_a_restored_state_is_the_state(run):
    described, state = runs.describe_state(run), runs.create_state(run)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), described) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), state
    )


def test_a_run_goes_on_with_another_number_of_devices(tmp_path, whole, monkeypatch):
    """Two steps on 1 device, two on 8, two on 1: as on 1 device to float tolerance."""
    state = None
    for count, stop in ((1, 3), (8, 6), (1, 99)):
        asked = iter([False] * stop)
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked, True))
        run = in_directory(tmp_path)._replace(mesh=create_run("standard", count).mesh)
        try:
            state = loop.train(run)
        except Stopped:
            assert [path.name for path in checkpoint.finished(tmp_path)]
    for one, other in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(jax.device_get(state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
