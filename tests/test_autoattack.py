"""The ensemble: the official outcomes, and a driver whose padding, dropping, stopping and resuming change nothing."""

import copy
import itertools
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import ARRAYS, EPSILON, images, labels, network

from infofeat_jax import threat as threats
from infofeat_jax.attacks import ATTACKS, autoattack, stages, survivors
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.autoattack import ROBUST, steps
from infofeat_jax.attacks.fab import fab_search
from infofeat_jax.attacks.search import Search
from infofeat_jax.attacks.square import square_search
from infofeat_jax.attacks.stages import STAGES, VERSIONS, Plan, plan, plan_of
from infofeat_jax.attacks.survivors import batch_sizes, next_size
from infofeat_jax.runtime import devices
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)
EPS = {"linf": 0.01, "l2": 0.05}


def small_plan(norm: str = "linf") -> Plan:
    """Stages shortened for a linear model."""
    threat = threats.threat(norm, EPS[norm])
    searches = {
        "square": square_search(threat, (4, 4), num_queries=50),
        "apgd-t": apgd_search(threat, 6, loss="dlr_targeted", num_steps=20),
        "fab-t": fab_search(threat, 6, num_steps=20),
    }
    return plan_of({name: search for name, search in searches.items() if norm == "linf" or name == "apgd-t"})


def finish(plan, forward, x, y, **options):
    progress = None
    for progress, state in steps(plan, forward, KEY, np.asarray(x), np.asarray(y), **options):  # noqa: B007
        pass
    return progress, state


@pytest.fixture(scope="module")
def shared_plan():
    return small_plan()


@pytest.fixture(scope="module")
def linear():
    forward, x, y, weights = linear_model.problem()
    return forward, x, y, linear_model.distances(forward, x, y, weights, "linf")


def test_versions_are_the_official_lists():
    assert VERSIONS["standard"] == ("apgd-ce", "apgd-t", "fab-t", "square")
    built = {name: build(threats.threat("linf", 0.1), 10, (8, 8)) for name, build in STAGES.items()}
    attempts = {name: search.num_attempts for name, search in built.items()}
    assert [attempts[name] for name in VERSIONS["standard"]] == [1, 9, 9, 1]
    assert [attempts[name] for name in VERSIONS["plus"]] == [5, 5, 5, 1, 9, 9]
    assert [built[name].num_steps for name in VERSIONS["standard"]] == [101, 101, 100, 5000]


def _work(search: Search) -> int:
    return search.num_attempts * search.num_steps * (search.queries + 2 * search.gradients)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_quick_version_costs_an_eighth_or_little_more(norm):
    plans = [plan(threats.threat(norm, 0.1), 10, (8, 8), version=name) for name in ("quick", "standard")]
    costs = [sum(_work(stage.search) for stage in one.stages) for one in plans]
    assert [stage.name for stage in plans[0].stages] == ["apgd-ce", "apgd-t"]
    assert [stage.search.num_attempts for stage in plans[0].stages] == [1, 4]
    assert costs[0] < 0.135 * costs[1]


def shortened(name: str):
    """The official stage, cut short where its recorded outcome shows early."""
    options = {
        "apgd-ce": {},
        "apgd-t": {"num_targets": 2},
        "fab-t": {"num_targets": 2, "num_steps": 40},
        "square": {"num_queries": 400},
    }[name]
    return STAGES[name](threats.threat("linf", EPSILON["linf"]), 10, (32, 32), **options)


def test_the_losses_and_restarts_of_the_stages(monkeypatch):
    """What the names say; the published defaults for the rest."""
    for kind in ("apgd", "fab", "square"):
        monkeypatch.setattr(stages, f"{kind}_search", lambda *_, kind=kind, **options: (kind, options))
    assert {name: build(None, 10, (8, 8)) for name, build in STAGES.items()} == {
        "apgd-ce": ("apgd", {"loss": "ce"}),
        "apgd-ce-5": ("apgd", {"loss": "ce", "restarts": 5}),
        "apgd-dlr": ("apgd", {"loss": "dlr"}),
        "apgd-dlr-5": ("apgd", {"loss": "dlr", "restarts": 5}),
        "apgd-t": ("apgd", {"loss": "dlr_targeted"}),
        "fab": ("fab", {"targeted": False}),
        "fab-5": ("fab", {"targeted": False, "restarts": 5}),
        "fab-t": ("fab", {}),
        "square": ("square", {}),
    }


@pytest.mark.parametrize("name", VERSIONS["standard"])
def test_each_stage_alone_breaks_what_the_official_one_breaks(name):
    the_plan = plan_of({name: shortened(name)})
    x, y = images("ensemble/images_u8"), labels("ensemble/labels")
    _, state = finish(the_plan, network(), x, y, batch_size=16)
    np.testing.assert_array_equal(state.broken_by != 0, ARRAYS["ensemble/clean_correct"])
    official, ours = ARRAYS[f"ensemble/individual_correct_{name}"], state.broken_by == ROBUST
    assert not (official & ~ours).any()
    missed = 2 if name == "square" else 0  # it is random, and cut short
    assert (ours & ~official).sum() <= missed, f"ours {ours.nonzero()[0]}, official {official.nonzero()[0]}"


def test_robust_in_l2_is_exactly_what_cannot_be_broken():
    forward, x, y, weights = linear_model.problem()
    distance = linear_model.distances(forward, x, y, weights, "l2")
    _, state = finish(small_plan("l2"), forward, x, y, batch_size=24)
    np.testing.assert_array_equal(state.broken_by == ROBUST, distance >= EPS["l2"])
    np.testing.assert_array_equal(state.broken_by == 0, distance < 0)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_standard_adapts_to_few_classes(num_classes):
    forward, x, y, weights = linear_model.problem(num_classes)
    distance = linear_model.distances(forward, x, y, weights, "linf")
    adversarial = autoattack(forward, KEY, x, y, epsilon=EPS["linf"], attacks=("apgd-t", "fab-t"))
    np.testing.assert_array_equal(forward(adversarial).argmax(-1) == y, distance >= EPS["linf"])


def test_results_stay_in_budget_and_only_the_broken_are_changed():
    forward, x, y, _ = linear_model.problem()
    seen = []
    adversarial = autoattack(
        forward,
        KEY,
        x,
        y,
        epsilon=EPS["linf"],
        attacks=("apgd-dlr", "fab"),
        on_progress=seen.append,
    )
    change = np.abs(np.asarray(adversarial, np.float64) - np.asarray(x, np.float64)).max((1, 2, 3))
    assert change.max() <= EPS["linf"]
    correct = forward(adversarial).argmax(-1) == y
    wrong = forward(x).argmax(-1) != y
    np.testing.assert_array_equal(change > 0, ~correct & ~wrong)
    assert [name for name, _ in itertools.groupby(p.stage for p in seen)] == ["clean", "apgd-dlr", "fab"]
    assert seen[-1].survivors == correct.sum()


def test_neither_batch_size_nor_devices_change_anything_found(shared_plan, linear):
    """Queries too: each example's search is the same, whoever sits beside it."""
    forward, x, y, distance = linear
    states = [finish(shared_plan, forward, x, y, batch_size=size)[1] for size in (7, 24)]
    mesh = devices.mesh(3)
    on_three = devices.replicate(mesh, forward)
    states.append(finish(shared_plan, on_three, x, y, batch_size=10, mesh=mesh)[1])
    for state in states:
        np.testing.assert_array_equal(state.broken_by == ROBUST, distance >= EPS["linf"])
        np.testing.assert_array_equal(state.broken_by == 0, distance < 0)
        np.testing.assert_array_equal(state.broken_by, states[0].broken_by)
        np.testing.assert_allclose(state.adversarial, states[0].adversarial, atol=1e-6)
        assert (state.queries, state.cost) == (states[0].queries, states[0].cost)


def test_what_is_found_for_an_example_depends_on_its_place_in_the_data_alone(shared_plan, linear):
    forward, x, y, _ = linear
    _, state = finish(shared_plan, forward, x, y, batch_size=24)
    others = jnp.where(jnp.arange(len(y)) % 2 == 1, 0, 1)[:, None, None, None] * (x - 0.5) + 0.5  # every second is grey
    _, changed = finish(shared_plan, forward, others, y, batch_size=24)
    same = np.arange(len(y)) % 2 == 0
    np.testing.assert_array_equal(changed.broken_by[same], state.broken_by[same])
    np.testing.assert_allclose(changed.adversarial[same], state.adversarial[same], atol=1e-6)


def test_resuming_anywhere_equals_an_uninterrupted_run(shared_plan, linear):
    forward, x, y, _ = linear
    inputs = (shared_plan, forward, KEY, np.asarray(x), np.asarray(y))
    saved = [copy.deepcopy(state) for _, state in steps(*inputs, batch_size=7)]
    assert len(saved) > 20
    assert {state.stage for state in saved} == {0, 1, 2, 3, 4}
    for index, state in enumerate(saved):
        rest = [state, *(later for _, later in steps(*inputs, batch_size=(7, 16)[index % 2], state=state))]
        for resumed, original in zip(rest[-1], saved[-1], strict=True):
            np.testing.assert_allclose(resumed, original, atol=1e-6)


def test_attempts_that_have_ended_are_not_repeated(shared_plan, linear):
    forward, x, y, _ = linear
    inputs = (shared_plan, forward, KEY, np.asarray(x), np.asarray(y))
    saved = [copy.deepcopy(state) for _, state in steps(*inputs, batch_size=24)]
    state = next(state for state in saved if state.stage == 3 and state.attempts.max() == 2)
    rest = [copy.deepcopy(later) for _, later in steps(*inputs, batch_size=24, state=copy.deepcopy(state))]
    assert all((later.attempts >= state.attempts)[later.broken_by == ROBUST].all() for later in rest[:-1])
    assert rest[-1].queries == saved[-1].queries


def test_result_depends_on_the_key_alone(shared_plan, linear):
    forward, x, y, _ = linear
    runs = [finish(shared_plan, forward, x, y, batch_size=24)[1] for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_progress_grows_to_one_and_counts_queries(shared_plan, linear):
    forward, x, y, _ = linear
    seen = [p for p, _ in steps(shared_plan, forward, KEY, np.asarray(x), np.asarray(y), batch_size=7)]
    done = [p.done for p in seen]
    assert done == sorted(done)
    assert done[-1] == 1
    assert 0 < done[0] < 0.1
    assert max(np.diff(done)) < 0.25
    assert [p.queries for p in seen] == sorted(p.queries for p in seen)
    assert seen[0].queries == 7
    assert seen[-1].examples == len(y)


@pytest.mark.parametrize("count", [None, 4])
def test_at_most_two_programs_with_the_network_are_compiled_for_each_stage(count):
    """And one for the predictions, whatever the number of examples, on one device and on several."""
    forward, x, y, _ = linear_model.problem(count=90)
    threat = threats.threat("linf", 0.003)
    the_plan = plan_of({"apgd-ce": apgd_search(threat, 6, num_steps=20), "fab-t": fab_search(threat, 6, num_steps=8)})
    mesh = count and devices.mesh(count)
    place = partial(devices.replicate, mesh) if mesh else lambda tree: tree
    said = []
    forward = place(forward)

    def attack(forward, x, y):
        for progress, _ in steps(the_plan, forward, KEY, np.asarray(x), np.asarray(y), batch_size=32, mesh=mesh):
            said.append(progress.compiling)

    with count_compilations() as programs:
        attack(forward, x, y)
    turns = [stage.turn._cache_size() for stage in the_plan.stages]
    assert max(turns) == 2, "nobody moved to the smaller batch"
    with_network = [name for name in programs if "turn" in name or "predict" in name]
    assert len(with_network) == sum(turns) + 1
    assert sum(said) == sum(turns)
    other = jax.tree_util.Partial(forward.func, *(1.5 * weights for weights in forward.args))
    with count_compilations() as programs:
        attack(forward, x, y)
        attack(other, x, y)
    assert not programs
    assert sum(said) == sum(turns)


@contextmanager
def count_compilations():
    """The names of the functions compiled meanwhile."""
    names = []

    def note(event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


class FakeState(NamedTuple):
    due: jax.Array
    adversarial: jax.Array
    success: jax.Array


def test_everybody_gets_a_seat_and_takes_along_what_was_found():
    def start(keys, images, labels, logits, attempts):
        return FakeState(labels, images, labels < 0)

    def step(forward, keys, t, state):  # example i breaks at iteration labels[i], into image + 1
        broken = state.due <= t
        return state._replace(adversarial=state.adversarial + (state.due == t)[:, None, None, None], success=broken)

    due = np.random.default_rng(0).permutation(60).astype(np.int32)  # 40 and later: never
    images = np.arange(60, dtype=np.float32).reshape(60, 1, 1, 1)
    forward = jax.tree_util.Partial(lambda x: x.reshape(len(x), -1))
    data = survivors.Data(forward, images, due, due[:, None], 32, None)
    stage, rows = survivors.stage("fake", Search(start, step, 40)), np.arange(60, dtype=np.int32)
    turns = list(survivors.attack(stage, KEY, data, rows, 0 * rows))
    ended, broken, t = (np.concatenate([turn[i] for turn in turns]) for i in (0, 1, 3))
    np.testing.assert_array_equal(np.sort(ended), rows)
    np.testing.assert_array_equal(broken, due[ended] < 40)
    np.testing.assert_array_equal(t, np.minimum(due[ended] + 1, 40))
    assert stage.turn._cache_size() == 2, "nobody moved"
    for turn in turns:
        if turn.adversarial is not None:
            np.testing.assert_array_equal(turn.adversarial[turn.broken], images[turn.rows[turn.broken]] + 1)
    assert max(turn.unfinished for turn in turns) > 0


def test_what_a_separate_pass_classifies_correctly_is_not_broken(linear):
    forward, x, y, distance = linear

    def start(keys, images, labels, logits, attempts):
        return FakeState(labels, images, labels < 0)

    def step(forward, keys, t, state):
        return state._replace(adversarial=state.adversarial * 0.999, success=state.due >= 0)

    progress, state = finish(plan_of({"boastful": Search(start, step, 3)}), forward, x, y)
    np.testing.assert_array_equal(state.broken_by, np.where(distance < 0, 0, ROBUST))
    np.testing.assert_array_equal(state.adversarial, x)
    assert progress.survivors == (distance >= 0).sum()


def test_batch_sizes():
    assert batch_sizes(256, 10_000) == (256, 64)
    assert batch_sizes(256, 78) == (80, 24)  # all at once
    assert batch_sizes(250, 10_000) == (250, 64)
    assert batch_sizes(250, 300) == (152, 40)  # two equal waves
    assert batch_sizes(1024, 1000, 8) == (1000, 256)
    assert batch_sizes(250, 10_000, 8) == (256, 64)  # a multiple of the devices
    assert batch_sizes(250, 1000, 6) == (252, 72)
    assert batch_sizes(32_768, 1000, 256) == (1024, 256)
    assert batch_sizes(7, 90) == (7, 7)
    assert batch_sizes(5, 3) == (5, 5)


def test_a_batch_size_that_is_compiled_already_is_used_again():
    assert batch_sizes(250, 78, compiled={104, 120, 256}) == (104, 32)
    assert batch_sizes(250, 78, compiled={72, 112}) == (80, 24)
    assert batch_sizes(100, 78, compiled={104}) == (80, 24)


@pytest.mark.parametrize("count", [9, 40, 61, 78, 119, 300, 1000])
def test_a_batch_size_that_is_used_again_is_begun_with(count):
    """One rule decides which of the compiled sizes is taken, and whether the larger or the smaller one is begun."""
    for compiled in range(8, 256, 8):
        sizes = batch_sizes(250, count, compiled={compiled})
        if sizes != batch_sizes(250, count):
            assert next_size(sizes, 0, count) == compiled


def test_the_smaller_batch_is_for_those_who_would_leave_the_larger_one_empty():
    sizes = (64, 16)
    assert [next_size(sizes, 0, waiting) for waiting in (100, 48, 47, 1)] == [64, 64, 16, 16]
    assert next_size(sizes, 16, 31) == 16
    assert next_size(sizes, 16, 32) == 64
    assert next_size(sizes, 17, 0) == 64


def test_one_example_no_example_and_misclassified_ones(linear):
    forward, x, y, _ = linear
    call = lambda x, y: autoattack(forward, KEY, x, y, epsilon=0.05, attacks=("apgd-ce",))  # noqa: E731
    assert (forward(call(x[5:6], y[5:6])).argmax(-1) != y[5:6]).all()
    assert call(x[:0], y[:0]).shape == (0, *x.shape[1:])
    np.testing.assert_array_equal(call(x[:2], y[:2]), x[:2])


def test_nan_logits_count_as_misclassified_and_as_broken(linear):
    _, x, y, _ = linear
    y, constant = jnp.zeros_like(y), 5.0 * jnp.eye(6)[:1]
    forward = lambda z: jnp.where(z[:, 0, 0, :1] < 0.5, jnp.nan, constant)  # noqa: E731
    x = x.at[:, 0, 0, 0].set(jnp.where(jnp.arange(len(y)) < 4, 0.4, 0.505))
    threat = threats.threat("linf", 0.01)
    the_plan = plan_of({"square": square_search(threat, (4, 4), num_queries=50)})
    _, state = finish(the_plan, jax.tree_util.Partial(forward), x, y, batch_size=24)
    np.testing.assert_array_equal(state.broken_by, np.where(np.arange(len(y)) < 4, 0, 1))


def test_nan_logits_of_some_do_not_spoil_the_others(shared_plan, linear):
    plain, x, y, distance = linear
    x = x.at[:4, 0, 0, 0].set(0.9)
    broken = lambda z: jnp.where(z[:, 0, 0, :1] > 0.8, jnp.nan, plain(z))  # noqa: E731
    _, state = finish(shared_plan, jax.tree_util.Partial(broken), x, y, batch_size=24)
    assert (state.broken_by[:4] == 0).all()
    np.testing.assert_array_equal(state.broken_by[4:] == ROBUST, distance[4:] >= EPS["linf"])
    assert np.isfinite(state.adversarial).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "none"}, "plus, quick, rand, standard"),
        ({"attacks": ("apgd",)}, "apgd-ce"),
        ({"attacks": ("square", "square")}, "once"),
        ({"batch_size": 0}, "batch_size"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"bounds": (0.0, 0.5)}, "images span"),
    ],
)
def test_invalid_arguments_are_named(linear, change, message):
    forward, x, y, _ = linear
    with pytest.raises(InvalidInput, match=message):
        autoattack(forward, KEY, x, y, **{"epsilon": 0.1, **change})


def test_every_part_is_listed():
    assert {"apgd", "fab", "square", "autoattack"} <= set(ATTACKS)
