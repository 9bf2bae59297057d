"""FAB and its projection: the golden values of the authors' code, and a linear model's exact distances."""

import functools

import in_step
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import ARRAYS, EPSILON, images, labels, network

from infofeat_jax import threat as threats
from infofeat_jax.attacks import fab, hyperplane
from infofeat_jax.attacks.fab import fab_search
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)
NORMS = ("linf", "l2", "l1")
BOX = (0.0, 1.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("size", ["d48", "d3072"])
def test_projection_equals_the_recorded_displacements(norm, size):
    points, normals, offsets, golden = (
        jnp.asarray(ARRAYS[f"fab_proj/{size}/{k}"]) for k in ("points", "w", "b", f"{norm}_delta")
    )
    gaps = offsets - (normals * points).sum(1)
    found = jax.jit(functools.partial(hyperplane.displacement, norm, bounds=BOX))(points, normals, gaps)
    np.testing.assert_allclose(found, golden, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_reaches_the_plane_or_the_furthest_corner(norm):
    rng = np.random.default_rng(1)
    points, normals = rng.uniform(0, 1, (64, 20)).astype(np.float32), rng.normal(size=(64, 20))
    normals = (normals * 10.0 ** rng.integers(-25, 3, (64, 1))).astype(np.float32)
    scale = np.abs(normals).sum(1)
    gaps = (rng.uniform(-0.8, 0.8, 64) * scale).astype(np.float32)
    project = jax.jit(functools.partial(hyperplane.displacement, norm, bounds=BOX))
    found = np.asarray(project(*map(jnp.asarray, (points, normals, gaps))), np.float64)
    assert (points + found).min() >= -1e-6
    assert (points + found).max() <= 1 + 1e-6
    room = np.where(np.sign(normals) * np.sign(gaps)[:, None] > 0, 1 - points, points)
    reachable = np.minimum(np.abs(gaps), (np.abs(normals.astype(np.float64)) * room).sum(1))
    np.testing.assert_allclose((normals * found).sum(1) / scale, np.sign(gaps) * reachable / scale, atol=1e-5)


def test_projection_onto_no_plane_stays():
    zero = hyperplane.displacement("l2", jnp.full((1, 3), 0.5), jnp.zeros((1, 3)), jnp.ones(1), BOX)
    np.testing.assert_array_equal(zero, jnp.zeros((1, 3)))


@functools.cache
def compiled(norm: str):
    search = fab_search(threats.threat(norm, EPSILON[norm]), 10)
    return search, in_step.step(search)


def trajectory(norm: str, target_rank: int, num_steps: int):
    """The states after each step towards the class of that rank, on the images that were attacked."""
    search, step = compiled(norm)
    rows = ARRAYS["fab_t/attacked_index"]
    logits = jnp.asarray(ARRAYS["logits"])[rows]
    state = in_step.start(search, KEY, images("images_u8")[rows], labels("labels")[rows], logits, target_rank - 2)
    states = []
    for t in range(num_steps):
        state = step(network(), KEY, t, state)
        states.append(state)
    return rows, states


@pytest.mark.parametrize(("norm", "folder"), [("linf", "fab_t/Linf"), ("l2", "fab_t/L2")])
def test_run_equals_the_recorded_one(norm, folder):
    rows, states = trajectory(norm, 2, 100)
    np.testing.assert_array_equal(states[0].targets, ARRAYS[f"{folder}/target_class"][0][rows])
    np.testing.assert_allclose(states[0].x[:2], ARRAYS[f"{folder}/iter1/x1"], atol=1e-5)
    np.testing.assert_allclose(states[4].x[:1], ARRAYS[f"{folder}/iter5/x1"], atol=1e-4)
    np.testing.assert_allclose(states[-1].size, ARRAYS[f"{folder}/norms"][0][rows], rtol=1e-2)
    within = ARRAYS[f"{folder}/norms"][0][rows] <= ARRAYS[f"{folder}/eps"]
    np.testing.assert_array_equal(states[-1].success, within)


def test_a_later_target_equals_the_recorded_one():
    rows, states = trajectory("linf", 5, 100)
    np.testing.assert_array_equal(states[0].targets, ARRAYS["fab_t/Linf/target_class"][3][rows])
    np.testing.assert_allclose(states[-1].size, ARRAYS["fab_t/Linf/norms"][3][rows], rtol=5e-2)


@functools.cache
def attacked(norm: str, num_classes: int = 6, **options):
    forward, x, y, weights = linear_model.problem(num_classes)
    epsilon = {"linf": 0.01, "l2": 0.05, "l1": 0.2}[norm]
    call = functools.partial(fab, forward, epsilon=epsilon, norm=norm, **options)
    adversarial = jax.jit(call)(KEY, x, y)
    return x, y, adversarial, forward, linear_model.distances(forward, x, y, weights, norm), epsilon


UNTARGETED = {"targeted": False}
CASES = [
    ("linf", 6, {}),
    ("l2", 6, {}),
    ("l1", 6, {}),
    ("l1", 6, UNTARGETED),
    ("linf", 2, UNTARGETED),
    ("l2", 6, UNTARGETED),
]


@pytest.mark.parametrize(("norm", "num_classes", "options"), CASES)
def test_breaks_exactly_what_can_be_broken_and_returns_the_rest_unchanged(norm, num_classes, options):
    x, y, adversarial, forward, distance, epsilon = attacked(norm, num_classes, num_steps=30, **options)
    np.testing.assert_array_equal(forward(adversarial).argmax(-1) != y, distance < epsilon)
    untouched = (distance >= epsilon) | (distance < 0)
    np.testing.assert_array_equal(adversarial[untouched], x[untouched])


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_untargeted_tells_300_classes_apart_whatever_the_labels_dtype(dtype):
    _, x, _, weights = linear_model.problem(300)
    weights[:, :100] /= 4
    offset = jnp.where(jnp.arange(300) < 100, 10.0, 0.0)  # labels fit into 8 bits, most other classes do not
    forward = lambda z: (z - 0.5).reshape(len(z), -1) @ jnp.asarray(weights) + offset  # noqa: E731
    y = forward(x).argmax(-1)
    assert y.max() < 100
    distance = linear_model.distances(forward, x, y, weights, "linf")
    epsilon = float(np.median(distance))
    call = jax.jit(functools.partial(fab, forward, epsilon=epsilon, num_steps=10, targeted=False))
    broken = forward(call(KEY, x, y.astype(dtype))).argmax(-1) != y
    np.testing.assert_array_equal(broken, distance < epsilon)


@pytest.mark.parametrize("norm", NORMS)
def test_results_never_leave_ball_or_box(norm):
    x, _, adversarial, _, _, epsilon = attacked(norm, num_steps=30)
    change = (np.asarray(adversarial, np.float64) - np.asarray(x, np.float64)).reshape(len(x), -1)
    size = np.linalg.norm(change, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert size.max() <= epsilon


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_perturbation_is_the_distance_to_the_boundary(norm):
    forward, x, y, weights = linear_model.problem()
    search = fab_search(threats.threat(norm, 1.0), 6, targeted=False)
    state = in_step.start(search, KEY, x, y, forward(x))
    step = in_step.step(search)
    for t in range(30):
        state = step(forward, KEY, t, state)
    distance = linear_model.distances(forward, x, y, weights, norm)
    np.testing.assert_allclose(state.size[2:], distance[2:], rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_at_half_the_budget(norm):
    forward, x, y, _ = linear_model.problem()
    search = fab_search(threats.threat(norm, 0.05), 6, restarts=2)
    first, second = (in_step.start(search, KEY, x, y, forward(x), attempt).x - x for attempt in (0, 1))
    assert not first.any()
    np.testing.assert_allclose(threats.size(norm, second), 0.025, rtol=1e-3)
    assert search.num_attempts == 10


def test_no_gradient_and_no_classes_are_survived():
    _, x, y, _ = linear_model.problem()
    constant = lambda x: jnp.ones((x.shape[0], 6)) * jnp.arange(6.0)  # noqa: E731
    np.testing.assert_array_equal(fab(constant, KEY, x, y * 0 + 5, epsilon=0.1, num_steps=3), x)
    with pytest.raises(InvalidInput, match="classes"):
        fab(lambda x: jnp.ones((x.shape[0], 1)), KEY, x, y * 0, epsilon=0.1)
