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
from infofeat_jax.training import checkpoint, health, keeper, loop
from infofeat_jax.training.pace import Pace
from infofeat_jax.training.step import checked
from infofeat_jax.types import InvalidInput, RunFailed, Stopped

EPOCHS = 3  # of 2 steps each


@pytest.fixture
def training(tmp_path) -> loop.Training:
    """Three epochs of standard training in an empty directory."""
    return in_directory(tmp_path)


def in_directory(
    workdir, count: int = 1, every_minutes: float = 0.0, validate_every: int = 1, trained: str = "standard", **changes
) -> loop.Training:
    one = create_experiment(trained, count)
    config = one.config.copy_and_resolve_references()
    config.update({"num_epochs": EPOCHS, "log_every": 2, **changes})
    config.eval.validation_attack, config.eval.batch_size = "fgsm", 32
    config.checkpoint.every_minutes, config.eval.validate_every = every_minutes, validate_every
    workdir.mkdir(exist_ok=True)
    optimizer, schedule = experiments.create_optimizer(config, one.epoch_steps)
    one = one._replace(config=config, workdir=workdir, optimizer=optimizer, schedule=schedule)
    return runs.create_training(one)


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


def train_in_pieces(training, monkeypatch, most: int = 9):
    """(state, number of stops) of a run that is interrupted wherever it may stop; after `most` stops no state."""
    for stops in range(most):
        asked = iter([False, False, True])  # a step or a validation further each time
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked, True))
        try:
            return loop.train(training), stops
        except Stopped:
            pass
    return None, most


@pytest.mark.parametrize("every_minutes", [0.0, 1e6])
def test_stopped_after_any_step_or_in_validation_it_goes_on_to_the_same_bits(
    tmp_path, whole, monkeypatch, every_minutes
):
    """The run is interrupted at every place where it may stop, and each time resumes from there."""
    training = in_directory(tmp_path, every_minutes=every_minutes)
    state, stops = train_in_pieces(training, monkeypatch, most=20)
    assert 4 <= stops < 20
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


def test_validation_every_second_epoch_and_after_the_last(tmp_path, whole):
    training = in_directory(tmp_path, validate_every=2)
    assert same(whole[0], loop.train(training))
    ended = [record for record in records(tmp_path) if "epoch" in record]
    assert [(record["step"], record["epoch"]) for record in ended] == [(4, 2), (6, 3)]
    second = next(record for record in whole[1] if record.get("epoch") == 2)
    assert ended[0]["validation_clean_accuracy"] == second["validation_clean_accuracy"]
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["4", "6"]


def test_the_next_epoch_is_begun_before_a_validation_is_read(training, monkeypatch):
    """The devices have work while the host logs and decides; and few steps are queued, so that a run stops soon."""
    events = []

    def noted(name: str, function):
        return lambda *given: (events.append(name), function(*given))[1]

    monkeypatch.setattr(loop, "finish_epoch", noted("validated", loop.finish_epoch))
    monkeypatch.setattr(loop, "load_batch", noted("step", loop.load_batch))
    monkeypatch.setattr(loop, "use_step", noted("metrics", loop.use_step))
    loop.train(training)
    # Two steps and two batches of the validation are queued before the first result is waited for.
    assert events[:7] == ["step", "step", "step", "metrics", "step", "metrics", "validated"]
    assert events[-1] == "validated"
    assert events.count("step") == events.count("metrics") == 2 * EPOCHS


def scored(training: loop.Training, scores: dict[int, float]) -> loop.Training:
    """The same, but with this validation accuracy at each step."""

    def validate(state):
        yield jax.numpy.arange(100) < 100 * scores[int(state.step)], np.ones(100, bool)

    return training._replace(validations={"clean": validate, "robust": validate})


SCORES = {2: 0.3, 4: 0.5, 6: 0.5, 8: 0.1, 10: 0.4, 12: 0.2}


def best(workdir, like) -> tuple[int, list]:
    state = checkpoint.restore(workdir, "best", like)
    return int(state.step), [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def six_epochs(tmp_path_factory):
    """A training of six epochs, the best state of such a run with a checkpoint after each, and its last one."""
    training = scored(in_directory(tmp_path_factory.mktemp("scored"), num_epochs=6), SCORES)
    state = jax.device_get(loop.train(training))
    return training, best(training.workdir, training.like), state


@pytest.mark.parametrize(("due", "writes"), [(2.0, 4), (99.0, 2)])  # due after so many ticks; checkpoints in all
def test_killed_at_any_moment_a_run_with_few_checkpoints_ends_as_one_with_many(
    tmp_path, six_epochs, monkeypatch, due, writes
):
    """It is killed when a checkpoint is begun, each in turn; of the two equally good epochs the later is the best.

    The clock ticks whenever it is looked at, at the end of an epoch and when a checkpoint is written.
    """
    ticks, begin, limit = itertools.count(), checkpoint._begin, 0

    def write(checkpoints, snapshot):
        """Stands for a kill: of a checkpoint begun there is only a directory with the name of none."""
        if next(calls) == limit:
            (checkpoints.epochs.directory / f"{snapshot.step}.orbax-checkpoint-tmp").mkdir()
            raise RunFailed("killed")
        return begin(checkpoints, snapshot)

    monkeypatch.setattr(keeper, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(checkpoint, "_begin", write)
    training, (best_step, best_arrays), last = six_epochs
    settings = training.settings._replace(every_minutes=due / 60)
    for limit in range(writes + 1):
        calls, training = itertools.count(), training._replace(workdir=tmp_path / str(limit), settings=settings)
        training.workdir.mkdir()
        if limit < writes:
            with pytest.raises(RunFailed, match="killed"):
                loop.train(training)
            check_best(training)
        assert same(last, loop.train(training))
        step, arrays = best(training.workdir, training.like)
        assert step == best_step == 6
        assert all(map(np.array_equal, arrays, best_arrays))
    assert next(calls) == writes


def check_best(training: loop.Training) -> None:
    """The best epoch up to the newest checkpoint is on disk."""
    steps = [int(path.name) for path in checkpoint.finished(training.workdir)]
    until = [step for step in SCORES if step <= max(steps, default=0)]
    assert not until or max(until, key=lambda step: (SCORES[step], step)) in steps


def poisoned(training: loop.Training, at: int, leaf: str) -> loop.Training:
    """The same, but the step returns non-finite values after step `at` (counted from 1).

    Of the parameters, either all, as after a non-finite gradient, or some that the step does not look at.
    """

    @jax.jit
    def poison(moved, values):
        factor = jax.numpy.where(moved.step == at, jax.numpy.nan, 1.0)
        if leaf == "loss":
            return moved, values | {"loss": values["loss"] * factor}
        first = 0 if leaf == "parameters" else 1
        params = jax.tree.map(lambda p: p.at[first:].multiply(factor), moved.params)
        return moved._replace(params=params), values | {"loss": checked(values["loss"], params)}

    return training._replace(step=lambda *arguments: poison(*training.step(*arguments)))


@pytest.mark.parametrize(("at", "leaf"), [(3, "loss"), (3, "parameters"), (4, "some parameters")])
def test_a_step_that_is_not_finite_stops_the_run_before_it_is_saved(training, at, leaf):
    rows = loop.batch_rows(training, at - 1).own
    digest = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12]
    training = poisoned(training, at, leaf)
    noted = f"step {at}, epoch 2, images {digest}"
    expected = rf"nan.* at {noted}; the last earlier checkpoint is of step 2.*skip_batches=1"
    with pytest.raises(RunFailed, match=expected):
        loop.train(training)
    assert checkpoint.latest_step(training.workdir) == 2
    assert all(np.isfinite(record.get("loss", 0.0)) for record in records(training.workdir))


def test_an_epochs_last_step_is_looked_at_though_it_is_not_logged(tmp_path):
    training = poisoned(in_directory(tmp_path, log_every=5), 4, "some parameters")
    with pytest.raises(RunFailed, match="at step 4"):
        loop.train(training)
    assert checkpoint.latest_step(tmp_path) == 2


@pytest.mark.parametrize("leaf", ["parameters", "some parameters"])
def test_stopping_while_parameters_are_not_finite_saves_nothing(training, leaf, monkeypatch):
    training = poisoned(training, 3, leaf)
    asked = iter([False] * 5 + [True])  # 2 steps, 2 validations, 1 step
    monkeypatch.setattr(signals, "requested", lambda: next(asked, True))
    with pytest.raises(RunFailed, match="step 3"):
        loop.train(training)
    assert [path.name for path in checkpoint.finished(training.workdir)] == ["2"]


def test_a_bad_batch_can_be_left_out(tmp_path, capsys, monkeypatch):
    """A skipped batch leaves the state as if its step had not been taken, and so again when the run is continued."""
    state = jax.device_get(loop.train(poisoned(in_directory(tmp_path / "poisoned", skip_batches=1), 3, "parameters")))
    assert "resuming from there, this batch is skipped" in capsys.readouterr().out
    assert [batch["step"] for batch in health.read(tmp_path / "poisoned")] == [3]
    assert state.step == 2 * EPOCHS
    clean = in_directory(tmp_path / "clean")
    asked = iter([False] * 4 + [True])  # 2 steps, 2 validations
    with monkeypatch.context() as patch:
        patch.setattr(signals, "requested", lambda: next(asked, True))
        with pytest.raises(Stopped):
            loop.train(clean)
    assert checkpoint.latest_step(clean.workdir) == 2
    (clean.workdir / health.SKIPPED).write_text(json.dumps([{"step": 3}]))
    assert same(state, loop.train(clean))


def test_as_many_batches_as_allowed_can_be_left_out(tmp_path):
    """Both since the last checkpoint, so that the first is met again."""
    one = poisoned(poisoned(in_directory(tmp_path / "one", skip_batches=1), 3, "loss"), 5, "loss")
    with pytest.raises(RunFailed, match=r"at step 5.*skip_batches=2"):
        loop.train(one)
    two = in_directory(tmp_path / "two", skip_batches=2, every_minutes=1e6)
    state = loop.train(poisoned(poisoned(two, 3, "loss"), 5, "loss"))
    assert [batch["step"] for batch in health.read(tmp_path / "two")] == [3, 5]
    assert state.step == 2 * EPOCHS


@pytest.mark.parametrize("text", ["[{", '[{"stepp": 3}]', '[{"step": "x"}]', "3"])
def test_a_mistake_in_the_batches_to_skip_is_one_line(tmp_path, text):
    (tmp_path / health.SKIPPED).write_text(text)
    with pytest.raises(InvalidInput, match=r"skipped.json cannot be read .*remove it to skip no batch$"):
        health.read(tmp_path)


def test_batches_that_a_training_without_a_checkpoint_skipped_are_not_the_next_ones(training, whole):
    """Which may have another learning rate."""
    (training.workdir / health.SKIPPED).write_text(json.dumps([{"step": 1}]))
    assert same(whole[0], loop.train(training))
    assert not (training.workdir / health.SKIPPED).exists()


def test_the_norm_is_that_of_the_logged_steps_parameters(training, whole):
    state = training.initial()
    for step in range(2):
        state, _ = training.step(state, loop.load_batch(training, step), training.key)
    norm = np.sqrt(
        sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(jax.device_get(state.params)))
    )
    logged = [record["parameter_norm"] for record in whole[1] if "parameter_norm" in record]
    assert len(logged) == EPOCHS  # every second step
    np.testing.assert_allclose(logged[0], norm, rtol=1e-6)


def test_a_loss_beyond_the_limit_stops_the_run(tmp_path):
    with pytest.raises(RunFailed, match=r"step 1, epoch 1, .*; there is no earlier checkpoint"):
        loop.train(in_directory(tmp_path, max_loss=1e-3))


def test_a_step_that_does_not_fit_is_refused_with_the_estimate(training, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**10)
    with pytest.raises(
        InvalidInput, match=r"training takes 0\.\d+ GiB a device, which has 0\.00: lower config\.batch_size"
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
def test_collapse_of_robust_accuracy(method, history, now, collapsed):
    names = "validation_clean_accuracy", "validation_robust_accuracy"
    correct = {name: [np.arange(1000) < 1000 * rate] for name, rate in zip(("clean", "robust"), now, strict=True)}
    written, kept = [], []
    fake = object.__new__(keeper.Keeper)
    fake.add = lambda snapshot, last: kept.append(snapshot)
    earlier = [{"epoch": 1} | dict(zip(names, rates, strict=True)) for rates in history]
    write = lambda step, values: written.append(values)  # noqa: E731
    reporting = loop.Reporting(fake, write, lambda *texts: None, frozenset(), earlier, Pace(9))
    training = runs.create_training(create_experiment(method))
    loop.finish_epoch(
        training, reporting, experiments.create_state(create_experiment(method)), correct, loop.Stretch(2, 4)
    )
    assert written[0].get("catastrophic_overfitting", False) is collapsed
    assert kept[0].score == now[0 if method == "standard" else 1]  # what early stopping judges by


@pytest.mark.parametrize(("num_classes", "best", "collapsed"), [(2, 0.9, True), (2, 0.7, False), (10, 0.19, False)])
def test_what_counts_as_robust_depends_on_the_number_of_classes(num_classes, best, collapsed):
    earlier = [{"epoch": 1, "validation_robust_accuracy": best, "validation_clean_accuracy": 0.9}]
    assert health.has_collapsed({"robust": 0.02, "clean": 0.9}, earlier, num_classes) is collapsed


def test_the_time_left_of_a_training():
    """100 steps, 10 an epoch: 2 s a step, 30 s of validation, 20 s of compilation in the first."""
    pace = Pace(100)
    assert pace.left(1, 500.0) == (None, "at least")  # all before is compilation
    assert pace.left(6, 510.0) == (94 * 2, "at least")
    pace.validate(10, 568.0)
    bound = 90 * (568 - 500) / 9  # with 50 s of validation every 9 steps
    assert pace.left(10, 568.0) == (pytest.approx(bound), "at most")
    assert pace.left(15, 578.0) == (pytest.approx(bound * 85 / 90), "at most")
    pace.validate(20, 618.0)
    assert pace.left(20, 618.0) == (pytest.approx(8 * 50), "about")  # 8 epochs of 50 s
    pace.validate(30, 668.0)
    assert pace.left(35, 678.0) == (pytest.approx(6.5 * 50), "about")
    resumed = Pace(100)
    assert resumed.left(91, 50.0) == (None, "at least")
    assert resumed.left(93, 54.0) == (7 * 2, "at least")


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
