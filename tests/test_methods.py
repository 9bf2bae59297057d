"""Training methods against published code, against formulas where it has none, and one contract for all."""

from contextlib import nullcontext
from functools import cache, partial

import flax.linen as nn
import golden_methods
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from infofeat_jax import attacks, method_names, methods, objectives
from infofeat_jax.attacks import coupled
from infofeat_jax.attacks.gradient import gaussian_start
from infofeat_jax.methods import METHODS, VARIANTS, Batch, Options, labels, losses
from infofeat_jax.models import layers
from infofeat_jax.training.state import State
from infofeat_jax.training.step import make_step
from infofeat_jax.types import InvalidInput, Outputs

KEY = jax.random.key(0)
SCALES = ["k10/s0.1", "k10/s1", "k10/s10", "k10/s40", "k100/s10"]
# Compiles in a third of the time; the tests run little of what they compile.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ALL = [(name, variant) for name in METHODS for variant in VARIANTS.get(name, (None,))]
EPSILON = 8 / 255  # of images in [0, 1]; 16/255 on the [-1, 1] of the published code


# Labels, as recorded.


@pytest.mark.parametrize("num_classes", [10, 100])
def test_smoothed_and_interpolated_labels(num_classes):
    golden = golden_methods.group(f"k{num_classes}")
    y = jnp.asarray(golden["labels"])
    for strength in (0.1, 0.5):
        smoothed = labels.smooth(y, num_classes, strength)
        np.testing.assert_allclose(smoothed, golden[f"fs_smooth_{strength}"], atol=1e-6)
    for strength in (0.2, 0.5):
        interpolated = labels.interpolate(y, num_classes, strength)
        np.testing.assert_allclose(interpolated, golden[f"advinterp_labels_{strength}"], atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_bilateral_labels(scale):
    golden = golden_methods.group(scale)
    logits, y = jnp.asarray(golden["logits"]), jnp.asarray(golden["labels"])
    method = methods.create("bilateral", Options(logits.shape[1], {}))
    found = method.targets(lambda images: Outputs(logits), jnp.zeros((len(y), 1, 1, 1)), y)
    # At s40 the published float32 code is 3e-5 away from its own formula in float64.
    atol = 5e-5 if scale.endswith("s40") else 1e-5
    np.testing.assert_allclose(found, golden["bilateral_labels"], atol=atol)
    np.testing.assert_allclose(found, bilateral_in_float64(golden["logits"], golden["labels"]), atol=1e-6)


def bilateral_in_float64(logits, y):
    z = np.asarray(logits, np.float64)
    p = np.exp(z - z.max(1, keepdims=True))
    surprise = -np.log(p / p.sum(1, keepdims=True) + 1e-8)
    expected = np.zeros_like(z)
    for row, label in enumerate(y):
        wrong = np.delete(np.arange(z.shape[1]), label)
        excess = surprise[row, wrong] - surprise[row, wrong].min() + 0.01
        total = 1 / (1 + 9 * excess.max() / excess.sum())
        expected[row, wrong] = total * excess / excess.sum()
        expected[row, label] = 1 - total
    return expected


def test_bilateral_labels_smooth_uniform_predictions():
    y = jnp.arange(4)
    for strength in (0.0, 0.3):
        found = labels.bilateral(jnp.zeros((4, 6)), y, strength)
        np.testing.assert_allclose(found, labels.smooth(y, 6, strength), atol=1e-6)


# Losses, as recorded. The "model" passes logits through: an image is a row of logits.


def read_logits(images):
    return Outputs(images[:, 0, 0])


@partial(quick_jit, static_argnums=0)
def loss_and_gradients(method, clean, perturbed, y):
    """(the mean loss, its gradients with respect to clean and perturbed logits)."""
    targets = method.targets(None, None, y)

    def mean(clean, perturbed):
        batch = Batch(clean[:, None, None], perturbed[:, None, None], y, targets)
        return method.loss(read_logits, batch)[0].mean()

    return jax.value_and_grad(mean, argnums=(0, 1))(clean, perturbed)


@pytest.mark.parametrize("name", sorted({*methods.METHODS} - {"adversarial_interpolation", "bilateral"}))
def test_label_smoothing_reaches_every_method_with_smoothed_targets(name):
    """The two others' targets are of their own making; Feature Scattering smooths by 0.5 unless told."""
    y = jnp.arange(5)
    for given, strength in ((0.3, 0.3), (None, 0.5 if name == "feature_scatter" else 0.0)):
        method = methods.create(name, Options(5, {}, label_smoothing=given))
        naive = np.eye(5) * (1 - strength) + (1 - np.eye(5)) * strength / 4
        np.testing.assert_allclose(method.targets(None, None, y), naive, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "function", "default", "variant"),
    [
        ("alp", "logit_pairing", 0.1, "paper"), ("alp", "logit_pairing", 0.1, "code"),
        ("feature_matching", "map_matching", 10.0, "code"), ("feature_matching", "cam_pairing", 10.0, "paper"),
        ("trades", "trades", 6.0, None), ("mart", "mart", 5.0, None),
    ],
)  # fmt: skip
def test_the_weight_reaches_the_loss_and_has_its_papers_default(monkeypatch, name, function, default, variant):
    monkeypatch.setattr(losses, function, lambda weight, *_, **__: weight)
    options = Options(5, {}, variant=variant)
    assert methods.create(name, options).loss == default
    assert methods.create(name, options._replace(weight=0.7)).loss == 0.7


@cache
def create(name, num_classes):
    return methods.create(name, Options(num_classes, {}))


@pytest.mark.parametrize("name", ["trades_beta6", "mart_beta5"])
@pytest.mark.parametrize("scale", SCALES)
def test_trades_and_mart_losses_and_gradients(scale, name):
    golden = golden_methods.group(scale)
    arrays = (golden["logits"], golden["logits_adv"], golden["labels"])
    value, gradients = loss_and_gradients(create(name.split("_")[0], golden["logits"].shape[1]), *arrays)
    np.testing.assert_allclose(value, golden[name], rtol=1e-4 if scale.endswith("s40") else 1e-5, atol=1e-6)
    for which, gradient in zip(("nat", "adv"), gradients, strict=True):
        assert jnp.isfinite(gradient).all()
        recorded = golden[f"{name}_grad_{which}"]
        finite = np.isfinite(recorded)  # the published code underflows at s40
        assert finite.all() == (not (scale.endswith("s40") and which == "nat"))
        np.testing.assert_allclose(gradient[finite], recorded[finite], atol=1e-6 + 1e-4 * abs(gradient).max())


@pytest.mark.parametrize("scale", [0.0, 40.0, 1e4])
@pytest.mark.parametrize("name", ["trades", "mart"])
def test_losses_are_finite_at_any_scale(name, scale):
    golden = golden_methods.group("k10/s1")
    clean, perturbed = (np.float32(scale) * golden[key] for key in ("logits", "logits_adv"))
    values = loss_and_gradients(create(name, 10), clean, perturbed, golden["labels"])
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize("scale", ["k10/s1", "k10/s40"])
def test_cross_entropies_and_margin(scale):
    golden = golden_methods.group(scale)
    y = jnp.asarray(golden["labels"])
    smoothed = labels.smooth(y, 10, 0.5)

    def soft(outputs, clean, y):
        images = outputs.logits[:, None, None]
        return losses.adversarial_cross_entropy(read_logits, Batch(images, images, y, smoothed))[0]

    cases = (
        ("ce", objectives.cross_entropy, "ce_grad", 1),
        ("cw50", objectives.margin(50.0), "cw50_mean_grad", len(y)),  # recorded of the mean
        ("soft_ce_ls0.5", soft, "soft_ce_ls0.5_grad", 1),
    )
    for name, objective, gradient_name, divisor in cases:
        values = lambda z, f=objective: f(Outputs(z), Outputs(z), y)  # noqa: E731
        compiled = quick_jit(lambda z, f=values: (f(z), jax.grad(lambda z: f(z).sum())(z)))
        value, gradient = compiled(jnp.asarray(golden["logits"]))
        gradient = gradient / divisor
        np.testing.assert_allclose(value, golden[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            gradient, golden[gradient_name], atol=1e-6 + 1e-4 * abs(gradient).max(), err_msg=name
        )


# Attacks, as recorded, from the recorded starts.


def share_equal(a, b, atol=1e-6):
    return np.mean(np.abs(np.asarray(a) - np.asarray(b)) <= atol)


@quick_jit
def evaluate(forward, images):
    return forward(images)


@partial(quick_jit, static_argnums=0)
def gradient_at(objective, forward, images, start, y):
    clean = forward(images)
    total = lambda x: objective(forward(x), clean, y).sum()  # noqa: E731
    return jax.value_and_grad(total)(start)


def run_from(noise, attack, forward, images, y, **options):
    """The attack from `images` + `noise`, as recorded."""
    compiled = quick_jit(partial(attack, start=lambda key, x: x + noise, **options))
    return compiled(forward, KEY, images, y)


@partial(quick_jit, static_argnums=(0, 1))
def loss_and_statistics(method, training, images, perturbed, y):
    """(the method's loss, its number of passes, the statistics after the last)."""
    forward, passes = training()
    targets = method.targets(None, images, y)
    value = method.loss(forward, Batch(images, perturbed, y, targets))[0].mean()
    return value, len(passes) - 1, passes[-1]


@pytest.mark.parametrize(
    ("name", "objective", "value_name", "factor"),
    [
        ("feature_scatter", coupled.transport_cost(), "ot_loss", 1),
        ("adversarial_interpolation", coupled.partner_similarity, "loss", -1 / 8),  # recorded: mean distance
    ],
)
def test_batch_coupled_methods(name, objective, value_name, factor):
    golden = golden_methods.group({"feature_scatter": "fs_step"}.get(name, "advinterp_step"))
    frozen, training, images, y, noise = golden_methods.feature_scatter_batch()
    value, gradient = gradient_at(objective, frozen, images, images + noise, y)
    np.testing.assert_allclose(value * factor, golden[value_name], rtol=1e-4)
    expected = golden["gradient"] / factor
    np.testing.assert_allclose(gradient[:1], expected, atol=1e-3 * abs(expected).max())
    assert np.mean(np.sign(gradient * factor) == golden_methods.unpack_signs(golden, images.shape)) > 0.999
    method = methods.create(name, Options(10, {"epsilon": EPSILON}))
    perturbed = run_from(noise, method.attack, frozen, images, y)
    assert share_equal(perturbed[:1], golden["x_adv"]) > 0.999
    if name == "feature_scatter":
        loss, passes, _ = loss_and_statistics(method, training, images, perturbed, y)
        np.testing.assert_allclose(loss, golden["train_loss"], rtol=1e-4)
        assert passes == 1
    else:
        np.testing.assert_allclose(method.targets(frozen, images, y), golden["y_adv"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "attack", "objective"),
    [("pgd7", attacks.pgd, objectives.cross_entropy), ("cw_pgd7", attacks.cw, objectives.margin(50.0))],
)
def test_pgd_and_cw(name, attack, objective):
    golden = golden_methods.group(name)
    frozen, _, images, y, noise = golden_methods.feature_scatter_batch()
    options = {"epsilon": EPSILON, "step_size": 2 / 255, "num_steps": 7, "clip_start": False}
    perturbed = run_from(noise, attack, frozen, images, y, **options)
    assert share_equal(perturbed[:1], golden["x_adv"]) > 0.99
    outputs = evaluate(frozen, perturbed)
    np.testing.assert_allclose(objective(outputs, outputs, y).mean(), golden["loss_adv_mean"], rtol=1e-3)
    np.testing.assert_allclose(outputs.logits, golden["logits_adv"], atol=0.01)


def test_trades_attack():
    golden = golden_methods.group("trades")
    frozen, _, images, y = golden_methods.trades_batch()
    noise = jnp.zeros_like(images).at[:4].set(0.001 * golden["start_randn"])  # recorded of four images
    _, gradient = gradient_at(objectives.kl_divergence, frozen, images, images + noise, y)
    signs = golden_methods.unpack_signs(golden, (4, *images.shape[1:]))
    assert np.mean(np.sign(gradient[:4]) == signs) > 0.995
    options = {"epsilon": 0.031, "step_size": 0.007, "num_steps": 10}
    perturbed = run_from(noise, attacks.kl, frozen, images, y, **options)
    clean, found, recorded = (evaluate(frozen, x) for x in (images, perturbed, golden["x_adv"]))
    recorded = objectives.kl_divergence(recorded, clean, y)
    np.testing.assert_allclose(recorded.sum(), golden["kl_final_sum"], rtol=1e-4)
    found = objectives.kl_divergence(found, clean, y)
    np.testing.assert_allclose(found[:4].sum(), recorded[:4].sum(), rtol=2e-3)


def test_trades_update_makes_three_passes():
    golden = golden_methods.group("trades")
    _, training, images, y = golden_methods.trades_batch()
    method = methods.create("trades", Options(10, {}))
    loss, passes, statistics = loss_and_statistics(method, training, images, jnp.asarray(golden["x_adv"]), y)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    assert passes == 3
    for module, found in {"bn1": statistics["bn1"], "layer4.0.bn2": statistics["layer4_0"]["bn2"]}.items():
        for name in ("mean", "var"):
            recorded = golden[f"after_train/{module}.running_{name}"]
            np.testing.assert_allclose(found[name], recorded, rtol=1e-4, atol=1e-6)


def test_trades_goes_back_through_two_of_its_passes():
    """The third is only for the statistics: a backward pass costs twice as much, and its activations would be kept."""
    backward = []

    @jax.custom_vjp
    def model(scale, images):
        return scale * images

    def differentiate(kept, cotangent):
        backward.append(cotangent.shape)
        return jnp.vdot(cotangent, kept[1]), kept[0] * cotangent

    model.defvjp(lambda scale, images: (scale * images, (scale, images)), differentiate)
    passes, (clean, perturbed) = [], jax.random.normal(KEY, (2, 4, 1, 1, 5))
    y = jnp.arange(4)

    def loss(scale):
        def forward(images):
            passes.append(images)
            return read_logits(model(scale, images))

        return create("trades", 5).loss(forward, Batch(clean, perturbed, y, jax.nn.one_hot(y, 5)))[0].mean()

    jax.grad(loss)(1.5)
    assert (len(passes), len(backward)) == (3, 2)


def test_gaussian_start():
    x = jnp.full((4, 16, 16, 3), 0.5)
    attack = partial(attacks.kl, lambda x: x[:, 0, 0], epsilon=0.1, num_steps=0)
    noise = np.asarray(quick_jit(attack)(KEY, x, jnp.zeros(4, jnp.int32))) - 0.5
    np.testing.assert_allclose(noise.std(), 0.001, rtol=0.1)
    assert abs(noise.mean()) < 1e-4


# Pairing losses: no published values; the formulas, written out.


def pairing_batch():
    rng = np.random.default_rng(3)
    shapes = {
        "logits": (8, 5),
        "features": (8, 6),
        "maps": (8, 2, 3, 6),
        "cam": (8, 2, 3, 5),
        "kernel": (6, 5),
    }
    arrays = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    outputs = Outputs(**arrays)
    images, y = small.batch(4)
    perturbed = images[:, ::-1]

    def forward(both):
        np.testing.assert_array_equal(both, jnp.concatenate([images, perturbed]))
        return outputs

    return forward, Batch(images, perturbed, y, labels.smooth(y, 5, 0.2)), arrays


def cross_entropy(logits, targets):
    return -(np.asarray(targets) * np.asarray(jax.nn.log_softmax(logits))).sum(-1)


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_every_loss_gives_the_logits_of_the_perturbed_images(name, variant):
    """By which the training accuracy is measured; TRADES' last pass is of the clean ones."""
    _, batch, arrays = pairing_batch()
    rows = {"clean": slice(0, 4), "perturbed": slice(4, 8), "both": slice(0, 8)}

    def by_pass(images):
        which = "both" if len(images) == 8 else "perturbed" if images is batch.perturbed else "clean"
        outputs = {name: array[rows[which]] for name, array in arrays.items() if name != "kernel"}
        return Outputs(**outputs, kernel=arrays["kernel"])

    method = methods.create(name, Options(5, {}, variant=variant))
    np.testing.assert_array_equal(method.loss(by_pass, batch)[1], arrays["logits"][4:])


@pytest.mark.parametrize("variant", VARIANTS["alp"])
def test_logit_pairing(variant):
    forward, batch, arrays = pairing_batch()
    found = methods.create("alp", Options(5, {}, 0.3, variant=variant)).loss(forward, batch)[0]
    clean, perturbed = arrays["logits"][:4], arrays["logits"][4:]
    expected = cross_entropy(perturbed, batch.targets)
    if variant == "code":
        expected = (expected + cross_entropy(clean, batch.targets)) / 2
    np.testing.assert_allclose(found, expected + 0.3 * ((clean - perturbed) ** 2).mean(1), rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS["feature_matching"])
def test_feature_matching(variant):
    forward, batch, arrays = pairing_batch()
    method = methods.create("feature_matching", Options(5, {}, 0.3, distance="l1", variant=variant))
    found = method.loss(forward, batch)[0]
    clean, perturbed = arrays["logits"][:4], arrays["logits"][4:]
    expected = cross_entropy(perturbed, batch.targets)
    if variant == "code":
        halves = (arrays["maps"][:4], arrays["maps"][4:])
        halves = (Outputs(None, maps=maps, kernel=arrays["kernel"]) for maps in halves)
        first, second = (losses.grad_cam(half, batch.labels) for half in halves)
        expected = (expected + cross_entropy(clean, batch.targets)) / 2
        expected = expected + 0.3 * ((first - second) ** 2).mean((1, 2))
        expected = expected + 2 * ((clean - perturbed) ** 2).mean(1)
    else:
        expected = expected + 0.3 * abs(arrays["cam"][:4] - arrays["cam"][4:]).sum((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_grad_cam_is_the_gradient_of_the_label_logit():
    """At Feature Matching's own sizes (128 images, 8 x 8 maps, 10 classes) also as its code normalises it."""
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.uniform(size=(128, 8, 8, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(6, 10)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 128), jnp.int32)
    outputs = Outputs(None, maps=maps, kernel=kernel)
    label_logits = lambda maps: objectives.label_logit(maps.mean((1, 2)) @ kernel, y)  # noqa: E731

    gradient = quick_jit(jax.grad(lambda maps: label_logits(maps).sum()))(maps)
    expected = jax.nn.relu((gradient.mean((1, 2))[:, None, None] * maps).sum(-1))
    np.testing.assert_allclose(losses.grad_cam(outputs, y, normalize=False), expected, rtol=1e-4, atol=1e-6)

    gradient = gradient / (128 * 10)  # its code takes the mean of all logits, masked by the label
    gradient = gradient / (jnp.sqrt(jnp.square(gradient).mean()) + 1e-5)
    expected = jax.nn.relu((gradient.mean((1, 2))[:, None, None] * maps).sum(-1))
    np.testing.assert_allclose(losses.grad_cam(outputs, y), expected, rtol=1e-4, atol=1e-5)


def test_grad_cam_of_a_zero_kernel_has_a_finite_gradient():
    maps, y = jnp.ones((4, 2, 2, 3)), jnp.zeros(4, jnp.int32)
    total = lambda kernel: losses.grad_cam(Outputs(None, maps=maps, kernel=kernel), y).sum()  # noqa: E731
    assert np.isfinite(quick_jit(jax.grad(total))(jnp.zeros((3, 5)))).all()


# The contract of all methods.


def attack_options(name):
    steps = (1, 0.1) if name in method_names.ONE_STEP else (2, 0.06)
    return {"epsilon": 0.1, "norm": "linf", "num_steps": steps[0], "step_size": steps[1]}


@jax.custom_vjp
def poisoned(x, dependence):
    """x. The gradient of whatever reaches through it is NaN."""
    return x


def _poison(saved, gradient):
    return jnp.full(saved[0].shape, jnp.nan), jnp.full(saved[1].shape, jnp.nan)


poisoned.defvjp(lambda x, dependence: (x, (x, dependence)), _poison)


class Tiny(nn.Module):
    """The smallest network with all outputs that methods read: it compiles in a tenth of a ResNet's time."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = layers.Conv(4, 3, 2, jnp.dtype("float32"), name="conv")(images)
        return layers.Head(5, name="head")(jax.nn.relu(layers.BatchNorm(4, name="bn")(x, train=train)))


def train_step(method):
    """(State before, State after, metrics, what the loss was given) of one update of a tiny network."""
    module, (images, y), optimizer = Tiny(), small.batch(8), optax.sgd(0.1)
    variables = quick_jit(module.init)(KEY, images)
    params = variables["params"]
    state = State(jnp.int32(0), params, variables["batch_stats"], optimizer.init(params))
    seen = {}

    def attack(forward, key, images, y):
        perturbed = method.attack(forward, key, images, y)
        seen["perturbed"], seen["images"] = perturbed, images
        return poisoned(perturbed, forward(images).logits)

    def targets(forward, images, y):
        seen["targets"] = method.targets(forward, images, y)
        return poisoned(seen["targets"], forward(images).logits)

    watched = method._replace(attack=method.attack and attack, targets=targets)
    plain_step = make_step(module, watched, optimizer)

    @quick_jit
    def step(state, batch):
        after, metrics = plain_step(state, batch, KEY)
        return after, metrics, dict(seen)

    return state, *step(state, (jnp.round(images * 255).astype(jnp.uint8), y))


def changes(before, after):
    """The largest change of each array."""
    return [abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_contract(name, variant):
    method = methods.create(name, Options(5, attack_options(name), variant=variant))
    before, after, metrics, seen = train_step(method)
    assert jnp.isfinite(metrics["loss"])
    # Finite also because no gradient ran back through attack and targets, where it would have become NaN.
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert min(changes(before.params, after.params)) > 0
    assert min(changes(before.batch_stats, after.batch_stats)) > 0
    assert (seen["targets"] >= 0).all()
    np.testing.assert_allclose(seen["targets"].sum(-1), 1, rtol=1e-5)
    if method.attack is not None:
        difference = abs(seen["perturbed"] - seen["images"]).max()
        assert 0.01 < difference <= 0.1 + 1e-6
        assert 0 <= seen["perturbed"].min() <= seen["perturbed"].max() <= 1


@pytest.mark.parametrize(
    ("name", "variant", "attack", "own"),
    [
        ("madry", None, attacks.pgd, {}),
        ("alp", "code", attacks.pgd, {}),
        ("feature_matching", "code", attacks.pgd, {}),
        ("feature_scatter", "code", attacks.feature_scatter, {"space": "logits"}),
        ("feature_scatter", "paper", attacks.feature_scatter, {"space": "features"}),
        ("adversarial_interpolation", None, attacks.adversarial_interpolation, {}),
        ("trades", None, attacks.kl, {}),
        ("mart", None, attacks.pgd, {"start": gaussian_start, "clip_start": False}),
    ],
)
def test_each_method_trains_with_its_attack(name, variant, attack, own):
    found = methods.create(name, Options(5, {"epsilon": 0.1}, variant=variant)).attack
    assert found.func is attack
    assert found.keywords == {"epsilon": 0.1, **own}


def test_bilateral_training_attacks_towards_the_most_likely_wrong_class():
    images, y = small.batch(16)
    forward = small.forward()
    perturbed = methods.create("bilateral", Options(5, {"epsilon": 0.1, "step_size": 0.02})).attack(
        forward, KEY, images, y
    )
    before, after = (np.asarray(jax.nn.log_softmax(forward(x).logits)) for x in (images, perturbed))
    others = np.where(jax.nn.one_hot(y, 5), -np.inf, before)
    rows = np.arange(16), others.argmax(1)
    assert (after[rows] > before[rows]).mean() > 0.9


def test_what_is_transported():
    rng = np.random.default_rng(0)
    clean, perturbed = ([jnp.float32(rng.normal(size=(4, count))) for count in (5, 7)] for _ in range(2))
    y = jnp.zeros(4, jnp.int32)
    swapped = [Outputs(features, logits) for logits, features in (perturbed, clean)]
    plain = [Outputs(logits, features) for logits, features in (perturbed, clean)]
    of_features = coupled.transport_cost("features")(*plain, y)
    np.testing.assert_array_equal(of_features, coupled.transport_cost("logits")(*swapped, y))
    assert np.abs(of_features - coupled.transport_cost("logits")(*plain, y)).max() > 1e-3


def test_the_contract_notices_a_gradient_through_the_attack():
    def total(w):
        return (poisoned(jnp.ones(3), w * jnp.ones(3)) * w).sum()

    assert jnp.isnan(jax.grad(total)(1.0))


@pytest.mark.parametrize(
    ("attack", "is_coupled"),
    [(attacks.feature_scatter, True), (attacks.adversarial_interpolation, True), (attacks.kl, False)],
)
def test_who_depends_on_the_batch(attack, is_coupled):
    images, y = small.batch(8)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(192, 5)), jnp.float32)

    def forward(x):
        logits = 1 + 0.02 * (x - 0.5).reshape(8, -1) @ weights  # similar enough for a plan off the diagonal
        return Outputs(logits, logits)

    run = quick_jit(lambda x: attack(forward, KEY, x, y, epsilon=0.1))
    others = images.at[1:].set(images[1:][:, ::-1])
    assert (abs(run(images)[0] - run(others)[0]).max() > 1e-3) == is_coupled


def test_adversarial_interpolation_needs_features():
    images, y = small.batch()
    with pytest.raises(InvalidInput, match="returned no features"):
        jax.eval_shape(partial(attacks.adversarial_interpolation, lambda x: x[:, 0, 0], epsilon=0.1), KEY, images, y)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fgsm", {}, "unknown method 'fgsm'"),
        ("alp", {"weight": -1.0}, "weight"),
        ("feature_scatter", {"label_smoothing": 1.0}, "label_smoothing"),
        ("alp", {"variant": "official"}, "choose one of code, paper"),
        ("madry", {"variant": "code"}, "madry has none"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(InvalidInput, match=message):
        methods.create(name, Options(10, attack_options(name), **options))


@pytest.mark.parametrize(
    ("name", "strength", "num_classes", "refused"),
    [
        ("feature_scatter", None, 2, True), ("feature_scatter", 0.2, 2, False), ("feature_scatter", None, 3, False),
        ("madry", None, 2, False), ("madry", 0.9, 10, True), ("madry", 0.9, 100, False),
        ("adversarial_interpolation", None, 2, False), ("package.module:mine", 0.9, 2, False),
    ],
)  # fmt: skip
def test_smoothing_must_leave_the_label_the_likeliest(name, strength, num_classes, refused):
    with pytest.raises(InvalidInput, match=r"the others: expected below 0\.") if refused else nullcontext():
        methods.check_smoothing(name, strength, num_classes)


def test_space_of_feature_scattering_is_checked():
    with pytest.raises(InvalidInput, match="features, logits"):
        coupled.transport_cost("maps")
