"""Square attack: the golden trace of the authors' code, the l2 pyramids by their formula, a linear model."""

import functools
from functools import partial

import in_step
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from golden_attacks import ARRAYS, images, labels, network

from infofeat_jax import threat as threats
from infofeat_jax.attacks import autoattack, patches, square
from infofeat_jax.attacks.square import (
    accept,
    initial_state,
    patch_sides,
    repaint,
    shares,
    square_search,
    stripes,
)
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)


def test_schedule_is_the_recorded_one():
    np.testing.assert_array_equal(shares(5000), ARRAYS["square/p_5000"])
    np.testing.assert_array_equal(patch_sides((32, 32), 5000, 0.8, "linf"), ARRAYS["square/side_5000_32x32"])


def test_l2_sides_are_odd_and_fit_the_image():
    sides = patch_sides((32, 32), 5000, 0.8, "l2")
    assert (sides % 2 == 1).all()
    assert sides.min() == 3
    assert patch_sides((8, 8), 100, 1.0, "l2").max() == 8


def test_trace_of_recorded_proposals():
    golden = {k.split("/")[-1]: v for k, v in ARRAYS.items() if k.startswith("square/trace/")}
    rows = golden["images_used"]
    threat = threats.threat("linf", 8 / 255)
    state = initial_state(images("images_u8")[rows], labels("labels")[rows])
    start = stripes(threat, state.images, jnp.asarray(golden["init_uniform01"]))

    @jax.jit
    def query(forward, state, side, corner, sign):
        drawn = (jnp.broadcast_to(a, (len(rows), *jnp.shape(a))) for a in (side, corner, sign))  # as in their batch
        proposal = repaint(threat, state.images, state.adversarial, *drawn)
        return accept(forward, state, proposal)

    state = jax.jit(accept)(network(), state, start)
    sides = patch_sides((32, 32), 5000, 0.8, "linf")
    corners = np.stack([golden["uniform01_vh"], golden["uniform01_vw"]], 1)
    queries = np.ones(len(rows), int)
    for t, (corner, sign) in enumerate(zip(corners, golden["uniform01_sign"], strict=True), start=1):
        queries += ~np.asarray(state.success)
        state = query(network(), state, sides[t], corner, sign)
    np.testing.assert_array_equal(queries, golden["n_queries"])
    # An acceptance by a difference of 1e-7 can fall the other way: one image may leave the path.
    close = np.abs(state.margin - golden["margin_min"]) < 1e-4
    assert close.sum() >= len(rows) - 1
    np.testing.assert_allclose(state.margin, golden["margin_min"], atol=2e-2)
    np.testing.assert_allclose(state.adversarial[:2], golden["x_best"], atol=1e-6)


def pyramid_by_loops(height: int, width: int, norm: str) -> np.ndarray:
    """Eq. of the paper's supplement: sum over squares of growing size around the centre, weights 1 / k^2 (l1: ^4)."""
    power, order = {"l2": (2, 2), "l1": (4, 1)}[norm]
    plane = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(row, column) + 1):
        plane[max(row - k, 0) : row + k + 1, max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** power
    return plane / np.linalg.norm(plane.ravel(), order)


twin_pyramid = jax.jit(patches._twin_pyramid, static_argnums=(0, 1))


@pytest.mark.parametrize(("side", "top", "left"), [(3, 0, 0), (5, 2, 4), (9, 1, 0)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_twin_pyramids_follow_the_formula(side, top, left, flip, norm):
    found = twin_pyramid(norm, (11, 10), jnp.asarray([top, left]), side, jnp.asarray(flip))
    half = side // 2
    twin = np.concatenate([pyramid_by_loops(half, side, norm), -pyramid_by_loops(side - half, side, norm)])
    wanted = np.zeros((11, 10))
    wanted[top : top + side, left : left + side] = (twin.T if flip else twin) / np.linalg.norm(
        twin.ravel(), 1 if norm == "l1" else 2
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_pyramids_of_the_start_choose_their_directions_one_by_one():
    """Up to sign each is one of two; with 25 of them in each of 3 images both are chosen in all."""
    grey = jnp.full((3, 32, 32, 1), 0.5)
    start = jax.jit(functools.partial(patches.first, threats.threat("l2", 0.4)))(jax.random.split(KEY, 3), grey)
    cells = np.asarray(start - grey)[:, 1:31, 1:31, 0].reshape(3, 5, 6, 5, 6).swapaxes(2, 3).reshape(3, 25, 36)
    pair = [twin_pyramid("l2", (6, 6), jnp.zeros(2, int), 6, jnp.asarray(flip)) for flip in (False, True)]
    along = [np.abs(cells @ np.ravel(twin)) / np.linalg.norm(cells, axis=2) > 0.999 for twin in pair]
    assert (along[0] ^ along[1]).all()
    assert along[0].any(1).all()
    assert along[1].any(1).all()


@pytest.mark.parametrize("shape", [(3, 32, 32, 3), (2, 4, 6, 1)])
def test_l2_images_lie_on_the_sphere_and_change_in_two_windows(shape):
    grey = jnp.full(shape, 0.5)
    threat = threats.threat("l2", 0.4)
    keys, sides = (jax.random.split(jax.random.key(seed), shape[0]) for seed in (0, 1)), jnp.full(shape[0], 3)
    x = jax.jit(functools.partial(patches.first, threat))(next(keys), grey)
    np.testing.assert_allclose(threats.size("l2", x - grey), 0.4, rtol=1e-4)
    moved = jax.jit(functools.partial(patches.propose, threat))(next(keys), grey, x, sides)
    np.testing.assert_allclose(threats.size("l2", moved - grey), 0.4, rtol=1e-4)
    changed = np.abs(moved - x).max(-1) > 1e-5
    assert changed.any()
    assert changed.sum((1, 2)).max() <= 2 * 9


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_proposals_spend_what_the_box_has_left_unspent(norm):
    """Against a loop with the authors' formula, at points well inside of the ball, some pixels at the box's faces."""
    power, epsilon, side, rng = patches.POWERS[norm], {"l2": 2.0, "l1": 20.0}[norm], 3, np.random.default_rng(0)
    threat, images = threats.threat(norm, epsilon), rng.integers(0, 5, (4, 8, 8, 3)).astype(np.float32) / 4
    x = np.clip(images + rng.normal(0, 0.03, images.shape), 0, 1).astype(np.float32)
    keys = jax.random.split(KEY, 4)
    found = jax.jit(functools.partial(patches.propose, threat))(keys, images, x, jnp.full(4, side))
    draw, project = jax.jit(patches._draw, static_argnums=(0, 2, 3)), jax.jit(partial(threats.project, threat))
    for index in range(4):
        corners, pyramid = map(np.asarray, draw(norm, keys[index], (8, 8), 3, side))
        change, windows = (x[index] - images[index]).astype(float), np.zeros((2, 8, 8), bool)
        for window, (top, left) in zip(windows, corners, strict=True):
            window[top : top + side, left : left + side] = True
        either = windows.any(0)
        unspent = max(epsilon**power - (np.abs(change) ** power).sum(), 0)
        assert unspent > 0.5 * epsilon**power
        proposal = np.where(either[..., None], 0, change)
        for channel in range(3):
            budget = ((np.abs(change[either, channel]) ** power).sum() + unspent / 3) ** (1 / power)
            first = np.where(windows[0], change[..., channel], 0)
            painted = pyramid[..., channel] + first / (np.abs(first) ** power).sum() ** (1 / power)
            painted *= budget / (np.abs(painted) ** power).sum() ** (1 / power)
            proposal[..., channel] += painted * (3 if norm == "l1" else 1)
        if norm == "l2":
            proposal *= epsilon / np.linalg.norm(proposal)
        expected = project(images[index][None], (images[index] + proposal)[None].astype(np.float32))[0]
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


@functools.cache
def attacked(norm: str, num_queries: int = 1000):
    forward, x, y, weights = linear_model.problem(size=8)
    epsilon = {"linf": 0.01, "l2": 0.16, "l1": 0.8}[norm]
    call = functools.partial(square, forward, epsilon=epsilon, norm=norm, num_queries=num_queries)
    return (
        x,
        y,
        jax.jit(call)(KEY, x, y),
        forward,
        linear_model.distances(forward, x, y, weights, norm),
        epsilon,
    )


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_breaks_most_of_what_can_be_broken_and_nothing_else(norm):
    _, y, adversarial, forward, distance, epsilon = attacked(norm)
    broken = np.asarray(forward(adversarial).argmax(-1) != y)
    assert not broken[distance > epsilon].any()
    share = 0.3 if norm == "l1" else 0.35  # in l1 every window spends part of the budget beside its peaks
    assert broken[distance < share * epsilon].all()
    assert (distance[broken] > 0.2 * epsilon).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_results_never_leave_ball_or_box_and_lower_the_margin(norm):
    x, y, adversarial, forward, distance, epsilon = attacked(norm)
    change = (np.asarray(adversarial, np.float64) - np.asarray(x, np.float64)).reshape(len(y), -1)
    size = np.linalg.norm(change, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert size.max() <= epsilon
    np.testing.assert_array_equal(adversarial[distance < 0], x[distance < 0])
    robust = distance > epsilon
    top = [jnp.sort(forward(z), axis=-1)[robust] for z in (x, adversarial)]
    assert ((top[1][:, -1] - top[1][:, -2]) < (top[0][:, -1] - top[0][:, -2])).all()


def test_each_example_has_windows_of_its_own_and_every_query_counts():
    grey, y = jnp.full((5, 8, 8, 2), 0.5), jnp.zeros(5, jnp.int32)
    forward = jax.tree_util.Partial(lambda z: jnp.stack([jnp.ones(5), jnp.zeros(5)], 1))
    search = square_search(threats.threat("linf", 0.01), (8, 8), num_queries=9, initial_share=0.3)
    step, sides, changed = in_step.step(search), patch_sides((8, 8), 9, 0.3, "linf"), []
    assert search.num_steps == 9
    state = in_step.start(search, KEY, grey, y, jnp.zeros((5, 2)))
    for t in range(search.num_steps):
        state = step(forward, KEY, t, state._replace(margin=jnp.full(5, jnp.inf)))
        changed.append(np.abs(state.adversarial - grey) > 0.009)
        assert (changed[t][..., 0].sum((1, 2)) == (64 if t == 0 else sides[t] ** 2)).all()
        state = state._replace(adversarial=grey)
    assert changed[0].all()
    assert (changed[8] != changed[8][:1]).any()


def test_restarts_are_attempts():
    assert square_search(threats.threat("linf", 0.01), (8, 8), num_queries=9, restarts=3).num_attempts == 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_query_leaves_the_images(norm):
    forward, x, y, _ = linear_model.problem()
    np.testing.assert_array_equal(square(forward, KEY, x, y, epsilon=0.1, norm=norm, num_queries=0), x)


def test_images_with_channels_first_are_refused():
    """By the attacks that draw squares: on [b, 3, h, w] these would be stripes over what they take for 3 rows."""
    first = jnp.full((2, 3, 8, 8), 0.5)
    model = lambda x: x.mean((2, 3))  # noqa: E731
    for attack in (partial(square, num_queries=2), autoattack):
        with pytest.raises(
            InvalidInput, match=r"\[2, 3, 8, 8\] seem to be \[b, c, h, w\]: expected \[b, h, w, c\], and"
        ):
            attack(model, KEY, first, jnp.zeros(2, jnp.int32), epsilon=0.1)


def test_invalid_arguments_are_named():
    forward, x, y, _ = linear_model.problem()
    with pytest.raises(InvalidInput, match="initial_share"):
        square(forward, KEY, x, y, epsilon=0.1, initial_share=0.0)
    with pytest.raises(InvalidInput, match="num_queries -1: expected"):
        square(forward, KEY, x, y, epsilon=0.1, num_queries=-1)
