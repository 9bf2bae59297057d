"""Ball and box: bounds that hold exactly in float64, whatever the floats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infofeat_jax import l1, threat
from infofeat_jax.types import InvalidInput


def norms(delta: np.ndarray, norm: str) -> np.ndarray:
    flat = delta.reshape(len(delta), -1)
    return np.linalg.norm(flat, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["linf", "l2", "l1"]),
    st.floats(0, 2),
    st.integers(0, 2**16),
    st.sampled_from([1e-6, 0.1, 3.0, 1e6]),
)
def test_projection_never_leaves_ball_or_box(norm, epsilon, seed, scale):
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=(4, 9, 9, 3)).astype(np.float32)
    images[0, :3] = rng.integers(0, 2, (3, 9, 3))  # the box's corners
    perturbed = images + scale * rng.normal(size=images.shape).astype(np.float32)
    model = threat.threat(norm, epsilon)
    out = np.asarray(threat.project(model, jnp.asarray(images), jnp.asarray(perturbed)))
    assert out.min() >= 0
    assert out.max() <= 1
    assert (norms(out.astype(np.float64) - images.astype(np.float64), norm) <= epsilon).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_leaves_what_is_inside(norm):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.3, 0.7, (3, 4, 4, 3)), jnp.float32)
    inside = images + jnp.asarray(rng.uniform(-0.01, 0.01, images.shape), jnp.float32)
    np.testing.assert_allclose(threat.project(threat.threat(norm, 0.4), images, inside), inside, atol=1e-7)


def test_linf_projection_is_a_clip():
    images, far = jnp.full((1, 2, 2, 1), 0.5), jnp.full((1, 2, 2, 1), 0.9)
    np.testing.assert_allclose(threat.project(threat.threat("linf", 0.1), images, far), 0.6, atol=2e-7)


@pytest.mark.parametrize(("norm", "expected_mean_radius"), [("linf", None), ("l2", 48 / 49), ("l1", 48 / 49)])
def test_random_starts_are_uniform_in_the_ball(norm, expected_mean_radius):
    images = jnp.full((2000, 4, 4, 3), 0.5)
    start = threat.random_start(threat.threat(norm, 0.1), jax.random.key(0), images)
    delta = np.asarray(start, np.float64) - 0.5
    if expected_mean_radius is None:  # uniform in each pixel: standard deviation epsilon / sqrt(3)
        np.testing.assert_allclose(delta.std(), 0.1 / np.sqrt(3), rtol=0.01)
    else:  # E[radius] = d / (d + 1) of the radius
        np.testing.assert_allclose(norms(delta, norm).mean(), 0.1 * expected_mean_radius, rtol=0.002)
    assert abs(delta.mean()) < 5e-4


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_steps_are_steepest_ascent_whatever_the_gradients_scale(norm, scale):
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(3, 4, 4, 3))
    step = np.asarray(threat.NORMS[norm].ascent(jnp.asarray(gradient * scale, jnp.float32)), np.float64)
    dual = np.abs(gradient).sum((1, 2, 3)) if norm == "linf" else np.sqrt((gradient**2).sum((1, 2, 3)))
    np.testing.assert_allclose((step * gradient).sum((1, 2, 3)), dual, rtol=1e-5)  # Hölder's bound is reached
    np.testing.assert_allclose(norms(step, norm), 1, rtol=1e-5)


def test_the_largest_of_a_row_is_that_of_a_sorted_one():
    """Zeros, equal numbers, the smallest normal and infinity among them; a NaN is the largest."""
    rows = np.random.default_rng(0).exponential(size=(6, 40)).astype(np.float32) ** 9
    rows[1], rows[2, :30], rows[3, :20] = 0, 1.5, rows[3, 20:]
    rows[4, :2], rows[5, 0] = (np.finfo(np.float32).tiny, np.inf), np.nan
    find = jax.jit(l1.largest)
    for rank in (1, 2, 11, 40):
        found = find(rows, np.full(6, rank, np.int32))
        np.testing.assert_array_equal(found, np.sort(rows, axis=1)[:, 40 - rank])


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_steps_in_l1_go_along_the_largest_percent(scale):
    gradient = np.random.default_rng(0).normal(size=(3, 10, 10, 3))
    step = np.asarray(threat.NORMS["l1"].ascent(jnp.asarray(gradient * scale, jnp.float32)))
    for g, s in zip(gradient.reshape(3, -1), step.reshape(3, -1), strict=True):
        largest = np.argsort(np.abs(g))[-3:]
        expected = np.zeros(300)
        expected[largest] = np.sign(g[largest]) / 3
        np.testing.assert_allclose(s, expected, rtol=1e-6)


def test_a_step_in_l1_is_not_lost_at_the_border_of_the_box():
    """The two largest gradients point out of the box at pixels of 0 and 1: the third is taken, until it ends."""
    images = jnp.asarray([[[[0.0], [1.0], [0.5], [0.25]]]])
    gradient = jnp.asarray([[[[-9.0], [8.0], [2.0], [-1.0]]]])
    model, x = threat.threat("l1", 1.0), images
    for expected in ([0, 1, 0.9, 0.25], [0, 1, 1.0, 0.25], [0, 1, 1.0, 0.0]):
        x = threat.ascend(model, images, x, gradient, 0.4)
        np.testing.assert_allclose(x.ravel(), expected, atol=1e-6)
    stays = threat.ascend(model, images, x, gradient, 0.4)  # all are at their borders
    np.testing.assert_allclose(stays, x, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 20), st.integers(0, 2**16), st.sampled_from([0.01, 0.3, 10.0]))
def test_the_l1_projection_is_the_nearest_point_of_ball_and_box(epsilon, seed, scale):
    """Against a naive one in float64, which looks for the threshold among all of its breakpoints."""
    rng = np.random.default_rng(seed)
    images = rng.choice([0.0, 0.25, 0.75, 1.0], (1, 5, 5, 3))
    wanted = images + (scale * rng.normal(size=images.shape)).astype(np.float32)
    model = threat.threat("l1", epsilon)
    out = threat.project(model, jnp.asarray(images, jnp.float32), jnp.asarray(wanted, jnp.float32))
    v, x = (wanted - images).ravel(), images.ravel()
    room = np.where(v > 0, 1 - x, x)
    length = lambda t: np.clip(np.abs(v) - t, 0, room).sum()  # noqa: E731
    threshold = 0.0
    if length(0.0) > epsilon:
        points = np.unique(np.concatenate([[0.0], np.abs(v), np.maximum(np.abs(v) - room, 0)]))
        high = next(p for p in points if length(p) <= epsilon)
        low = points[points < high].max()
        threshold = low + (length(low) - epsilon) / (length(low) - length(high)) * (high - low)
    expected = np.sign(v) * np.clip(np.abs(v) - threshold, 0, room)
    np.testing.assert_allclose(np.asarray(out, np.float64).ravel() - x, expected, atol=2e-5 * max(1.0, scale))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_known_to_be_zero_when_compiling_does_not_move_the_image(norm):
    images = jnp.full((2, 3, 3, 1), 0.5)
    model = threat.threat(norm, 0.1)
    step = jax.jit(lambda x: threat.ascend(model, x, x, jnp.zeros_like(x), 0.05))
    np.testing.assert_allclose(step(images), images, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_traced_budget_is_float32_and_never_larger_than_it_was(norm, dtype):
    images, far = jnp.full((3, 4, 4, 1), 0.5), jnp.full((3, 4, 4, 1), 0.9)
    epsilons = np.linspace(0.01, 0.2, 3).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        project = lambda epsilon: threat.project(threat.threat(norm, epsilon), images, far)  # noqa: E731
        found = jax.jit(jax.vmap(project))(jnp.asarray(epsilons))
        assert found.dtype == jnp.float32
    for out, epsilon in zip(found, epsilons, strict=True):
        size = norms(np.asarray(out, np.float64) - 0.5, norm)
        assert (size <= float(epsilon)).all()
        np.testing.assert_allclose(size, float(epsilon), rtol=1e-4)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_each_example_has_its_own_budget_and_step(norm):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.4, 0.6, (3, 4, 4, 3)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=images.shape), jnp.float32)
    epsilon, step = np.array([0.3, 0.05, 0.2]), np.array([0.1, 0.1, 0.3])
    together = threat.ascend(threat.threat(norm, epsilon, batch=3), images, images, gradient, step)
    np.testing.assert_allclose(norms(together - images, norm), np.minimum(epsilon, step), rtol=1e-4)
    start = threat.random_start(threat.threat(norm, epsilon, batch=3), jax.random.key(0), images)
    assert (norms(np.asarray(start, np.float64) - np.asarray(images, np.float64), norm) <= epsilon).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_non_finite_gradients_do_not_move_their_pixels(norm):
    images = jnp.full((1, 2, 2, 1), 0.5)
    gradient = jnp.asarray([jnp.nan, jnp.inf, 1.0, -1.0]).reshape(images.shape)
    moved = threat.ascend(threat.threat(norm, 0.1), images, images, gradient, 0.05)
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(moved.ravel()[:2], 0.5)
    assert moved.ravel()[2] > 0.5 > moved.ravel()[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linf", -1.0), "epsilon -1.0: expected a finite number >= 0"),
        (("linf", float("nan")), "epsilon nan"),
        (("l3", 1.0), "unknown norm 'l3': choose one of l1, l2, linf"),
        (("linf", 1.0, (1.0, 0.0)), "low < high"),
        (("linf", 1.0, (0.0, float("nan"))), r"bounds \(0.0, nan\): expected \(low, high\), finite"),
        (("linf", 1.0, (0.0, float("inf"))), "bounds"),
        (("linf", 1.0, (0.0, np.float32("nan"))), "bounds"),
        (("linf", 1.0, (0.0, 1.0, 2.0)), "bounds"),
        (("linf", np.float32(-0.5)), "epsilon -0.5"),
        (("linf", jnp.float32(-0.5)), "epsilon -0.5"),
        (("linf", np.float16("nan")), "epsilon nan"),
        (("linf", jnp.bfloat16(jnp.inf)), "epsilon inf"),
        (("linf", np.array([0.1, 0.1])), r"epsilon is of shape \[2\]: expected one number"),
        (("linf", "0.1"), "epsilon '0.1': expected a number"),
        (("linf", None), "epsilon None"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        threat.threat(*arguments)
