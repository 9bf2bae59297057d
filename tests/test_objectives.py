"""Objectives against their formulas in NumPy, and their gradients where formulas break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax import objectives
from infofeat_jax.types import InvalidInput, Outputs

RNG = np.random.default_rng(0)
LOGITS, CLEAN = (jnp.asarray(3 * RNG.normal(size=(7, 5)), jnp.float32) for _ in range(2))
LABELS = jnp.asarray(RNG.integers(0, 5, 7), jnp.int32)
CAMS = [jnp.asarray(RNG.uniform(size=(7, 3, 3, 5)), jnp.float32) for _ in range(2)]
ROWS = np.arange(7)


def outputs(logits, cam=None):
    return Outputs(logits, cam=cam)


def value_of(objective, *arguments):
    """One compiled program instead of one an operation."""
    return jax.jit(objective)(*arguments)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)


def test_cross_entropy_and_kl():
    value = value_of(objectives.cross_entropy, outputs(LOGITS), outputs(CLEAN), LABELS)
    np.testing.assert_allclose(value, -log_softmax(LOGITS)[ROWS, LABELS], rtol=1e-5)
    kl = (np.exp(log_softmax(CLEAN)) * (log_softmax(CLEAN) - log_softmax(LOGITS))).sum(1)
    value = value_of(objectives.kl_divergence, outputs(LOGITS), outputs(CLEAN), LABELS)
    np.testing.assert_allclose(value, kl, rtol=1e-4)


@pytest.mark.parametrize("confidence", [0.0, 2.0, 50.0])
def test_margin(confidence):
    z = np.asarray(LOGITS, np.float64)
    others = np.where(np.eye(5, dtype=bool)[LABELS], -np.inf, z).max(1)
    expected = -np.maximum(z[ROWS, LABELS] - others + confidence, 0)
    value = value_of(objectives.margin(confidence), outputs(LOGITS), outputs(CLEAN), LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("confidence", [0.0, 2.0, 50.0])
def test_targeted_margin_pulls_until_the_target_leads_by_the_confidence(confidence):
    z = np.asarray(LOGITS, np.float64)
    lead = z[ROWS, LABELS] - np.where(np.eye(5, dtype=bool)[LABELS], -np.inf, z).max(1)
    objective = objectives.margin(confidence, targeted=True)
    value = value_of(objective, outputs(LOGITS), outputs(CLEAN), LABELS)
    np.testing.assert_allclose(value, -np.maximum(confidence - lead, 0), rtol=1e-5, atol=1e-6)
    gradient = value_of(jax.grad(lambda logits: objective(outputs(logits), outputs(CLEAN), LABELS).sum()), LOGITS)
    np.testing.assert_array_equal(gradient[ROWS, LABELS], lead < confidence)


def test_nan_among_the_logits_is_a_misclassification():
    logits = jnp.asarray([[3.0, 1, 2], [jnp.nan] * 3, [3, jnp.nan, 2], [1, 3, 2], [jnp.nan, 1, 2]])
    found = objectives.misclassified(logits, jnp.zeros(5, jnp.int32))
    np.testing.assert_array_equal(found, [False, True, True, True, True])


@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence", "margin", "dlr", "dlr_targeted"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_masked_classes_are_as_if_the_model_did_not_have_them(name, count):
    targets = jnp.asarray([1, 0, 1, 0, 1, 0, 1], jnp.int32)
    parametric = {"margin": objectives.margin(), "dlr_targeted": objectives.dlr_targeted(targets)}
    objective = parametric.get(name) or getattr(objectives, name)

    def values(z, clean):
        return objective(outputs(z), outputs(clean), 1 - targets)

    def masked(z):
        return jnp.concatenate([z, jnp.full((7, 4), -jnp.inf)], 1)

    z, clean = LOGITS[:, :count], CLEAN[:, :count]

    @jax.jit
    def both(z, clean):
        pairs = [values(f(z), f(clean)) for f in (masked, lambda z: z)]
        gradients = [jax.grad(lambda z, f=f: values(f(z), f(clean)).sum())(z) for f in (masked, lambda z: z)]
        return pairs, gradients

    (pair, gradients) = both(z, clean)
    np.testing.assert_allclose(*pair, rtol=1e-6)
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", ["all", "label"])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_cam_distance(distance, classes):
    a, b = (np.asarray(c, np.float64) for c in CAMS)
    if classes == "label":
        a, b = (c[ROWS, :, :, LABELS] for c in (a, b))
    a, b = a.reshape(7, -1), b.reshape(7, -1)
    expected = {
        "l2": np.sqrt(((a - b) ** 2).sum(1)),
        "l1": np.abs(a - b).sum(1),
        "cosine": 1 - (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)),
    }[distance]
    objective = objectives.cam_distance(distance, classes)
    value = value_of(objective, outputs(LOGITS, CAMS[0]), outputs(CLEAN, CAMS[1]), LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_infofeature_is_equation_7():
    arguments = outputs(LOGITS, CAMS[0]), outputs(CLEAN, CAMS[1]), LABELS
    value = objectives.infofeature(0.3)(*arguments)
    expected = objectives.cross_entropy(*arguments) + 0.3 * objectives.cam_distance()(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    targeted = objectives.infofeature(0.3, targeted=True)(*arguments)
    np.testing.assert_allclose(targeted - value, -2 * objectives.cross_entropy(*arguments), rtol=1e-5)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("cam", [np.zeros((2, 3, 3, 5)), np.full((2, 3, 3, 5), 0.3)], ids=["zero", "equal"])
def test_cam_distance_has_finite_gradient_at_zero_distance(distance, cam):
    cam = jnp.asarray(cam, jnp.float32)
    clean = outputs(LOGITS[:2], cam)

    def total(c):
        return objectives.cam_distance(distance)(outputs(LOGITS[:2], c), clean, LABELS[:2]).sum()

    assert np.isfinite(value_of(jax.grad(total), cam)).all()


@pytest.mark.parametrize("scale", [0.0, 40.0, 1e4])
@pytest.mark.parametrize("name", ["cross_entropy", "kl_divergence", "margin", "dlr"])
def test_values_and_gradients_are_finite_at_any_scale(name, scale):
    objective = {**vars(objectives), "margin": objectives.margin()}[name]

    def total(z, clean):
        return objective(outputs(scale * z), outputs(scale * clean), LABELS).sum()

    for found in jax.tree.leaves(value_of(jax.value_and_grad(total, argnums=(0, 1)), LOGITS, CLEAN)):
        assert np.isfinite(found).all()


def test_errors():
    with pytest.raises(InvalidInput, match="unknown CAM distance 'l3': choose one of cosine, l1, l2"):
        objectives.cam_distance("l3")
    with pytest.raises(InvalidInput, match="unknown CAM classes 'some'"):
        objectives.cam_distance(classes="some")
    with pytest.raises(InvalidInput, match="no class activation maps"):
        objectives.cam_distance()(outputs(LOGITS), outputs(CLEAN), LABELS)
    for confidence in (float("nan"), -1.0):
        with pytest.raises(InvalidInput, match="confidence"):
            objectives.margin(confidence)
    with pytest.raises(InvalidInput, match="weight nan"):
        objectives.infofeature(float("nan"))
