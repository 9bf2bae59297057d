"""Randomised models: expectation over transformation against a loop over draws, and AutoAttack's version rand."""

from functools import partial

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest

import infofeat_jax
from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.adapters import calling
from infofeat_jax.attacks import apgd, autoattack, fab, pgd
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.autoattack import ROBUST, steps
from infofeat_jax.attacks.inputs import Randomised, at_draw
from infofeat_jax.attacks.search import draw_key, look_at_draws
from infofeat_jax.attacks.stages import plan, plan_of
from infofeat_jax.evaluation import evaluate as measurements
from infofeat_jax.evaluation import pace
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(0)
FORWARD, X, Y, _ = linear_model.problem()
EPSILON = 0.02


def noisy(images, key):
    """Another random slope for each image and draw, in which the gradient of a single draw drowns."""
    slopes = jax.random.normal(key, (len(images), images[0].size, 6))
    change = (images - X[jnp.arange(len(images)) % len(X)]).reshape(len(images), -1)
    return FORWARD(images) + 5 * jnp.einsum("bp,bpk->bk", change, slopes)


def deterministic(images, key):
    del key
    return FORWARD(images)


def test_a_look_is_the_mean_over_a_loop_of_draws():
    forward, eot = Randomised(noisy), 5
    x = X + 0.02 * jnp.sign(jax.random.normal(KEY, X.shape))
    value, gradient, fooled = look_at_draws(forward, objectives.cross_entropy, x, Y, KEY, eot)
    draws = []
    for key in jax.random.split(KEY, eot):
        logits, pull = jax.vjp(lambda x, key=key: noisy(x, key), x)
        rows, p = np.arange(len(Y)), jax.nn.softmax(logits)
        draws.append((-jnp.log(p[rows, Y]), pull(p - jax.nn.one_hot(Y, 6))[0], logits.argmax(-1) != Y))
    mean = [np.mean([draw[i] for draw in draws], 0) for i in range(3)]
    np.testing.assert_allclose(value, mean[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, mean[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fooled, mean[2], atol=1e-6)
    assert 0 < fooled.mean() < 1


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.01), ("l1", 0.2)])
def test_of_a_model_that_ignores_its_key_it_is_the_ordinary_attack(norm, epsilon):
    """Four equal draws: their mean is exact."""
    options = {"epsilon": epsilon, "norm": norm, "num_steps": 6}
    ordinary = jax.jit(partial(apgd, FORWARD, KEY, **options))(X, Y)
    averaged = jax.jit(partial(apgd, deterministic, KEY, eot=4, **options))(X, Y)
    np.testing.assert_array_equal(averaged, ordinary)
    assert (FORWARD(averaged).argmax(-1) != Y).any()


def accuracy(images) -> float:
    """Of the noisy model, over 200 draws that no attack has seen."""
    correct = jax.jit(lambda key: noisy(images, key).argmax(-1) == Y)
    return float(np.mean([correct(key) for key in jax.random.split(jax.random.key(7), 200)]))


def test_images_have_draws_of_their_own_where_a_model_takes_one_at_a_time():
    def one(image, key):
        return jax.random.uniform(key, (5,)) + 0 * image.sum()

    forward = calling.in_way(Randomised(jax.tree_util.Partial(one)), calling.Calling(one_by_one=True))
    logits = at_draw(forward, KEY)(jnp.full((4, *X.shape[1:]), 0.5))
    assert len(set(map(tuple, np.asarray(logits).tolist()))) == 4


def test_a_single_draw_is_a_weaker_attack():
    attacked = {
        eot: jax.jit(partial(apgd, noisy, KEY, epsilon=EPSILON, num_steps=20, eot=eot))(X, Y) for eot in (1, 20)
    }
    left = {eot: accuracy(images) for eot, images in attacked.items()}
    assert accuracy(X) > left[1] + 0.3
    assert left[1] > left[20] + 0.15, left  # 0.92, 0.50, 0.26 as measured


def test_each_iteration_of_each_example_has_other_draws():
    keys, t = jax.random.split(KEY, 4), jnp.arange(4)
    states = [t, t.at[0].add(1), t.at[3].add(1), t + 1]
    drawn = {tuple(jax.random.key_data(draw_key(keys, at)).tolist()) for at in states}
    assert len(drawn) == len(states)


def test_in_the_cascade_an_unseen_draw_decides():
    """A model whose logits are right in one draw of two, whatever the image: half of the images count as broken."""

    def coin(images, key):
        right = jax.random.bernoulli(key, 0.5, (len(images), 1))
        return (
            jnp.where(right, 1.0, -1.0) * jax.nn.one_hot(jnp.zeros(1, jnp.int32), 2)
            + 0 * images.sum((1, 2, 3))[:, None]
        )

    images = jnp.full((256, 1, 1, 1), 0.5)
    search = apgd_search(threats.threat("linf", 0.1), 2, num_steps=3, eot=4)
    arguments = np.asarray(images), np.zeros(256, np.int32)
    *_, (_, state) = steps(plan_of({"apgd-ce": search}), Randomised(jax.tree_util.Partial(coin)), KEY, *arguments)
    broken_by = state.broken_by
    counts = {stage: int((broken_by == stage).sum()) for stage in (0, 1, ROBUST)}
    assert abs(counts[0] - 128) < 40  # five standard deviations
    assert abs(counts[1] - counts[ROBUST]) < 57
    assert state.queries > 256


def test_version_rand_is_the_official_one():
    for norm, evaluations in (("linf", 101), ("l1", 103)):
        built = plan(threats.threat(norm, 0.1), 10, (8, 8), version="rand")
        assert [stage.name for stage in built.stages] == ["apgd-ce", "apgd-dlr"]
        for stage in built.stages:
            search = stage.search
            assert (search.eot, search.queries, search.gradients) == (20, 20, 20)
            assert (search.num_attempts, search.num_steps) == (1, evaluations)
    assert pace.cost("autoattack(version=rand)") == 2 * 20 * 303
    assert pace.cost("autoattack(version=quick)") == pytest.approx(5 * 303)


def test_autoattack_takes_a_randomised_model():
    adversarial = autoattack(noisy, KEY, X, Y, epsilon=EPSILON, version="rand", attacks=("apgd-ce",))
    assert accuracy(adversarial) < accuracy(X) - 0.1
    assert np.abs(np.asarray(adversarial, np.float64) - np.asarray(X)).max() <= EPSILON


def test_evaluate_takes_a_randomised_model():
    slopes = jax.random.normal(KEY, (32, 6))
    single = lambda image, key: FORWARD(image[None])[0] + 0.05 * image.ravel() @ slopes * jax.random.normal(key)  # noqa: E731
    names = ("clean", "apgd-ce(eot=2,num_steps=5)", "apgd-dlr(eot=2,num_steps=1)")
    for model in (single, noisy):
        found = infofeat_jax.evaluate(
            model, np.asarray(X), np.asarray(Y), epsilon=EPSILON, attacks=names, progress=False, seed=3
        )
        assert found.accuracy["clean"] > found.accuracy[names[1]]
        assert not any("randomised" in flag for flag in found.flags)
        assert ("one by one" in str(found.notes)) == (model is single)


@pytest.mark.parametrize("call", [
    lambda: apgd(FORWARD, KEY, X, Y, epsilon=0.1, eot=5),
    lambda: autoattack(FORWARD, KEY, X, Y, epsilon=0.1, version="rand"),
    lambda: evaluate(FORWARD, "autoattack(version=rand)"), lambda: evaluate(FORWARD, "apgd-dlr(eot=2)"),
    lambda: measurements.check_names(["autoattack(version=rand)"]),
])  # fmt: skip
def test_a_plain_model_is_refused_where_draws_are_averaged(call):
    with pytest.raises(InvalidInput, match=r"are for randomised models, functions of \(images, key\)$"):
        call()


@pytest.mark.parametrize("call", [
    lambda: apgd(noisy, KEY, X, Y, epsilon=0.1), lambda: autoattack(noisy, KEY, X, Y, epsilon=0.1),
    lambda: pgd(noisy, KEY, X, Y, epsilon=0.1), lambda: fab(noisy, KEY, X, Y, epsilon=0.1),
    lambda: evaluate(noisy, "autoattack"), lambda: evaluate(noisy, "pgd20"), lambda: evaluate(noisy, "square"),
])  # fmt: skip
def test_a_randomised_model_is_refused_by_every_other_attack(call):
    with pytest.raises(InvalidInput, match=r"^([^:]*: )?the model is randomised, as it takes .*: choose AutoAttack's"):
        call()


def test_a_model_that_ignores_its_key_is_refused():
    with pytest.raises(InvalidInput, match="deterministic: the logits do not depend on the key"):
        evaluate(deterministic, "autoattack(version=rand)")


def evaluate(model, name: str):
    return infofeat_jax.evaluate(model, np.asarray(X), np.asarray(Y), epsilon=0.1, attacks=(name,), progress=False)
