"""The ensemble: the official outcomes, and a driver whose padding, dropping, stopping and resuming change nothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import ARRAYS, EPSILON, images, labels, network

from infofeat_jax import threat as threats
from infofeat_jax.attacks import ATTACKS, autoattack, survivors
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.autoattack import ROBUST, STAGES, VERSIONS, Plan, plan_of, steps
from infofeat_jax.attacks.fab import fab_search
from infofeat_jax.attacks.search import Search
from infofeat_jax.attacks.square import square_search
from infofeat_jax.attacks.survivors import bucket_sizes
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


def shortened(name: str):
    """The official stage, cut short where its recorded outcome shows early."""
    threat = threats.threat("linf", EPSILON["linf"])
    return {
        "apgd-ce": lambda: apgd_search(threat, 10, num_steps=100),
        "apgd-t": lambda: apgd_search(threat, 10, loss="dlr_targeted", num_targets=2),
        "fab-t": lambda: fab_search(threat, 10, num_targets=2, num_steps=40),
        "square": lambda: square_search(threat, (32, 32), num_queries=400),
    }[name]()


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
    assert [p.stage for p in seen] == ["clean", "apgd-dlr", "fab"]
    assert seen[-1].survivors == correct.sum()


@pytest.mark.parametrize("batch_size", [7, 24])
def test_batch_size_does_not_change_the_outcome(shared_plan, linear, batch_size):
    forward, x, y, distance = linear
    _, state = finish(shared_plan, forward, x, y, batch_size=batch_size)
    np.testing.assert_array_equal(state.broken_by == ROBUST, distance >= EPS["linf"])
    np.testing.assert_array_equal(state.broken_by == 0, distance < 0)


def test_resuming_anywhere_equals_an_uninterrupted_run(shared_plan, linear):
    forward, x, y, _ = linear
    inputs = (shared_plan, forward, KEY, np.asarray(x), np.asarray(y))
    whole = list(steps(*inputs, batch_size=7))
    assert len(whole) > len(shared_plan.stages)
    for cut, (_, state) in enumerate(whole):
        saved = type(state)(*(np.array(part) if np.ndim(part) else int(part) for part in state))
        rest = list(steps(*inputs, batch_size=7, state=saved))
        assert [p for p, _ in rest] == [p for p, _ in whole[cut + 1 :]]
        for resumed, original in zip(rest[-1:], whole[-1:], strict=False):
            jax.tree.map(np.testing.assert_array_equal, resumed[1], original[1])


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
    assert [p.queries for p in seen] == sorted({p.queries for p in seen})
    assert seen[0].queries == 7
    assert seen[-1].examples == len(y)


def test_nothing_is_compiled_twice():
    forward, x, y, _ = linear_model.problem(count=90)
    search = apgd_search(threats.threat("linf", 0.004), 6, num_steps=20)
    the_plan = plan_of({"apgd-ce": search})
    finish(the_plan, forward, x, y, batch_size=32)
    compiled = [part._cache_size() for part in (*the_plan.stages[0][2:], the_plan.predict)]
    assert max(compiled) <= len(bucket_sizes(32, 32)) + 1  # one for the last batch
    assert compiled[1] > 1, "nothing was compacted"
    other = jax.tree_util.Partial(forward.func, *(1.5 * weights for weights in forward.args))
    finish(the_plan, forward, x, y, batch_size=32)
    finish(the_plan, other, x[:64], y[:64], batch_size=32)
    assert [part._cache_size() for part in (*the_plan.stages[0][2:], the_plan.predict)] == compiled


class FakeState(NamedTuple):
    due: jax.Array
    adversarial: jax.Array
    success: jax.Array


def test_survivors_keep_their_places_through_compaction():
    def start(key, images, labels, logits, attempt):
        return FakeState(labels, images, labels < 0)

    def step(forward, key, t, state):  # example i breaks at iteration labels[i], into image + 1
        broken = state.due <= t
        return state._replace(adversarial=state.adversarial + (state.due == t)[:, None, None, None], success=broken)

    due = np.random.default_rng(0).permutation(60).astype(np.int32)  # 40 and later: never
    images = np.arange(60, dtype=np.float32).reshape(60, 1, 1, 1)
    forward = jax.tree_util.Partial(lambda x: x)
    sizes = bucket_sizes(60, 60)
    batch = survivors.Batch(forward, images, due, due[:, None], sizes, jnp.asarray)
    found = survivors.attack(survivors.stage("fake", Search(start, step, 40)), KEY, batch)
    np.testing.assert_array_equal(found.broken, due < 40)
    np.testing.assert_array_equal(found.adversarial, images + (due < 40)[:, None, None, None])
    assert found.queries < 40 * 60


def test_buckets():
    assert bucket_sizes(256, 256) == (16, 24, 32, 48, 64, 96, 128, 192, 256)
    assert bucket_sizes(256, 71) == (16, 24, 32, 48, 64, 72)
    assert bucket_sizes(250, 250)[-2:] == (192, 250)
    assert bucket_sizes(5, 3) == (5,)
    np.testing.assert_array_equal(survivors.pad(np.array([4, 2]), (4, 8)), [4, 2, 4, 4])


def test_one_example_no_example_and_misclassified_ones(linear):
    forward, x, y, _ = linear
    call = lambda x, y: autoattack(forward, KEY, x, y, epsilon=0.05, attacks=("apgd-ce",))  # noqa: E731
    assert (forward(call(x[5:6], y[5:6])).argmax(-1) != y[5:6]).all()
    assert call(x[:0], y[:0]).shape == (0, *x.shape[1:])
    np.testing.assert_array_equal(call(x[:2], y[:2]), x[:2])


def test_nan_logits_count_as_misclassified_and_as_broken(linear):
    _, x, y, _ = linear
    constant = 5.0 * jax.nn.one_hot(y, 6)
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
        ({"version": "rand"}, "plus, standard"),
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
