"""Auto-PGD in l1: the steps of a naive one, written as the paper's loop in NumPy, and the phases."""

import functools

import in_step
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest

from infofeat_jax import threat as threats
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.apgd_l1 import schedule
from infofeat_jax.attacks.stages import plan

KEY = jax.random.key(0)
EPSILON = 0.2


@functools.cache
def projection(radius: float):
    """Tested by itself; each call of it outside of jit would be compiled anew."""
    return jax.jit(functools.partial(threats.project, threats.threat("l1", radius)))


def naive(gradient_of, image, label, start, num_steps):
    """(losses at every evaluation, the last phase's best loss) for one image, from a start of any size."""
    project = lambda x, radius: np.asarray(projection(radius)(image[None], x[None].astype(np.float32)))[0]  # noqa: E731
    first = int(np.ceil(0.3 * num_steps))
    losses, best = [], start
    for radius, steps in ((3, first), (2, first), (1, num_steps - 2 * first)):
        x = best = project(best, radius * EPSILON)
        loss, gradient = gradient_of(x, label)
        losses.append(loss)
        best_loss, best_gradient = loss, gradient
        step = radius * EPSILON
        support = np.count_nonzero(x - image)
        entries = support / image.size / 1.5
        every = max(int(0.04 * steps), 1)
        for i in range(steps):
            sizes = np.sort(np.abs(gradient).ravel())
            least = sizes[int(np.clip((1 - entries) * image.size, 0, image.size - 1))]
            signs = np.sign(gradient) * (np.abs(gradient) >= least)
            x = project(x + step * signs / np.abs(signs).sum(), radius * EPSILON)
            loss, gradient = gradient_of(x, label)
            losses.append(loss)
            if loss > best_loss:
                best, best_loss, best_gradient = x, loss, gradient
            if (i + 1) % every == 0:
                now = np.count_nonzero(best - image)
                if now / support < 0.95:
                    step, x, gradient = radius * EPSILON, best, best_gradient
                else:
                    step = max(step / 1.5, radius * EPSILON / 10)
                support, entries = now, now / image.size / 1.5
    return np.array(losses), best_loss


def test_a_run_equals_the_naive_one():
    forward, images, labels, _ = linear_model.problem(size=6)
    bend = lambda x: jnp.tanh(3 * forward(x))  # noqa: E731 - not linear, so that steps overshoot

    def loss(x, label):
        logits = bend(x[None])[0]
        return jax.nn.logsumexp(logits) - logits[label]

    with_gradient = jax.jit(jax.value_and_grad(loss))
    gradient_of = lambda x, label: tuple(map(np.asarray, with_gradient(jnp.asarray(x, jnp.float32), label)))  # noqa: E731
    images, labels = images[2:6], labels[2:6]
    search = apgd_search(threats.threat("l1", EPSILON), 6, num_steps=20)
    state = in_step.start(search, KEY, images, labels, bend(images))
    step, bent = in_step.step(search), jax.tree_util.Partial(bend)
    noise = [x + jax.random.normal(key, x.shape) for x, key in zip(images, jax.random.split(KEY, 4), strict=True)]
    ours = []
    for t in range(search.num_steps):
        ours.append([with_gradient(x, y)[0] for x, y in zip(state.x, state.labels, strict=True)])
        state = step(bent, KEY, t, state)
    ours = np.array(ours).T
    for index in range(4):
        losses, best = naive(gradient_of, *(np.asarray(a[index]) for a in (images, labels, noise)), 20)
        np.testing.assert_allclose(ours[index], losses, rtol=1e-4)
        np.testing.assert_allclose(state.best_loss[index], best, rtol=1e-4)


def test_the_phases_shrink_and_only_the_last_one_counts():
    steps = schedule(100)
    assert [int((steps.radius == radius).sum()) for radius in (3, 2, 1)] == [31, 31, 41]
    np.testing.assert_array_equal(np.flatnonzero(steps.ends), [30, 61, 102])
    np.testing.assert_array_equal(steps.counts, steps.radius == 1)
    np.testing.assert_array_equal(steps.next_radius[steps.ends], [2, 1, 1])
    for few in (0, 1, 2):
        np.testing.assert_array_equal(schedule(few).radius, np.ones(few + 1))


def test_the_official_version_has_more_restarts_and_fewer_targets():
    stages = plan(threats.threat("l1", 12.0), 10, (32, 32)).stages
    attempts = {stage.name: stage.search.num_attempts for stage in stages}
    assert attempts == {"apgd-ce": 5, "apgd-t": 5, "fab-t": 9, "square": 1}


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_nothing_outside_of_the_ball_is_returned(loss):
    """Its earlier phases search balls of two and three times the size."""
    forward, x, y, weights = linear_model.problem()
    search = apgd_search(threats.threat("l1", EPSILON), 6, loss=loss, num_steps=10)
    state = in_step.start(search, KEY, x, y, forward(x))
    step = in_step.step(search)
    distance = linear_model.distances(forward, x, y, weights, "l1")
    for t in range(search.num_steps):
        state = step(forward, KEY, t, state)
        size = np.abs(np.asarray(state.adversarial - x, np.float64)).sum((1, 2, 3))
        assert size.max() <= EPSILON
        assert not state.success[distance > EPSILON].any()
    assert state.success[distance < 0.8 * EPSILON].mean() > 0.9
