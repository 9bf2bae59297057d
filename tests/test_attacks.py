"""One contract for all attacks, and the specific properties of each of the paper's attacks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from infofeat_jax import attacks, objectives
from infofeat_jax.attacks.gradient import uniform_start
from infofeat_jax.attacks.projected import projected_ascent
from infofeat_jax.types import InvalidInput, Outputs

BUDGET = {"linf": 8 / 255, "l2": 0.5}
GRADIENT_ATTACKS = {
    "fgsm": {},
    "fgsm_random": {"random_start": True},
    "pgd": {"num_steps": 3},
    "pgd_worst": {"num_steps": 3, "keep": "worst"},
    "pgd_restarts": {"num_steps": 3, "restarts": 2},
    "pgd_targeted": {"num_steps": 3, "targeted": True},
    "cw": {"num_steps": 3},
    "infofeature": {"num_steps": 3},
    "infofeature_from_zero_distance": {"num_steps": 3, "random_start": False},
    "infofeature_label_cosine": {"num_steps": 3, "classes": "label", "distance": "cosine"},
}
KEY = jax.random.key(7)


def attack(case: str, norm: str = "linf", **options):
    function = attacks.ATTACKS[case.split("_")[0]]
    return partial(function, **{"epsilon": BUDGET[norm], "norm": norm} | GRADIENT_ATTACKS[case] | options)


def norms(a, b, norm):
    flat = (np.asarray(a, np.float64) - np.asarray(b, np.float64)).reshape(len(a), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.sqrt((flat**2).sum(1))


@pytest.mark.parametrize("norm", BUDGET)
@pytest.mark.parametrize("case", GRADIENT_ATTACKS)
def test_contract(case, norm):
    images, labels = small.batch()
    run = jax.jit(partial(attack(case, norm), small.forward()))
    perturbed = run(KEY, images, labels)
    assert perturbed.shape == images.shape
    assert perturbed.dtype == images.dtype
    assert np.isfinite(perturbed).all()
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    distance = norms(perturbed, images, norm)
    assert (distance <= BUDGET[norm]).all()
    assert (distance > BUDGET[norm] / 50).all()  # and it does something
    np.testing.assert_array_equal(perturbed, run(KEY, images, labels))  # a function of its arguments


@pytest.mark.parametrize("case", ["fgsm_random", "pgd_worst", "cw", "infofeature"])
def test_examples_do_not_influence_each_other(case):
    images, labels = small.batch()
    run = jax.jit(partial(attack(case), small.forward()))
    other = images.at[1].set(1 - images[1])
    first, second = run(KEY, images, labels), run(KEY, other, labels.at[1].set((labels[1] + 1) % 5))
    kept = np.array([0, 2, 3, 4, 5])
    np.testing.assert_allclose(first[kept], second[kept], atol=1e-6)
    assert not np.allclose(first[1], second[1])


@pytest.mark.parametrize("case", ["fgsm", "pgd", "cw", "infofeature"])
@pytest.mark.parametrize("norm", BUDGET)
def test_constant_logits_give_finite_images(case, norm):
    images, labels = small.batch()

    def constant(x):
        zero = 0 * x.mean((1, 2))
        return Outputs(zero @ jnp.ones((3, 5)), cam=jnp.zeros((len(x), 2, 2, 5)) + zero.mean())

    perturbed = attack(case, norm)(constant, KEY, images, labels)
    assert np.isfinite(perturbed).all()
    assert (norms(perturbed, images, norm) <= BUDGET[norm]).all()


def test_works_under_vmap():
    """A leading axis of batches, each with its own key, gives what a loop over them gives."""
    batches = [small.batch(seed=s) for s in (1, 2)]
    images, labels = (jnp.stack(parts) for parts in zip(*batches, strict=True))
    keys = jax.random.split(KEY, 2)
    run = partial(attack("infofeature"), small.forward())
    together = jax.jit(jax.vmap(run))(keys, images, labels)
    one_by_one = [jax.jit(run)(k, x, y) for k, x, y in zip(keys, images, labels, strict=True)]
    agree = np.isclose(together, jnp.stack(one_by_one), atol=1e-5).mean()
    assert agree > 0.99  # a sign at a gradient of zero may differ


@pytest.mark.parametrize("keep", ["last", "worst"])
def test_pgd_against_a_loop_in_numpy(keep):
    """The projected ascent written out, with gradients from autodiff of the linear model by hand."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(48, 5)).astype(np.float32)
    images = rng.uniform(size=(4, 4, 4, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 3])
    forward = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    x, seen = images.copy(), []
    for _ in range(5):
        probabilities = softmax(forward(x))
        seen.append((x, -np.log(probabilities[range(4), labels]), probabilities.argmax(1) != labels))
        gradient = ((probabilities - np.eye(5)[labels]) @ weights.T).reshape(x.shape)
        x = np.clip(np.clip(x + 0.02 * np.sign(gradient), images - 0.05, images + 0.05), 0, 1).astype(np.float32)
    probabilities = softmax(forward(x))
    seen.append((x, -np.log(probabilities[range(4), labels]), probabilities.argmax(1) != labels))
    expected = x if keep == "last" else np.stack(
        [max(((s[i], v[i], x[i]) for x, v, s in seen), key=lambda t: t[:2])[2] for i in range(4)]
    )  # fmt: skip
    result = attacks.pgd(
        forward, KEY, jnp.asarray(images), jnp.asarray(labels), epsilon=0.05, step_size=0.02, num_steps=5,
        random_start=False, keep=keep,
    )  # fmt: skip
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_fgsm_is_the_fast_gradient_sign_method():
    images, labels = small.batch()
    forward = small.forward()

    def loss(x):
        return objectives.cross_entropy(forward(x), forward(images), labels).sum()

    expected = np.clip(images + BUDGET["linf"] * np.sign(jax.grad(loss)(images)), 0, 1)
    result = attacks.fgsm(forward, KEY, images, labels, epsilon=BUDGET["linf"])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_infofeature_moves_the_class_activation_maps_further_than_pgd():
    images, labels = small.batch(16)
    forward = jax.jit(small.forward())
    options = {"epsilon": 16 / 255, "num_steps": 7}
    moved = {}
    for name, run in {"pgd": attacks.pgd, "infofeature": partial(attacks.infofeature, weight=100.0)}.items():
        perturbed = jax.jit(partial(run, small.forward(), **options))(KEY, images, labels)
        moved[name] = np.linalg.norm((forward(perturbed).cam - forward(images).cam).reshape(16, -1), axis=1)
    assert (moved["infofeature"] > moved["pgd"]).mean() > 0.8


def test_weight_zero_is_pgd():
    images, labels = small.batch()
    options = {"epsilon": BUDGET["linf"], "num_steps": 3}
    pgd = attacks.pgd(small.forward(), KEY, images, labels, **options)
    without = attacks.infofeature(small.forward(), KEY, images, labels, weight=0.0, **options)
    np.testing.assert_allclose(without, pgd, atol=1e-6)


def test_infofeatures_weight_is_that_of_the_paper_unless_given():
    images, labels = small.batch()
    run = partial(attacks.infofeature, small.forward(), KEY, images, labels, epsilon=BUDGET["linf"], num_steps=3)
    np.testing.assert_array_equal(run(), run(weight=0.1))
    assert np.any(run() != run(weight=0.0))


@pytest.mark.parametrize(("distance", "classes"), [("l1", "all"), ("l2", "label")])
def test_infofeature_ascends_the_objective_of_its_options(distance, classes):
    images, labels = small.batch()
    options = {"epsilon": 0.05, "step_size": 0.02, "num_steps": 3}
    run = partial(attacks.infofeature, small.forward(), KEY, images, labels, weight=5.0, **options)
    objective = objectives.infofeature(5.0, distance, classes)
    expected = projected_ascent(small.forward(), KEY, images, labels, objective=objective, **options)
    np.testing.assert_array_equal(run(distance=distance, classes=classes), expected)
    assert np.any(expected != run())


@pytest.mark.parametrize("name", ["fgsm", "feature_scatter", "adversarial_interpolation"])
def test_a_single_step_is_of_epsilon_unless_given(name):
    images, labels = small.batch()
    images = 0.3 + 0.4 * images  # no step ends at the box
    start = images + 0.01 * jax.random.normal(KEY, images.shape)
    forward = small.forward()
    run = partial(attacks.ATTACKS[name], forward, KEY, images, labels, epsilon=0.2, start=lambda key, x: start)
    for given, length in (({"step_size": 0.03}, 0.03), ({}, 0.2)):
        moved = [np.clip(start + sign * length, images - 0.2, images + 0.2) for sign in (-1, 1)]
        found = run(**given)
        assert (np.minimum(*(np.abs(found - end) for end in moved)) < 1e-6).mean() > 0.95


def test_targeted_attacks_reach_the_target_more_often():
    images, labels = small.batch(16)
    forward = small.forward()
    for name in ("pgd", "cw", "infofeature"):
        run = partial(attacks.ATTACKS[name], forward, KEY, images, labels, epsilon=0.2, step_size=0.02)
        probability = lambda x: jax.nn.softmax(forward(x).logits)[jnp.arange(16), labels]  # noqa: E731
        assert (probability(run(targeted=True)) > probability(images)).mean() > 0.9, name
        assert (probability(run()) < probability(images)).mean() > 0.9, name


def test_targeted_cw_succeeds_where_pgd_does():
    """The targets trail by more than the confidence."""
    images, _ = small.batch(32)
    forward = lambda x: 10 * small.forward()(x).logits  # noqa: E731
    order = np.argsort(forward(images), axis=1)
    targets = jnp.asarray(order[:, -2], jnp.int32)
    success = {}
    for name, options in {"pgd": {}, "cw": {"confidence": 0.0}}.items():
        run = partial(attacks.ATTACKS[name], forward, KEY, images, targets, epsilon=0.2, step_size=0.02, targeted=True)
        success[name] = (forward(run(**options)).argmax(1) == targets).mean()
    assert success["cw"] >= success["pgd"] - 0.05 > 0.3


@pytest.mark.parametrize("norm", BUDGET)
@pytest.mark.parametrize("name", ["kl", "feature_scatter"])
def test_the_worst_is_never_a_start_outside_of_ball_or_box(name, norm):
    """The objective is highest at the start, which lies far away."""
    images, labels = small.batch()
    forward = small.forward()
    run = partial(
        attacks.ATTACKS[name], forward, KEY, images, labels, epsilon=0.01, norm=norm, num_steps=2, keep="worst",
        start=lambda key, x: 3 * x + 1,
    )  # fmt: skip
    for options in ({}, {"restarts": 2}, {"num_steps": 0}):
        perturbed = run(**options)
        assert (norms(perturbed, images, norm) <= 0.01).all()
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1
        assert (norms(perturbed, images, norm) > 0).all()  # nor the clean images, for want of a candidate


@pytest.mark.parametrize("restarts", [1, 2])
def test_an_iterate_of_nan_logits_is_a_success(restarts):
    """Steps up to the wall, beyond which the logits are NaN; there class 0, the label, is what argmax says."""
    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, jnp.int32)
    plain = lambda x: jnp.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1)  # noqa: E731
    forward = lambda x: jnp.where(x[:, 0, 0] < 0.45, jnp.nan, plain(x))  # noqa: E731
    perturbed = attacks.pgd(
        forward, KEY, images, labels, epsilon=0.2, step_size=0.06, num_steps=4, keep="worst", restarts=restarts,
        random_start=False,
    )  # fmt: skip
    np.testing.assert_array_equal(objectives.misclassified(forward(perturbed), labels), True)


def test_budgets_of_each_example_are_what_they_are_alone():
    images, labels = small.batch(3)
    epsilon, step_size = np.array([0.01, 0.1, 0.03]), np.array([0.01, 0.02, 0.005], np.float32)
    run = partial(attacks.pgd, small.forward(), KEY, num_steps=3, random_start=False, norm="l2")
    together = run(images, labels, epsilon=jnp.asarray(epsilon), step_size=step_size)
    for i in range(3):
        part = slice(i, i + 1)
        alone = run(images[part], labels[part], epsilon=epsilon[i], step_size=step_size[i])
        np.testing.assert_allclose(together[part], alone, atol=1e-6)


def test_each_restart_has_a_start_of_its_own_and_the_best_is_kept():
    """Random starts alone: per example the one of highest loss, if any misclassified, of those."""
    images, labels = small.batch(8)
    forward = small.forward()
    run = partial(attacks.pgd, forward, images=images, labels=labels, epsilon=0.05, num_steps=0)
    starts = jnp.stack([run(key=key) for key in jax.random.split(KEY, 3)])
    outputs = [forward(x) for x in starts]
    losses = jnp.stack([objectives.cross_entropy(one, one, labels) for one in outputs])
    fooled = jnp.stack([objectives.misclassified(one.logits, labels) for one in outputs])
    best = (losses + 1e3 * fooled).argmax(0)
    assert len(set(best.tolist())) == 3
    np.testing.assert_array_equal(run(key=KEY, restarts=3), starts[best, jnp.arange(8)])


def test_a_start_that_hits_the_target_is_kept():
    """Random starts alone, of which only some hit."""
    images, _ = small.batch(16)
    forward = small.forward()
    run = partial(attacks.pgd, forward, images=images, epsilon=0.3, num_steps=0, targeted=True)
    nothing = jnp.zeros(16, jnp.int32)
    predicted = jnp.stack([forward(run(labels=nothing, key=key)).logits.argmax(1) for key in jax.random.split(KEY, 3)])
    targets = predicted[1]
    assert 0 < (predicted != targets).sum() < 32
    found = run(labels=targets, key=KEY, restarts=3)
    np.testing.assert_array_equal(forward(found).logits.argmax(1), targets)


def test_restarts_and_keeping_the_worst_never_help_the_model():
    images, labels = small.batch(16)
    forward = small.forward()

    def loss(**options):
        perturbed = attacks.pgd(forward, KEY, images, labels, epsilon=0.05, num_steps=4, **options)
        return objectives.cross_entropy(forward(perturbed), forward(images), labels)

    assert (loss(keep="worst") >= loss() - 1e-6).all()


def test_bare_logits_are_enough_where_no_maps_are_needed():
    images, labels = small.batch()
    forward = small.forward()
    bare = attacks.cw(lambda x: forward(x).logits, KEY, images, labels, epsilon=0.05, num_steps=2)
    np.testing.assert_array_equal(bare, attacks.cw(forward, KEY, images, labels, epsilon=0.05, num_steps=2))
    with pytest.raises(InvalidInput, match="no class activation maps"):
        attacks.infofeature(lambda x: forward(x).logits, KEY, images, labels, epsilon=0.05)


class Named(NamedTuple):
    """Another library's outputs: the logits do not come first."""

    loss: float
    logits: jax.Array
    cam: jax.Array


FORMS = {
    "logits": lambda o: o.logits,
    "tuple": lambda o: (o.logits, {"state": 1}),
    "list": lambda o: [o.logits],
    "named": lambda o: Named(0.0, o.logits, o.cam),
    "float64": lambda o: np.float64(1) * o.logits,
}


@pytest.mark.parametrize("form", FORMS)
def test_forwards_may_return_logits_in_other_forms(form):
    images, labels = small.batch()
    other = lambda x: FORMS[form](small.forward()(x))  # noqa: E731
    with jax.enable_x64(form == "float64"):
        found = attacks.pgd(other, KEY, images, labels, epsilon=0.05, num_steps=2, keep="worst")
    expected = attacks.pgd(small.forward(), KEY, images, labels, epsilon=0.05, num_steps=2, keep="worst")
    np.testing.assert_array_equal(found, expected)
    if form == "named":
        attacks.infofeature(other, KEY, images, labels, epsilon=0.05, num_steps=1)


def test_logits_of_another_shape_are_refused():
    images, labels = small.batch()
    for wrong in (lambda x: x.sum(), lambda x: x[0, 0]):
        with pytest.raises(InvalidInput, match=r"logits of shape .* for 6 images: expected \[6, number of classes\]"):
            attacks.fgsm(wrong, KEY, images, labels, epsilon=0.1)
    with pytest.raises(InvalidInput, match=r"a value of type NoneType: expected logits \[6, number of classes\]"):
        attacks.fgsm(lambda x: None, KEY, images, labels, epsilon=0.1)


def change(**changes):
    images, labels = small.batch()
    return {"images": images, "labels": labels, "epsilon": 0.1} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": -0.1}, "epsilon -0.1: expected a finite number >= 0"),
        ({"images": np.full((6, 8, 8, 3), 128, np.uint8)}, "images are uint8: expected floats"),
        ({"images": np.full((6, 8, 8, 3), 2.0, np.float32)}, r"images span \[2, 2\]"),
        ({"images": np.full((6, 8, 8, 3), np.nan, np.float32)}, "images span"),
        ({"labels": np.full(6, 5)}, r"labels span \[5, 5\]: expected 0 to 4"),
        ({"labels": np.full(6, -1)}, r"labels span \[-1, -1\]"),
        ({"labels": np.zeros(5, int)}, r"labels are int64\[5\]: expected integers \[6\]"),
        ({"labels": np.zeros(6)}, "labels are float64"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"num_steps": -1}, "num_steps -1"),
        ({"step_size": float("inf")}, "step_size inf"),
        ({"restarts": 0}, "restarts 0"),
        ({"restarts": np.int64(0)}, "restarts 0"),
        ({"num_steps": np.int32(-1)}, "num_steps -1"),
        ({"num_steps": 2.0}, "num_steps 2.0: expected an integer"),
        ({"step_size": np.float32("nan")}, "step_size nan"),
        ({"step_size": jnp.float32(-0.5)}, "step_size -0.5"),
        ({"step_size": np.array([0.1] * 5 + [-0.25])}, "step_size -0.25"),
        ({"step_size": np.ones(3)}, r"step_size is of shape \[3\]: expected one number or an array \[6\]"),
        ({"epsilon": np.full((6, 1), 0.1)}, r"epsilon is of shape \[6, 1\]"),
        ({"epsilon": jnp.full(8, 0.1)}, r"epsilon is of shape \[8\]"),
        ({"epsilon": jnp.full(6, jnp.nan)}, "epsilon nan"),
        ({"epsilon": "0.1"}, "epsilon '0.1'"),
        ({"bounds": (0.0, float("inf"))}, "bounds"),
        ({"images": np.zeros((6, 8, 8, 3))}, r'images are float64: .*: pass images.astype\("float32"\)'),
        ({"images": np.zeros((6, 8, 8), np.float32)}, r"images are of shape \[6, 8, 8\]: expected \[b, h, w, c\]"),
        ({"images": [[0.5]]}, "images are of type list: expected a JAX or NumPy array"),
        ({"labels": list(range(6))}, "labels are of type list"),
        ({"keep": "first"}, "unknown keep 'first': choose one of last, worst"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors(changes, message):
    with pytest.raises(InvalidInput, match=message):
        attacks.pgd(small.forward(), KEY, **change(**changes))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("kl", {"targeted": True}, "kl knows no target"),
        ("kl", {"random_start": False}, "kl has no gradient at the image itself"),
        ("feature_scatter", {"targeted": True}, "feature_scatter knows no target"),
        ("adversarial_interpolation", {"targeted": True}, "adversarial_interpolation knows no target"),
    ],
)
def test_what_an_attack_would_ignore_is_refused(name, options, message):
    with pytest.raises(InvalidInput, match=message):
        attacks.ATTACKS[name](small.forward(), KEY, **change(**options))


def test_a_start_takes_a_radius_for_each_example():
    images = jnp.full((3, 4, 4, 3), 0.5)
    moved = uniform_start(KEY, images, norm="linf", radius=np.array([0.0, 0.03, 0.1], np.float32)) - images
    largest = np.abs(moved).max((1, 2, 3))
    assert largest[0] == 0
    np.testing.assert_allclose(largest[1:], [0.03, 0.1], rtol=0.1)
