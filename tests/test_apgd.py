"""Auto-PGD and its losses: the golden traces of the authors' code, and a linear model's exact robustness."""

import functools

import in_step
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import ARRAYS, EPSILON, images, labels, network

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks import apgd
from infofeat_jax.attacks.apgd import _record, _review, apgd_search, checkpoint_windows, initial_state, start_along
from infofeat_jax.attacks.search import example_keys, ranked_class
from infofeat_jax.types import InvalidInput, Outputs

KEY = jax.random.key(0)
DLR_GROUPS = ("k10/s1", "k10/s10", "k100/s1")


@pytest.mark.parametrize("group", DLR_GROUPS)
@pytest.mark.parametrize("name", ["dlr", "dlr_targeted"])
def test_dlr_equals_the_recorded_values_and_gradients(name, group):
    golden = {k: ARRAYS[f"dlr/{group}/{k}"] for k in ("logits", "labels", "targets", name, f"{name}_grad")}
    objective = objectives.dlr if name == "dlr" else objectives.dlr_targeted(jnp.asarray(golden["targets"]))

    def values(logits):
        return objective(Outputs(logits), Outputs(logits), jnp.asarray(golden["labels"]))

    logits = jnp.asarray(golden["logits"])
    gradient = jax.grad(lambda z: values(z).sum())(logits)
    np.testing.assert_allclose(values(logits), golden[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, golden[f"{name}_grad"], atol=1e-6 + 1e-4 * abs(gradient).max())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_dlr_of_few_classes_is_finite_and_falls_with_the_margin(num_classes):
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, num_classes)), jnp.float32)
    classes = jnp.zeros(8, jnp.int32)
    for objective in (objectives.dlr, objectives.dlr_targeted(classes + 1)):
        value, gradient = jax.value_and_grad(lambda z, f=objective: f(Outputs(z), Outputs(z), classes).sum())(logits)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()
        sign = jnp.sign(objective(Outputs(logits), Outputs(logits), classes))
        rival = logits[:, 1] if objective is not objectives.dlr else logits[:, 1:].max(1)
        np.testing.assert_array_equal(sign, jnp.sign(rival - logits[:, 0]))


@pytest.mark.parametrize("num_steps", [20, 50, 100])
def test_checkpoints_are_the_recorded_ones(num_steps):
    index = ARRAYS[f"apgd/checkpoints_n{num_steps}/iteration_index"]
    windows = checkpoint_windows(num_steps)
    np.testing.assert_array_equal(np.flatnonzero(windows) - 1, index)
    np.testing.assert_array_equal(windows[windows > 0], ARRAYS[f"apgd/checkpoints_n{num_steps}/window"])


@functools.cache
def trace(run: str, loss: str, norm: str, num_steps: int):
    """Losses, step sizes and outcomes of each step, from the recorded start; and the final state."""
    threat = threats.threat(norm, EPSILON[norm])
    draw = jnp.asarray(ARRAYS["apgd/l2_start_randn" if norm == "l2" else "apgd/linf_start_uniform01"])
    x, y = images("images_u8")[:4], labels("labels")[:4]
    start = start_along(threat, x, draw if norm == "l2" else 2 * draw - 1)
    targets = ranked_class(jnp.asarray(ARRAYS["logits"][:4]), 2)
    state = initial_state(threat, x, y, targets, start)
    step = in_step.step(apgd_search(threat, 10, loss=loss, num_steps=num_steps))
    losses, sizes, correct = [], [], []
    for t in range(num_steps + 1):
        state = step(network(), KEY, t, state)
        losses.append(state.loss if t else state.best_loss)
        sizes.append(state.step_size)
        correct.append(~state.success)
    return np.stack(losses), np.stack(sizes), np.stack(correct), state


@pytest.mark.parametrize(
    ("run", "loss", "norm", "num_steps", "tolerance"),
    [
        ("ce_n100", "ce", "linf", 100, 1e-3),
        ("t_rank2_n20", "dlr_targeted", "linf", 20, 1e-2),
        ("dlr_n20", "dlr", "linf", 20, 1e-2),
        ("l2_ce_n20", "ce", "l2", 20, 1e-3),
    ],
)
def test_trace_from_the_recorded_start(run, loss, norm, num_steps, tolerance):
    golden = {k: ARRAYS[f"apgd/{run}/{k}"] for k in RECORDED}
    losses, sizes, correct, state = trace(run, loss, norm, num_steps)
    np.testing.assert_allclose(losses[0], golden["loss_start"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses[1:6], golden["loss_steps"][:5], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.best_loss, golden["loss_best"], rtol=tolerance, atol=1e-6)
    np.testing.assert_array_equal(correct, golden["acc_steps"])
    np.testing.assert_array_equal(~state.success, golden["still_correct"])
    # Late in a path rounding alone decides a review (the loss rose 7 or 8 times in a window of 10); see also below.
    same = np.isclose(sizes[1:], golden["step_size_after"])[: num_steps // 2].all(0)
    assert same.mean() >= 0.75, f"step sizes leave the recorded path on images {np.flatnonzero(~same)}"


@pytest.mark.parametrize("run", ["ce_n100", "t_rank2_n20", "dlr_n20", "l2_ce_n20"])
def test_step_sizes_are_exactly_the_recorded_ones_for_the_recorded_losses(run):
    golden = {k: ARRAYS[f"apgd/{run}/{k}"] for k in RECORDED}
    losses = np.concatenate([golden["loss_start"][None], golden["loss_steps"]])
    full = lambda value: jnp.full(4, value, jnp.int32)  # noqa: E731
    x = images("images_u8")[:4]
    threat = threats.threat("linf", EPSILON["l2" if run.startswith("l2") else "linf"])
    state, sizes = initial_state(threat, x, labels("labels")[:4], labels("labels")[:4], x), []
    for t, window in enumerate(checkpoint_windows(len(losses) - 1).tolist()):
        state = _record(state, full(t), jnp.asarray(losses[t]), x, jnp.zeros(4))
        state, _ = _review(state, x, full(window))
        sizes.append(state.step_size)
    np.testing.assert_allclose(sizes[1:], golden["step_size_after"], rtol=1e-6)


RECORDED = ("loss_start", "loss_steps", "loss_best", "acc_steps", "still_correct", "step_size_after")


@functools.cache
def attacked(norm: str, loss: str, num_classes: int = 6, **options):
    forward, x, y, weights = linear_model.problem(num_classes)
    distance = linear_model.distances(forward, x, y, weights, norm)
    epsilon = {"linf": 0.01, "l2": 0.05, "l1": 0.2}[norm]
    call = functools.partial(apgd, forward, epsilon=epsilon, norm=norm, loss=loss, **options)
    return x, y, jax.jit(call)(KEY, x, y), forward, distance, epsilon


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_targeted_apgd_breaks_exactly_what_can_be_broken(norm):
    _, y, adversarial, forward, distance, epsilon = attacked(norm, "dlr_targeted")
    np.testing.assert_array_equal(forward(adversarial).argmax(-1) != y, distance < epsilon)


@pytest.mark.parametrize(("num_classes", "loss"), [(2, "ce"), (2, "dlr"), (2, "dlr_targeted"), (3, "dlr_targeted")])
def test_few_classes_are_attacked_all_the_same(loss, num_classes):
    _, y, adversarial, forward, distance, epsilon = attacked("linf", loss, num_classes)
    np.testing.assert_array_equal(forward(adversarial).argmax(-1) != y, distance < epsilon)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_never_leave_ball_or_box(norm):
    forward, x, y, _ = linear_model.problem()
    x = jnp.clip((x - 0.5) * 2.5 + 0.5, 0, 1)
    call = jax.jit(functools.partial(apgd, forward, KEY, epsilon=0.3, norm=norm, num_steps=10))
    adversarial = np.asarray(call(x, y), np.float64)
    change = (adversarial - np.asarray(x, np.float64)).reshape(len(y), -1)
    size = np.linalg.norm(change, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert size.max() <= 0.3
    assert size.max() > 0.29
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


def test_misclassified_images_are_returned_unchanged_and_others_with_a_higher_loss():
    x, y, adversarial, forward, _, _ = attacked("linf", "ce")
    wrong = forward(x).argmax(-1) != y
    np.testing.assert_array_equal(adversarial[wrong], x[wrong])
    loss = [objectives.cross_entropy(Outputs(forward(z)), Outputs(forward(z)), y)[~wrong] for z in (x, adversarial)]
    assert (loss[1] > loss[0]).all()


MASKED = np.random.default_rng(0).permuted(np.tile(np.arange(6) < 3, (24, 1)), axis=1)


@pytest.mark.parametrize("loss", ["dlr", "dlr_targeted"])
def test_masked_classes_do_not_hide_the_others(loss):
    """Three classes of six have logits of -inf, others for each example."""
    plain, x, _, weights = linear_model.problem()
    masked = jnp.asarray(MASKED)
    forward = lambda z: jnp.where(masked, -jnp.inf, plain(z))  # noqa: E731
    y = forward(x).argmax(-1)
    distance = np.full(24, np.inf)
    for i in range(24):  # among the classes that there are
        there = np.flatnonzero(~MASKED[i])
        label, kept = jnp.asarray([np.flatnonzero(there == y[i])[0]]), weights[:, there]
        some = lambda z, there=there: plain(z)[:, there]  # noqa: E731
        distance[i] = linear_model.distances(some, x[i : i + 1], label, kept, "linf")[0]
    found = jax.jit(functools.partial(apgd, forward, epsilon=0.01, loss=loss))(KEY, x, y)
    broken = forward(found).argmax(-1) != y
    if loss == "dlr_targeted":
        np.testing.assert_array_equal(broken, distance < 0.01)
    assert 0.8 * (distance < 0.01).sum() <= broken.sum() <= (distance < 0.01).sum()
    assert broken.any()


def test_ranked_classes_are_never_masked():
    logits = jnp.asarray([[1.0, 3, 2, 0], [1, -jnp.inf, 2, -jnp.inf], [-jnp.inf, 0, -jnp.inf, -jnp.inf]])
    ranks = [ranked_class(logits, rank) for rank in (1, 2, 3, 4)]
    np.testing.assert_array_equal(np.stack(ranks, 1), [[1, 2, 0, 3], [2, 0, 0, 0], [1, 1, 1, 1]])


def test_an_example_does_not_depend_on_how_soon_the_others_break():
    forward, x, y, weights = linear_model.problem()
    order = np.argsort(linear_model.distances(forward, x, y, weights, "l2"))
    x, y = x[order], y[order]  # the first break at once, the last never
    broken = y.at[5:].set((forward(x[5:]).argmax(-1) + 1) % 6)  # as many examples: other shapes round differently
    call = jax.jit(functools.partial(apgd, forward, KEY, epsilon=0.05, norm="l2", num_steps=30))
    np.testing.assert_array_equal(call(x, y)[:5], call(x, broken)[:5])


def test_restarts_break_more():
    """Random starts alone: a step of a linear model's gradient breaks all that can be broken."""
    _, y, once, forward, _, _ = attacked("linf", "ce", num_steps=0)
    _, _, often, _, _, _ = attacked("linf", "ce", num_steps=0, restarts=4)
    broken = [(forward(z).argmax(-1) != y) for z in (once, often)]
    assert (broken[1] >= broken[0]).all()
    assert broken[1].sum() > broken[0].sum()


def test_each_example_draws_its_own_numbers_in_each_attempt():
    rows, attempts = jnp.repeat(jnp.arange(4), 3), jnp.tile(jnp.arange(3), 4)
    keys = jax.random.key_data(example_keys(KEY, rows, attempts))
    assert len({tuple(key) for key in keys.tolist()}) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss"),
        ({"num_steps": -1}, "num_steps"),
        ({"restarts": 0}, "restarts"),
        ({"loss": "dlr_targeted", "num_targets": 0}, "num_targets"),
        ({"norm": "l3"}, "norm"),
    ],
)
def test_invalid_arguments_are_named(options, message):
    forward, x, y, _ = linear_model.problem()
    with pytest.raises(InvalidInput, match=message):
        apgd(forward, KEY, x, y, **{"epsilon": 0.1, **options})
