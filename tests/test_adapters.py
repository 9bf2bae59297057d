"""Other libraries, the real ones where they are installed, attack our models through the adapters."""

import logging
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from infofeat_jax import adapters
from infofeat_jax.adapters.padded import Padded

FORWARD = small.forward()
IMAGES = small.batch(13)[0]
LABELS = np.asarray(FORWARD(IMAGES).logits.argmax(-1))  # every one correct before the attack
EPSILON = 0.05


def cross_entropy(images):
    return -jax.nn.log_softmax(FORWARD(images).logits)[jnp.arange(len(images)), LABELS[: len(images)]].sum()


def check_attacked(perturbed, *, epsilon=EPSILON):
    """Within the ball and the box, and most are misclassified: noise of that size fools few (see below)."""
    assert np.abs(perturbed - IMAGES).max() <= epsilon + 1e-6
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert (FORWARD(jnp.asarray(perturbed)).logits.argmax(-1) == LABELS).mean() <= 0.4


def test_noise_of_that_size_fools_few():
    noise = EPSILON * np.sign(np.random.default_rng(0).normal(size=IMAGES.shape))
    noisy = jnp.asarray(np.clip(IMAGES + noise, 0, 1), jnp.float32)
    assert (FORWARD(noisy).logits.argmax(-1) == LABELS).mean() >= 0.8


def test_few_sizes_are_compiled():
    """An attack that drops broken examples sees all sizes."""
    compiled = []

    def counting(images):
        compiled.append(len(images))
        return FORWARD(images)

    model = Padded(counting)
    for count in range(1, 14):
        logits, pull = model.vjp(IMAGES[:count])
        np.testing.assert_allclose(logits, FORWARD(IMAGES).logits[:count], atol=1e-5)
        np.testing.assert_allclose(model.logits(IMAGES[:count]), logits, atol=1e-5)
        assert pull(np.ones_like(logits)).shape == (count, 8, 8, 3)
    assert set(compiled) == {1, 2, 4, 8, 16}
    assert model._pull._cache_size() == 5


@pytest.mark.parametrize("form", [tuple, list])
def test_forwards_may_return_a_tuple_that_starts_with_logits(form):
    model = Padded(lambda images: form([FORWARD(images).logits, FORWARD(images).maps]))
    np.testing.assert_array_equal(model.logits(IMAGES), Padded(FORWARD).logits(IMAGES))


# PyTorch code.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def as_torch(torch):
    channels_first = np.ascontiguousarray(np.asarray(IMAGES).transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first), torch.from_numpy(LABELS.astype(np.int64))


def as_images(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_pytorch_sees_logits_and_gradients(torch, dtype):
    model, (images, labels) = adapters.pytorch(FORWARD), as_torch(torch)
    images = images.to(getattr(torch, dtype)).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    assert gradient.dtype == images.dtype
    np.testing.assert_allclose(loss.item(), cross_entropy(IMAGES), rtol=1e-5)
    np.testing.assert_allclose(as_images(gradient), jax.grad(cross_entropy)(IMAGES), atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(model(images).numpy(), FORWARD(IMAGES).logits, atol=1e-5)


def test_pytorch_may_change_images_between_forward_and_backward(torch):
    model, (images, labels) = adapters.pytorch(FORWARD), as_torch(torch)
    images.requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(images), labels, reduction="sum")
    expected = jax.grad(cross_entropy)(IMAGES)
    with torch.no_grad():
        images.fill_(0.5)
    loss.backward()
    np.testing.assert_allclose(as_images(images.grad), expected, atol=1e-5)


def test_what_robustbench_calls(torch):
    """Its `benchmark` asks for .training, .to(device), and takes output.max(1)[1] without gradients."""
    model, (images, labels) = adapters.pytorch(FORWARD), as_torch(torch)
    assert not model.training
    model = model.to(torch.device("cpu"))
    with torch.no_grad():
        assert (model(images).max(1)[1] == labels).float().mean() == 1
    assert next(model.parameters()).device == images.device


def test_torchattacks(torch):
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = as_torch(torch)
    attack = torchattacks.PGD(adapters.pytorch(FORWARD), eps=EPSILON, alpha=0.02, steps=10)
    check_attacked(as_images(attack(images, labels)))


def test_official_autoattack(torch, caplog):
    pyautoattack = pytest.importorskip("pyautoattack")
    images, labels = as_torch(torch)
    attack = pyautoattack.AutoAttack(
        adapters.pytorch(FORWARD), norm="Linf", eps=EPSILON, version="custom",
        attacks=["apgd-ce", "apgd-t", "fab-t", "square"], seed=0,
    )  # fmt: skip
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 5
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = 2
    attack.square.n_queries = 20
    with caplog.at_level(logging.WARNING):
        perturbed = attack.run_standard_evaluation(images, labels, batch_size=13)
    check_attacked(as_images(perturbed[0] if isinstance(perturbed, tuple) else perturbed))
    assert not caplog.records  # it finds no random, dynamic or gradient-masking defence


# foolbox and ART.


@pytest.fixture
def foolbox():
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of what it imports
        return pytest.importorskip("foolbox")


@pytest.mark.parametrize("name", ["LinfPGD", "FGSM", "LinfDeepFoolAttack"])
def test_foolbox(foolbox, name):
    model = adapters.foolbox(FORWARD)
    assert foolbox.accuracy(model, IMAGES, jnp.asarray(LABELS)) == 1
    attack = getattr(foolbox.attacks, name)()
    _, perturbed, success = attack(model, IMAGES, jnp.asarray(LABELS), epsilons=EPSILON)
    check_attacked(np.asarray(perturbed))
    np.testing.assert_array_equal(FORWARD(perturbed).logits.argmax(-1) != LABELS, success)


def test_foolbox_attacks_within_other_bounds(foolbox):
    """A model of images in [-1, 1]: the same attack, with twice the budget."""
    labels, attack = jnp.asarray(LABELS), foolbox.attacks.FGSM()
    expected = attack(adapters.foolbox(FORWARD), IMAGES, labels, epsilons=0.1)[1]
    scaled = adapters.foolbox(lambda images: FORWARD((images + 1) / 2), bounds=(-1.0, 1.0))
    found = attack(scaled, 2 * IMAGES - 1, labels, epsilons=0.2)[1]
    assert ((expected == 0) | (expected == 1)).any()  # some pixels are clipped
    np.testing.assert_allclose((found + 1) / 2, expected, atol=1e-6)


@pytest.fixture
def art():
    pytest.importorskip("art")
    return adapters.art(FORWARD, (8, 8, 3), 5)


ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FastGradientMethod", {"eps": EPSILON}),
        ("ProjectedGradientDescent", {"eps": EPSILON, "eps_step": 0.02, "max_iter": 10, "verbose": False}),
        ("AutoProjectedGradientDescent", {"eps": EPSILON, "eps_step": 0.02, "max_iter": 10, "verbose": False}),
        ("SquareAttack", {"eps": EPSILON, "max_iter": 100, "verbose": False}),
    ],
)
def test_art(art, name, options):
    from art.attacks import evasion

    images = np.array(IMAGES)
    assert (art.predict(images).argmax(1) == LABELS).all()
    check_attacked(getattr(evasion, name)(art, **options).generate(images, ONE_HOT))


def test_art_attacks_within_other_bounds(art):
    from art.attacks import evasion

    scaled = adapters.art(lambda images: FORWARD((images + 1) / 2), (8, 8, 3), 5, bounds=(-1.0, 1.0))
    images, attack = np.array(IMAGES), evasion.FastGradientMethod
    expected = attack(art, eps=0.1).generate(images, ONE_HOT)
    assert ((expected == 0) | (expected == 1)).any()  # some pixels are clipped
    np.testing.assert_allclose((attack(scaled, eps=0.2).generate(2 * images - 1, ONE_HOT) + 1) / 2, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [("DeepFool", {"epsilon": 0.02}), ("CarliniL2Method", {"max_iter": 5})])
def test_art_minimal_perturbations(art, name, options):
    """These look for the nearest misclassified image, in no given ball."""
    from art.attacks import evasion

    images = np.array(IMAGES)
    perturbed = getattr(evasion, name)(art, verbose=False, **options).generate(images, ONE_HOT)
    check_attacked(perturbed, epsilon=0.3)


def test_art_derivatives(art):
    assert "ArtClassifier" in repr(art)
    images, jacobian = np.array(IMAGES), jax.jacobian(lambda x: FORWARD(x).logits.sum(0))(IMAGES)
    jacobian = np.moveaxis(jacobian, 0, 1)  # [b, k, h, w, c]
    np.testing.assert_allclose(art.class_gradient(images), jacobian, atol=1e-5)
    np.testing.assert_allclose(art.class_gradient(images, 3), jacobian[:, 3:4], atol=1e-5)
    each = jacobian[np.arange(13), LABELS][:, None]
    np.testing.assert_allclose(art.class_gradient(images, LABELS), each, atol=1e-5)
    gradient = jax.grad(cross_entropy)(IMAGES)
    np.testing.assert_allclose(art.loss_gradient(images, ONE_HOT), gradient, atol=1e-5)
    np.testing.assert_allclose(art.compute_loss(images, ONE_HOT).sum(), cross_entropy(IMAGES), rtol=1e-5)
    np.testing.assert_array_equal(art.loss_gradient(images, np.array(LABELS)), art.loss_gradient(images, ONE_HOT))
    np.testing.assert_array_equal(art.compute_loss(images, np.array(LABELS)), art.compute_loss(images, ONE_HOT))


# The examples with models of other libraries.


@pytest.mark.parametrize(("name", "package"), [("nnx_model", "flax.nnx"), ("equinox_model", "equinox")])
def test_examples_of_other_models(name, package):
    pytest.importorskip(package)
    pytest.importorskip("sklearn")
    root = pathlib.Path(__file__).parent.parent
    # It trains: without LLVM's optimisations it would take four times as long.
    own = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_backend_optimization_level=1", "PYTHONPATH": str(root)}
    command = [sys.executable, f"examples/{name}.py"]
    shown = subprocess.run(command, cwd=root, env=os.environ | own, capture_output=True, text=True, check=True)
    lines = {line.split()[0]: line.split() for line in shown.stdout.splitlines()}
    clean, robust = (float(lines[name][1]) for name in ("clean", "pgd20"))
    assert clean > 80
    assert 0 < robust < clean - 10
