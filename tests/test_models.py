"""Networks: sizes, the loop-safe convolution, batch normalisation against PyTorch's rule, compute types."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from infofeat_jax import models
from infofeat_jax.models import layers
from infofeat_jax.types import InvalidInput


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_173_962),
        ("preact_resnet18", 11_172_170),
        ("wrn_28_10", 36_479_194),
        ("wrn_34_10", 46_160_474),
    ],
)
def test_number_of_parameters(name, count):
    module = models.create(name, num_classes=10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == count


def test_batch_norm_keeps_the_unbiased_variance():
    bn = layers.BatchNorm(3)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3)) * 2 + 1
    variables = bn.init(jax.random.key(0), x, train=True)
    y, moved = bn.apply(variables, x, train=True, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 0.1 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(y.reshape(-1, 3), (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5), atol=1e-5)


def test_relu_of_a_sum_is_relu():
    """Value, derivative (0 at 0) and second derivative."""
    x = jnp.array([-1.0, -0.0, 0.0, 1e-30, 2.0]).reshape(1, 1, 1, 5)
    for ours, plain in zip(*(derivatives(f, x) for f in (layers.relu_of_sum, jax.nn.relu)), strict=True):
        np.testing.assert_array_equal(ours, plain)


def derivatives(function, x):
    squared = lambda x: jnp.square(function(x)).sum()  # noqa: E731
    return function(x), jax.grad(lambda x: function(x).sum())(x), jax.hessian(squared)(x)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_the_mask_of_a_blocks_last_relu_is_read_from_its_result_on_gpus(platform):
    """Else XLA reads what was added, to add it again. One barrier for each of the four blocks."""
    module, images = models.create("resnet10", num_classes=3, width=4), jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    variables = jax.eval_shape(module.init, jax.random.key(0), images)

    def loss(variables, x):
        outputs, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.square(outputs.logits).sum()

    text = jax.jit(jax.grad(loss)).trace(variables, images).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.optimization_barrier") == (0 if platform == "tpu" else 4)
    chosen, compared = (re.findall(p, text) for p in (r'(%\w+) = "stablehlo.case"', r"stablehlo.compare +GT, (%\w+)"))
    assert len(set(chosen) & set(compared)) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mean", [0.0, 1e3, -1e4])
def test_batch_norm_of_large_means(mean, dtype):
    """Statistics and output against float64, the running mean being within 3 standard deviations of the mean."""
    bn, std = layers.BatchNorm(3), 1.0 if dtype == "float32" else 1.0 + abs(mean) / 16  # bfloat16 has 8 bits
    x = (mean + std * jax.random.normal(jax.random.key(0), (4, 8, 8, 3))).astype(dtype)
    before = {"mean": jnp.asarray([mean, mean - 3 * std, mean + 3 * std]), "var": jnp.ones(3)}
    variables = {"params": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, -1.0)}, "batch_stats": before}
    y, moved = jax.jit(partial(bn.apply, train=True, mutable=["batch_stats"]))(variables, x)
    wide = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(
        moved["batch_stats"]["mean"], 0.9 * np.asarray(before["mean"], np.float64) + 0.1 * wide.mean(0), rtol=1e-6
    )
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-4)
    expected = 2 * (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5) - 1
    precise = {"atol": 1e-4} if dtype == "float32" else {"rtol": 2**-8, "atol": 1e-4}
    np.testing.assert_allclose(np.asarray(y, np.float64).reshape(-1, 3), expected, **precise)


@pytest.mark.parametrize("far", [0.0, 3.0, 30.0, 1e3, 1e5])
def test_the_error_of_the_variance_is_as_stated(far):
    """A sum's times 1 + (mean - shift)^2 / var; where nothing is left of the variance, it comes out too large."""
    x = np.random.default_rng(0).standard_normal((8, 16, 16, 5)).astype(np.float32) + np.float32(far)
    _, mean, var = jax.jit(layers.moments)(x, jnp.zeros(5))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6, atol=1e-6)
    error = np.asarray(var) / wide.var((0, 1, 2)) - 1
    assert np.abs(error).max() < 1e-6 * (1 + far**2)
    assert error.min() > -0.7


def test_the_gradient_of_batch_norm_is_the_numerical_one():
    """To x, scale and bias, against float64 differences of the textbook's formula; none through the shift."""
    x, weights = (np.random.default_rng(seed).standard_normal((3, 2, 2, 4)) for seed in (0, 1))
    scale, bias, shift = (
        np.array([1.0, 2.0, -1.0, 0.5]),
        np.array([0.0, 1.0, 2.0, 3.0]),
        np.array([0.0, 1.0, -2.0, 3.0]),
    )

    def plain(x, scale, bias):
        y = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * scale + bias
        return (np.tanh(y) * weights).sum()

    def ours(x, scale, bias, shift):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": shift, "var": jnp.ones(4)}}
        y, _ = layers.BatchNorm(4).apply(variables, x, train=True, mutable=["batch_stats"])
        return (jnp.tanh(y) * weights).sum()

    arrays = [x, scale, bias]
    found = jax.jit(jax.grad(ours, (0, 1, 2, 3)))(*(jnp.asarray(a, jnp.float32) for a in (*arrays, shift)))
    for which, gradient in enumerate(found[:3]):
        numerical = np.zeros_like(arrays[which])
        for place in np.ndindex(numerical.shape):
            values = []
            for step in (1e-5, -1e-5):
                changed = [a.copy() for a in arrays]
                changed[which][place] += step
                values.append(plain(*changed))
            numerical[place] = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(gradient, numerical, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found[3], 0)


def test_weights_are_drawn_as_in_the_reference_codes():
    """Convolutions: normal, of variance 2 / (h * w * outputs); the last layer: uniform within 1 / sqrt(inputs)."""
    module = models.create("wrn_10_2", num_classes=40, width=16)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 4 and leaf.size > 2000]
    assert len(kernels) > 5
    for kernel in kernels:
        height, width, _, outputs = kernel.shape
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (height * width * outputs)), rtol=0.1)
    (head,) = (np.asarray(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 2)
    assert 0.95 < np.abs(head).max() * np.sqrt(len(head)) <= 1
    np.testing.assert_allclose(head.std(), 1 / np.sqrt(3 * len(head)), rtol=0.1)


def test_initialisation_leaves_the_statistics_alone():
    _, variables = (
        (m := models.create("wrn_10_1", num_classes=3)),
        m.init(jax.random.key(0), jnp.ones((2, 8, 8, 3))),
    )
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["mean"], 0)
    np.testing.assert_array_equal(variables["batch_stats"]["bn1"]["var"], 1)


def test_folding_batch_norm_into_the_convolution_is_exact_up_to_rounding():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 3))

    class Both(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x, fold):
            c, b = layers.Conv(4, name="c"), layers.BatchNorm(4, name="b")
            return layers.conv_bn(c, b, x, train=False, activation=None) if fold else b(c(x), train=False)

    variables = Both().init(jax.random.key(1), x, False)
    variables["batch_stats"]["b"] = {"mean": jnp.arange(4.0), "var": jnp.arange(1.0, 5.0)}
    folded, plain = (Both().apply(variables, x, fold) for fold in (True, False))
    np.testing.assert_allclose(folded, plain, atol=1e-5)


def test_normalisation_is_part_of_the_model():
    images, _ = small.batch(2)
    module, variables = small.network()
    same = module.clone(mean=0.0, std=1.0).apply(variables, (images - 0.5) / 0.5)
    np.testing.assert_allclose(module.apply(variables, images).logits, same.logits, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_state():
    images, _ = small.batch(4)
    module, variables = small.network("resnet10")
    half = models.create("resnet10", num_classes=5, width=4, dtype="bfloat16")
    learn = jax.jit(partial(half.apply, train=True, mutable=["batch_stats"]))
    outputs, moved = learn(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((outputs, moved))} == {jnp.dtype(jnp.float32)}
    text = jax.jit(half.apply).lower(variables, images).as_text()
    assert "convolution" in text
    assert "bf16" in text
    low, high = (jax.jit(one.apply)(variables, images).logits for one in (half, module))
    np.testing.assert_allclose(low, high, atol=0.05)


def test_unread_outputs_cost_nothing():
    """XLA removes the activation maps where only logits are read: no flags are needed."""
    module, variables = small.network()
    images, _ = small.batch(2)
    cost = lambda f: jax.jit(f).lower(variables, images).compile().cost_analysis()["flops"]  # noqa: E731
    assert cost(lambda v, x: module.apply(v, x).logits) < cost(lambda v, x: module.apply(v, x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg"}, "unknown model 'vgg': choose one of resnet10, resnet18, preact_resnet18, wrn_D_W"),
        ({"name": "wrn_11_2"}, "depth is 10, 16, 22"),
        ({"name": "resnet18", "dtype": "float16"}, "unknown dtype 'float16'"),
        ({"name": "resnet18", "width": -4}, "width -4"),
        ({"name": "resnet18", "activation": "gelu"}, "unknown activation 'gelu': choose one of relu, silu"),
        ({"name": "wrn_10_1", "padding": "valid"}, "unknown padding 'valid': choose one of same, symmetric"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(InvalidInput, match=message):
        models.create(**arguments, num_classes=10)
