"""The contract of every attack in ATTACKS under all kinds of input: odd dtypes, shapes, models, transformations.

The result has the images' shape, is float32 and finite, and lies exactly in ball and box. AutoAttack, whose loop
runs on the host, refuses to be traced.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import small

from infofeat_jax import attacks
from infofeat_jax.types import InvalidInput

KEY = jax.random.key(3)
NORMS = ("linf", "l2", "l1")
CASES = {
    "fgsm": {},
    "pgd": {"num_steps": 2},
    "cw": {"num_steps": 2, "targeted": True},
    "infofeature": {"num_steps": 2},
    "kl": {"num_steps": 2, "keep": "worst"},
    "feature_scatter": {"num_steps": 2, "keep": "worst", "restarts": 2},
    "adversarial_interpolation": {},
    "apgd": {"num_steps": 2, "loss": "dlr_targeted", "num_targets": 2},
    "fab": {"num_steps": 2, "restarts": 2, "targeted": False},
    "square": {"num_queries": 2},
    "autoattack": {"attacks": ("apgd-ce",), "batch_size": 4},
}
TRACEABLE = [name for name in CASES if name != "autoattack"]
each_attack = pytest.mark.parametrize("name", CASES)
each_traceable = pytest.mark.parametrize("name", TRACEABLE)
each_norm = pytest.mark.parametrize("norm", NORMS)


def test_every_attack_is_here():
    assert CASES.keys() == attacks.ATTACKS.keys()


def problem(shape, num_classes: int, dtype=np.float32):
    """(images of few digits, exact in every dtype, labels)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 9, (*shape, 3)) / 8
    return jnp.asarray(images.astype(dtype)), jnp.asarray(rng.integers(0, num_classes, shape[0]), jnp.int32)


def attack(name: str, forward, norm: str, **options):
    return partial(attacks.ATTACKS[name], forward, norm=norm, **CASES[name], **options)


def check(perturbed, images, epsilon, norm: str):
    """`epsilon` is one number, or one an example."""
    assert perturbed.shape == images.shape
    assert perturbed.dtype == jnp.float32
    perturbed, images = (np.asarray(jnp.asarray(x), np.float64) for x in (perturbed, images))
    assert np.isfinite(perturbed).all()
    assert ((perturbed >= 0) & (perturbed <= 1)).all()
    change = (perturbed - images).reshape(len(images), int(np.prod(images.shape[1:])))
    size = np.linalg.norm(change, ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert (size <= np.asarray(epsilon, np.float64)).all()


@contextlib.contextmanager
def strict():
    """64-bit mode, no rank promotion, and NaN raises."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        yield


def check_each(name: str, perturbed, images, epsilon, norm: str):
    """The last example's budget is large, the first one's zero."""
    check(perturbed, images, epsilon, norm)
    if name not in ("fab", "kl"):  # FAB returns what it cannot break unchanged, KL starts nearby
        least = np.array([-1, *[0] * (len(images) - 2), 0.02])
        assert (np.abs(perturbed - jnp.asarray(images, jnp.float32)).max((1, 2, 3)) > least).all()


@each_norm
@each_traceable
def test_in_a_scan_in_strict_64_bit_mode_on_float16_each_example_its_own_budget(name, norm):
    images, _ = problem((4, 5, 3), 3, np.float16)
    forward = small.forward(3)
    labels = forward(images.astype(jnp.float32)).logits.argmax(-1)
    noisy = lambda x: forward(x + 0.01 * jax.random.normal(KEY, x.shape, x.dtype))  # noqa: E731
    epsilons = np.array([[0.0, 0.03, 0.1, 1.0], [0.0, 0.1, 0.03, 2.0]])
    with strict():
        labels = jnp.asarray(labels, jnp.int64)

        @jax.jit
        def run(key, images, labels, epsilons):
            def one(key, epsilon):
                key, now = jax.random.split(key)
                return key, attack(name, noisy, norm)(now, images, labels, epsilon=epsilon)

            return jax.lax.scan(one, key, epsilons)[1]

        found = run(KEY, images, labels, epsilons)
    for perturbed, epsilon in zip(found, epsilons, strict=True):
        check_each(name, perturbed, images, epsilon, norm)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("name", [name for name in TRACEABLE if name != "kl"])  # whose start is of one scale
def test_other_bounds_are_other_units(name, norm):
    """Images in [-1, 1] with twice the budget: twice the result, but for rounding."""
    images, labels = problem((6, 5, 4), 3)
    forward, epsilon = small.forward(3), {"linf": 0.3, "l1": 6.0}[norm]
    takes_steps = name in ("fgsm", "pgd", "cw", "infofeature", "feature_scatter", "adversarial_interpolation")

    def run(forward, images, scale, **options):
        budget = {"epsilon": scale * epsilon} | ({"step_size": scale * epsilon / 3} if takes_steps else {})
        return jax.jit(attack(name, forward, norm, **budget, **options))(KEY, images, labels)

    expected = run(forward, images, 1.0)
    found = run(lambda z: forward((z + 1) / 2), 2 * images - 1, 2.0, bounds=(-1.0, 1.0))
    check((found + 1) / 2, images, epsilon * (1 + 1e-6), norm)
    assert found.min() < -0.9
    if (name, norm) != ("apgd", "l1"):  # whose start is the projection of normal noise of one scale
        assert (np.abs(found - (2 * expected - 1)) < 1e-4).mean() > 0.95


@pytest.mark.parametrize("norm", ["l2"])
@each_traceable
def test_under_vmap_over_keys_and_budgets_on_bfloat16(name, norm):
    images, labels = problem((4, 3, 6), 4, ml_dtypes.bfloat16)
    keys, epsilons = jax.random.split(KEY, 2), jnp.asarray([0.03, 1.0])
    run = lambda key, epsilon: attack(name, small.forward(4), norm)(key, images, labels, epsilon=epsilon)  # noqa: E731
    found = jax.jit(jax.vmap(run))(keys, epsilons)
    for perturbed, epsilon in zip(found, np.asarray(epsilons, np.float64), strict=True):
        check(perturbed, images, epsilon, norm)
    assert (np.asarray(found[0]) != np.asarray(found[1])).any()


@pytest.mark.parametrize("norm", ["linf"])
@each_attack
def test_one_pixel_of_a_thousand_classes_some_of_which_are_masked(name, norm):
    images, labels = problem((5, 1, 1), 250)
    forward, masked = small.forward(1000), jnp.arange(1000) % 4 > 0

    def some(x):
        outputs = forward(x)
        return outputs._replace(logits=jnp.where(masked[None], -jnp.inf, outputs.logits))

    epsilon = 0.1
    if name == "autoattack":
        found = attack(name, some, norm)(KEY, images, 4 * labels, epsilon=epsilon)
    else:
        found = jax.jit(partial(attack(name, some, norm), epsilon=epsilon))(KEY, images, 4 * labels)
    check(found, images, epsilon, norm)


@pytest.mark.parametrize("norm", ["linf"])
@each_traceable
def test_each_example_its_own_budget_with_8_bit_labels_of_two_classes(name, norm):
    images, _ = problem((3, 2, 2), 2)
    labels = small.forward(2)(images).logits.argmax(-1).astype(jnp.uint8)
    epsilon = np.array([0.0, 0.02, 1.0])
    found = jax.jit(partial(attack(name, small.forward(2), norm), epsilon=epsilon))(KEY, images, labels)
    check_each(name, found, images, epsilon, norm)


@pytest.mark.usefixtures("unchecked")
@each_attack
def test_a_budget_of_another_shape_no_example_and_float64_images(name):
    images, labels = problem((3, 2, 2), 2)
    run = attack(name, lambda x: small.forward(2)(x) if len(x) else 1 / 0, "linf")
    check(run(KEY, images[:0], labels[:0], epsilon=0.1), images[:0], 0.1, "linf")
    with pytest.raises(InvalidInput, match=r"epsilon is of shape \[2\]: expected one number or an array \[3\]"):
        run(KEY, images, labels, epsilon=np.array([0.1, 0.2]))
    with pytest.raises(InvalidInput, match=r"images are float64: .*: pass images.astype\(\"float32\"\)"):
        run(KEY, np.asarray(images, np.float64), labels, epsilon=0.1)
    if name == "autoattack":
        with pytest.raises(InvalidInput, match=r"epsilon is of shape \[3\]: AutoAttack takes one number"):
            run(KEY, images, labels, epsilon=np.array([0.1, 0.2, 0.3]))
        with pytest.raises(InvalidInput, match="runs on the host"):
            jax.jit(lambda key: run(key, images, labels, epsilon=0.1))(KEY)


@pytest.mark.parametrize("norm", ["l2"])
@each_attack
def test_gradients_that_are_zero_at_compile_time(name, norm):
    images, labels = problem((3, 2, 2), 3)
    forward = small.forward(3)
    blind = lambda x: forward(jax.lax.stop_gradient(x))  # noqa: E731
    run = partial(attack(name, blind, norm), epsilon=0.1)
    run = run if name == "autoattack" else jax.jit(run)
    check(run(KEY, images, labels), images, 0.1, norm)
