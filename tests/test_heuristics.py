"""Flags: a sound network raises none, and each kind of spurious robustness raises its own."""

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import images, labels, network

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.autoattack import ROBUST, steps
from infofeat_jax.attacks.square import square_search
from infofeat_jax.attacks.stages import plan_of
from infofeat_jax.evaluation import heuristics, probes
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)
BUDGET = {"epsilon": 0.05, "step_size": 0.0125}
SOUND, X, Y, _ = linear_model.problem()
X = jnp.round(X * 255) / 255
Y = jnp.asarray(SOUND(X).argmax(-1))


def kinds(found: list[str]) -> list[str]:
    return [flag.split(":")[0] for flag in found]


def raised(forward, x=X, **options) -> list[str]:
    seen = probes.probe(forward, KEY, x, jnp.asarray(forward(x).argmax(-1)), **(BUDGET | options))
    return kinds(heuristics.flags(seen))


def gradient_times(sign):
    """SOUND with the input gradient multiplied by sign(x) [b, h, w, c]; its values are unchanged."""

    def forward(x):
        fixed = jax.lax.stop_gradient(x)
        return SOUND(fixed + sign(fixed) * (x - fixed))

    return forward


@pytest.mark.parametrize(
    ("norm", "epsilon", "step_size"), [("linf", 8 / 255, 2 / 255), ("l2", 1.0, 0.25), ("l1", 24.0, 6.0)]
)
def test_a_sound_network_raises_none(norm, epsilon, step_size):
    x, y = images("ensemble/images_u8")[:8], labels("ensemble/labels")[:8]
    seen = probes.probe(network(), KEY, x, y, epsilon=epsilon, step_size=step_size, norm=norm)
    assert heuristics.flags(seen) == []
    assert seen.correct["clean"].sum() > seen.correct["steps"].sum() > seen.correct["large budget"].sum() == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_with_the_large_budget_any_image_can_turn_grey(norm):
    threat = threats.threat(norm, 0.1, (-1.0, 1.0))
    black, grey = (jnp.full((1, 4, 5, 3), value) for value in (-1.0, 0.0))
    distance = float(threats.size(norm, grey - black)[0])
    np.testing.assert_allclose(probes.large_budget(threat, (4, 5, 3)), distance, rtol=1e-6)


def test_a_sound_linear_model_raises_none():
    assert raised(SOUND) == []


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: 1e4 * SOUND(x), ["vanishing gradients", "accuracy does not reach 0"]),
        (lambda x: SOUND(jnp.round(x * 8) / 8), ["zero gradients", "accuracy does not reach 0"]),
        (lambda x: SOUND(x + 0.01 * jax.random.normal(KEY, x.shape)), ["randomised forward"]),
        (lambda x: SOUND(x) + 0.1 * SOUND(x).mean(0), ["randomised forward"]),
        (lambda x: jax.nn.softmax(SOUND(x)), ["outputs are probabilities"]),
    ],
    ids=["saturated", "quantised", "noise", "batch", "softmax"],
)
def test_a_masked_model_raises_its_flag(forward, expected):
    assert set(expected) <= set(raised(forward))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_model_without_gradients_is_not_taken_for_a_weak_one(norm):
    """The l2 attacks' images were NaN there, which are misclassified: every accuracy was 0."""
    budget = BUDGET | ({"epsilon": 0.05, "step_size": 0.01} if norm == "l2" else {})
    quantised = lambda x: SOUND(jnp.round(x * 8) / 8)  # noqa: E731
    seen = probes.probe(quantised, KEY, X, jnp.asarray(quantised(X).argmax(-1)), norm=norm, **budget)
    assert seen.correct["one step"].all()
    assert {"zero gradients", "accuracy does not reach 0"} <= set(kinds(heuristics.flags(seen)))


def test_gradients_that_mislead_off_the_images_let_one_step_beat_many():
    on_grid = lambda x: jnp.abs(x * 255 - jnp.round(x * 255)).max((1, 2, 3), keepdims=True) < 1e-3  # noqa: E731
    found = raised(gradient_times(lambda x: jnp.where(on_grid(x), 1.0, -1.0)))
    assert "one step beats many" in found


def test_gradients_that_only_some_starts_see_need_restarts():
    middle = X.at[:, 0, 0, 0].set(0.5)
    found = raised(gradient_times(lambda x: (x[:, :1, :1, :1] > 0.52) * jnp.ones_like(x).at[:, 0, 0, 0].set(0)), middle)
    assert found.count("PGD has not converged") == 1


def test_steps_too_short_need_more_of_them():
    seen = probes.probe(SOUND, KEY, X, Y, epsilon=0.05, step_size=0.0005)
    shares = [f"{seen.correct[name].mean():.1%}" for name in ("steps", "more steps")]
    expected = f"PGD has not converged: {shares[0]} of 24 images withstand 20 steps, {shares[1]} with 100 steps"
    assert any(flag.startswith(expected) for flag in heuristics.flags(seen))


def test_square_breaking_what_gradients_left_is_flagged():
    threat = threats.threat("linf", 0.1)
    for forward, expected in ((SOUND, []), (lambda x: SOUND(jnp.round(x * 8) / 8), ["black-box beats white-box"])):
        searches = {"apgd-ce": apgd_search(threat, 6, num_steps=20), "square": square_search(threat, (4, 4))}
        y = np.asarray(forward(X).argmax(-1))
        *_, (_, state) = steps(plan_of(searches), jax.tree_util.Partial(forward), KEY, np.asarray(X), y)
        broken_by = state.broken_by
        after = {name: (broken_by == ROBUST) | (broken_by > i) for i, name in enumerate(searches, 1)}
        assert kinds(heuristics.flags(None, {}, after)) == expected


QUICK = "autoattack(version=quick)"


def outcome(correct: int, count: int = 200) -> np.ndarray:
    return np.arange(count) < correct


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"clean": 180, "fgsm": 120, "pgd7": 110, "pgd20": 100, "cw20": 98, "autoattack": 90, "noise": 175}, []),
        ({"fgsm": 100, "pgd7": 90, "pgd100": 120}, ["one step beats many"]),
        ({"pgd20": 120, "noise": 110}, ["black-box beats white-box"]),
        ({"pgd20": 120, "cw20": 100, "pgd10@other": 90}, ["black-box beats white-box"]),
        ({"pgd20": 120, "cw20": 100, "pgd10@other": 110}, []),
        ({"pgd7": 130, "pgd20": 120, "autoattack": 60}, ["large gap between PGD and AutoAttack"]),
        ({"pgd7": 130, "pgd20": 120, QUICK: 60}, ["large gap between PGD and AutoAttack", "not standard AutoAttack"]),
        ({"pgd7": 130, "pgd20": 120, "autoattack(version=plus)": 60}, ["large gap between PGD and AutoAttack"]),
        ({"pgd20": 120, "autoattack(epsilon=16)": 60}, []),
        ({"pgd20": 120, QUICK: 115}, ["not standard AutoAttack"]),
        ({"pgd20": 120, QUICK: 115, "autoattack": 114}, []),
        ({"pgd20": 120, "autoattack(epsilon=1,version=quick)": 115, "autoattack": 114}, ["not standard AutoAttack"]),
        ({"autoattack": 60, "noise": 10, "fgsm": 10}, []),
    ],
)
def test_flags_of_measured_accuracies(outcomes, expected):
    assert kinds(heuristics.flags(None, {name: outcome(correct) for name, correct in outcomes.items()})) == expected


@pytest.mark.parametrize(("square", "is_flagged"), [(109, False), (99, True)])
def test_square_is_compared_with_the_stage_before_it(square, is_flagged):
    stages = {"apgd-ce": 120, "apgd-t": 110, "fab-t": 109, "square": square}
    found = heuristics.flags(None, {}, {name: outcome(correct) for name, correct in stages.items()})
    assert kinds(found) == ["black-box beats white-box"] * is_flagged


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"pgd20": 500, "noise": 495}, ["black-box beats white-box"]),  # half a percent
        ({"pgd20": 500, "noise": 496}, []),
        ({"pgd20": 500, "autoattack": 399}, ["large gap between PGD and AutoAttack"]),  # a tenth
        ({"pgd20": 500, "autoattack": 401}, []),
    ],
)
def test_where_a_difference_begins_to_count(outcomes, expected):
    found = heuristics.flags(None, {name: outcome(correct, 1000) for name, correct in outcomes.items()})
    assert kinds(found) == expected


def test_attacks_on_fewer_examples_are_compared_on_those():
    pgd = np.concatenate([outcome(50, 100), np.ones(900, bool)])
    assert heuristics.flags(None, {"pgd20": pgd, "autoattack": outcome(45, 100)}) == []
    (flag,) = heuristics.flags(None, {"pgd20": pgd, "autoattack": outcome(30, 100)})
    assert "of 100 images 30.0% under autoattack are correct and 50.0% under pgd20" in flag


def test_a_nan_gradient_is_none():
    broken = lambda x: SOUND(x + 0 * jnp.sqrt(x - jax.lax.stop_gradient(x)))  # noqa: E731
    assert raised(broken)[0] == "zero gradients"


def test_vanishing_is_told_from_zero():
    seen = probes.probe(lambda x: 1e4 * SOUND(x), KEY, X, Y, **BUDGET)
    gaps = 1e4 * objectives.logit_margin(SOUND(X), Y)
    np.testing.assert_array_equal(seen.saturated[gaps > 100], True)
    assert not seen.zero.any()


def test_batches_are_of_one_size_and_see_each_image_once():
    sizes, whole = [], probes.probe(SOUND, KEY, X, Y, **BUDGET)

    def forward(x):
        jax.debug.callback(lambda: sizes.append(len(x)))
        return SOUND(x)

    parts = probes.probe(forward, KEY, X, Y, **BUDGET, batch_size=7)  # 24 images: 4 batches of 6
    jax.effects_barrier()
    assert set(sizes) == {6}
    assert [len(values) for values in jax.tree.leaves(parts)] == [24] * 10
    np.testing.assert_array_equal(parts.zero, whole.zero)
    for name in ("clean", "one step", "large budget"):  # the others begin at random
        np.testing.assert_array_equal(parts.correct[name], whole.correct[name], err_msg=name)
    fewer = probes.probe(SOUND, KEY, X[:11], Y[:11], **BUDGET, batch_size=4)  # the last batch is padded
    np.testing.assert_array_equal(fewer.correct["one step"], whole.correct["one step"][:11])


def test_no_gradient_is_taken_once_all_images_are_fooled():
    passes = []

    def forward(x):
        jax.debug.callback(lambda: passes.append(1))
        return SOUND(x)

    wrong = probes.probe(forward, KEY, X, (Y + 1) % 6, **BUDGET)
    jax.effects_barrier()
    assert len(passes) == 2  # the images, and once more to see noise
    assert not any(values.any() for values in wrong.correct.values())


def test_images_outside_the_box_are_refused():
    with pytest.raises(InvalidInput, match="images span"):
        probes.probe(SOUND, KEY, X * 3, Y, **BUDGET)
