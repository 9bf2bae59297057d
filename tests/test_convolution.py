"""The models' convolution against JAX's own, with oneDNN and without, under JAX's transformations."""

import json
import re
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export

from infofeat_jax import models
from infofeat_jax.convolution import convolve, onednn, plain_convolve

CALL = "__onednn$convolution"
needs_onednn = pytest.mark.skipif(not onednn.available(), reason="no oneDNN on this machine, or switched off")
SIZES = [(8, 8), (8, 6), (7, 7), (4, 4), (3, 4), (2, 2), (1, 3), (1, 1)]


@pytest.fixture(params=["xla", pytest.param("onednn", marks=needs_onednn)])
def library(request, monkeypatch):
    """Whose convolution is chosen on a CPU, at any size."""
    least = 0 if request.param == "onednn" else float("inf")
    monkeypatch.setattr(onednn, "MIN_WORK", least)
    monkeypatch.setattr(onednn, "MIN_OUTPUTS", least)
    return request.param


def arrays(*shapes: tuple[int, ...], dtype="float32"):
    rng = np.random.default_rng(0)  # JAX's would compile a program for each shape
    return [jnp.asarray(rng.standard_normal(shape, np.float32), dtype) for shape in shapes]


def test_more_padding_is_refused():
    with pytest.raises(ValueError, match="padding=2: expected symmetric, same, or 0 to 1 for this kernel"):
        convolve(*arrays((1, 4, 4, 1), (3, 3, 1, 1)), padding=2)


def lowered(function, *args, platform: str = "cpu") -> str:
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


def plain_block(x, kernel, bias, residual, stride=1):
    return jax.nn.relu(plain_convolve(x, kernel, stride) + bias + residual)


def block(x, kernel, bias, residual, stride=1):
    return convolve(x, kernel, stride, bias=bias, residual=residual, relu=True)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "kernel"), [(s, k) for s in SIZES for k in (1, 2, 3, 5) if k != 2 or min(s) > 1])
def test_values_and_gradients_are_those_of_the_plain_convolution(size, kernel, stride, library):
    x, w, noise = arrays((2, *size, 3), (kernel, kernel, 3, 4), (2, *size, 4))

    @jax.jit
    def both(x, w, noise):
        plain, plain_vjp = jax.vjp(partial(plain_convolve, stride=stride), x, w)
        ours, our_vjp = jax.vjp(lambda x, w: convolve(x, w, stride), x, w)
        gradient = noise[:, : plain.shape[1], : plain.shape[2]]
        return (ours, *our_vjp(gradient)), (plain, *plain_vjp(gradient))

    assert (CALL in both.lower(x, w, noise).as_text()) == (library == "onednn")
    for ours, plain in zip(*both(x, w, noise), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=2e-5)


PADDINGS = [(1, 0), (2, 0), (3, 0), (3, 1), (4, 1), (5, 1), *((size, "same") for size in (1, 2, 3, 5))]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), PADDINGS)
@pytest.mark.parametrize("size", [(8, 6), (7, 8), (5, 6)])
def test_other_paddings_are_jaxs(size, kernel, padding, stride, library):
    """Values and gradients with less padding, and with JAX's own "SAME", which is TensorFlow's."""
    theirs = "SAME" if padding == "same" else [(padding, padding)] * 2
    plain = partial(
        jax.lax.conv_general_dilated, window_strides=(stride, stride), padding=theirs,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    x, w = arrays((2, *size, 3), (kernel, kernel, 3, 4))
    (gradient,) = arrays(jax.eval_shape(plain, x, w).shape)

    @jax.jit
    def both(x, w, gradient):
        ours, expected = (jax.vjp(f, x, w) for f in (partial(convolve, stride=stride, padding=padding), plain))
        return (ours[0], *ours[1](gradient)), (expected[0], *expected[1](gradient))

    assert (CALL in both.lower(x, w, gradient).as_text()) == (library == "onednn")
    for ours, expected in zip(*both(x, w, gradient), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_follows_is_added(stride, library):
    """Bias, residual and ReLU: values, gradients to each, and second derivatives."""
    x, w, bias, residual = arrays((2, 6, 6, 3), (3, 3, 3, 4), (4,), (2, 6 // stride, 6 // stride, 4))

    def penalty(f, *args):
        return jnp.square(jax.grad(lambda x: jnp.tanh(f(x, *args[1:], stride)).sum())(args[0])).sum()

    @jax.jit
    def results(*args):
        everything = lambda f: (  # noqa: E731
            f(*args, stride),
            jax.grad(lambda *args: jnp.sin(f(*args, stride)).sum(), (0, 1, 2, 3))(*args),
            jax.grad(partial(penalty, f), (0, 1, 2, 3))(*args),
        )
        return everything(block), everything(plain_block)

    ours, plain = results(x, w, bias, residual)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), ours, plain)
    alone = jax.jit(lambda: (convolve(x, w, stride, relu=True), convolve(x, w, stride, bias=bias)))()
    np.testing.assert_allclose(alone[0], jax.nn.relu(plain_convolve(x, w, stride)), atol=1e-4)
    np.testing.assert_allclose(alone[1], plain_convolve(x, w, stride) + bias, atol=1e-4)


def test_relu_has_the_derivative_zero_at_zero(library):
    zeros = jnp.zeros((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    gradient = jax.grad(lambda x, w: convolve(x, w, relu=True).sum())(*zeros)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("size", "kernel"), [((8, 6), 3), ((7, 7), 3), ((4, 4), 3), ((3, 3), 3), ((5, 5), 1)])
def test_bfloat16_is_rounded_once(size, kernel, library):
    """Against the plain convolution of the same numbers in float32."""
    x, w, gradient = arrays((2, *size, 33), (kernel, kernel, 33, 32), (2, *size, 32), dtype=jnp.bfloat16)
    ours, our_vjp = jax.vjp(convolve, x, w)
    plain, plain_vjp = jax.vjp(plain_convolve, *(array.astype(jnp.float32) for array in (x, w)))
    assert ours.dtype == jnp.bfloat16
    pairs = zip((ours, *our_vjp(gradient)), (plain, *plain_vjp(gradient.astype(jnp.float32))), strict=True)
    for half, wide in pairs:
        np.testing.assert_allclose(half.astype(jnp.float32), wide, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_can_be_differentiated_twice(stride, library):
    x, w = jnp.ones((1, 4, 4, 5)), jnp.full((3, 3, 5, 2), 0.5)

    def penalty(convolve, w):
        return jnp.square(jax.grad(lambda x: jnp.tanh(convolve(x, w, stride)).sum())(x)).sum()

    ours, plain = (jax.grad(partial(penalty, f))(w) for f in (convolve, plain_convolve))
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def _over_images(f, x, w):
    return jax.vmap(f, (1, None))(x.reshape(2, 2, *x.shape[1:]), w)


def _over_kernels(f, x, w):
    return jax.vmap(f, (None, 0))(x, jnp.stack([w, 2 * w]))


def _over_both(f, x, w):
    return jax.vmap(f)(x.reshape(2, 2, *x.shape[1:]), jnp.stack([w, 2 * w]))


def _per_image_gradients(f, x, w):
    return jax.vmap(jax.grad(lambda x, w: jnp.sin(f(x[None], w)).sum(), (0, 1)), (0, None))(x, w)


def _loop(f, x, w):
    return jax.lax.scan(lambda x, _: (jnp.sin(jax.grad(lambda x: jnp.sin(f(x, w)).sum())(x)), None), x, None, 2)[0]


def _rematerialised(f, x, w):
    return jax.grad(lambda w: jnp.sin(jax.checkpoint(f)(jnp.sin(jax.checkpoint(f)(x, w)), w)).sum())(w)


def _forward_over_reverse(f, x, w):
    return jax.jvp(jax.grad(lambda x: jnp.sin(f(x, w)).sum()), (x,), (jnp.cos(x),))


def _jacobian(f, x, w):
    return jax.jacobian(lambda x: f(x, w).sum((0, 1, 2)))(x)


USES = [_over_images, _over_kernels, _over_both, _per_image_gradients, _loop, _rematerialised, _forward_over_reverse]
USES += [_jacobian]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ["convolution", "block"])
def test_transformations_keep_the_results(use, kind, library):
    x, w, bias = arrays((4, 5, 5, 4), (3, 3, 4, 4), (4,))
    ours, plain = convolve, plain_convolve
    if kind == "block":
        ours = lambda x, w: convolve(x, w, bias=bias, residual=x, relu=True)  # noqa: E731
        plain = lambda x, w: plain_block(x, w, bias, x)  # noqa: E731
    one, other = (jax.jit(partial(use, f))(x, w) for f in (ours, plain))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), one, other)


@pytest.mark.parametrize("use", ["jit", "shard_map", "shard_map, unchecked"])
def test_several_devices(use, library):
    """oneDNN's only in a shard_map whose types are not checked: XLA's partitioner does not know it."""
    x, w, bias = arrays((8, 5, 5, 3), (3, 3, 3, 4), (4,))
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    split, whole = jax.P("batch"), jax.P()

    def gradients(x, w, bias):
        return jax.grad(lambda x: jnp.sin(convolve(x, w, bias=bias, relu=True)).sum())(x)

    function, specs = gradients, {"in_specs": (split, whole, whole), "out_specs": split}
    if use != "jit":
        function = jax.shard_map(gradients, mesh=mesh, check_vma=use == "shard_map", **specs)
    spread = jax.device_put(x, jax.NamedSharding(mesh, split))
    program = jax.jit(function).lower(spread, w, bias)
    assert (CALL in program.as_text()) == (use == "shard_map, unchecked" and library == "onednn")
    values = program.compile()(spread, w, bias)
    np.testing.assert_allclose(values, gradients(x, w, bias), rtol=1e-4, atol=1e-4)


def test_donated_buffers_and_threads(library):
    x, w, bias = arrays((16, 16, 16, 8), (3, 3, 8, 8), (8,))
    step = jax.jit(lambda x: jnp.tanh(convolve(x, w, bias=bias, residual=x, relu=True)), donate_argnums=0)
    expected, results = step(jnp.copy(x)), {}

    def work(name: int):
        results[name] = [step(jnp.copy(x)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in (one for many in results.values() for one in many):
        np.testing.assert_array_equal(result, expected)


def test_other_types_are_xlas(library):
    with jax.enable_x64(True):
        x, w = arrays((2, 4, 4, 3), (3, 3, 3, 4), dtype="float64")
        assert CALL not in lowered(convolve, x, w)
        np.testing.assert_allclose(convolve(x, w), plain_convolve(x, w), rtol=1e-12, atol=1e-12)
        assert (CALL in lowered(lambda x, w: convolve(x, w), *arrays((2, 4, 4, 3), (3, 3, 3, 4)))) == (
            library == "onednn"
        )


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_the_mask_of_relu_is_read_from_its_result_on_gpus(platform):
    """Else cuDNN's convolution cannot contain ReLU: XLA would compare what ReLU is applied to."""
    arguments = arrays((2, 4, 4, 3), (3, 3, 3, 3), (3,), (2, 4, 4, 3))
    program = lowered(jax.grad(lambda *args: jnp.sin(block(*args)).sum()), *arguments, platform=platform)
    assert ("optimization_barrier" in program) == (platform != "tpu")
    if platform != "tpu":
        held, compared = (
            re.search(pattern, program)[1]
            for pattern in (r"(%\w+) = stablehlo.optimization_barrier", r"stablehlo.compare +GT, (%\w+)")
        )
        assert held == compared


@needs_onednn
def test_it_is_never_lowered_for_other_platforms(monkeypatch):
    """Nor into exported programs, whose reader's jaxlib may be another."""
    monkeypatch.setattr(onednn, "MIN_WORK", 0)
    module = models.create("resnet10", num_classes=3, width=4)
    variables, images = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((2, 8, 8, 3))), jnp.ones((2, 8, 8, 3))
    gradients = jax.grad(lambda v, x: module.apply(v, x).logits.sum(), (0, 1))
    assert CALL in lowered(gradients, variables, images)
    for platform in ("tpu", "cuda", "rocm"):
        assert CALL not in lowered(gradients, variables, images, platform=platform)
    for platforms in (["cpu"], ["cpu", "tpu", "cuda"]):
        assert CALL not in export.export(jax.jit(gradients), platforms=platforms)(variables, images).mlir_module()


@needs_onednn
def test_only_for_known_machines_and_versions(monkeypatch):
    large = arrays((64, 32, 32, 16), (3, 3, 16, 16))
    used = lambda: CALL in lowered(lambda x, w: convolve(x, w), *large)  # noqa: E731 - a new function: nothing cached
    assert used()
    with monkeypatch.context() as patch:
        patch.setenv("INFOFEAT_JAX_ONEDNN", "0")
        assert not used()
    with monkeypatch.context() as patch:
        patch.setattr(onednn.jaxlib, "__version__", "99.0.0")
        assert not used()
    with monkeypatch.context() as patch:
        patch.setattr(onednn.platform, "machine", lambda: "aarch64")
        assert not used()
    assert CALL not in lowered(convolve, *arrays((2, 8, 8, 3), (3, 3, 3, 4)))


@needs_onednn
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_encodings(data):
    """Of any size, padding, stride and dilation, with batch 1 and channels 1, 3 and 640: oneDNN's result is XLA's."""
    draw = lambda *choices: data.draw(st.sampled_from(choices))  # noqa: E731
    size, inputs, outputs = draw(1, 3, 5), draw(1, 3, 16, 640), draw(1, 3, 640)
    stride, dilation, transposed, relu = (
        draw(1, 2),
        (draw(1, 2), draw(1, 2, 3, 16)),
        draw(False, True),
        draw(False, True),
    )
    least = [max((size - 1) * apart, 1) for apart in dilation]
    sides = [data.draw(st.integers(low, low + 8)) for low in least]
    padding = tuple(
        (data.draw(st.integers(0, 2)), data.draw(st.integers(0 if side > low else 1, 2)))
        for side, low in zip(sides, least, strict=True)
    )
    dtype = draw("float32", "bfloat16")
    x, w = arrays((draw(1, 2, 3), *sides, inputs), (size, size, inputs, outputs), dtype=dtype)
    shape = onednn.output_shape(x.shape, w.shape, padding, stride, dilation)
    added = tuple(arrays(*draw((), ((outputs,),), ((outputs,), shape), (shape,)), dtype=dtype))

    @jax.jit
    def both(x, w, *added):
        taps = w.swapaxes(2, 3) if transposed else w
        ours = onednn.convolve(x, taps, padding, stride, dilation, transposed, added, relu)
        wide = [array.astype(jnp.float32) for array in (x, w, *added)]
        plain = jax.lax.conv_general_dilated(
            *wide[:2], (stride,) * 2, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        plain = sum(wide[2:], plain)
        return ours.astype(jnp.float32), jax.nn.relu(plain) if relu else plain

    ours, plain = both(x, w, *added)
    np.testing.assert_allclose(ours, plain, rtol=1e-5 if dtype == "float32" else 2**-7, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "found"),
    [("fpu avx512_bf16 amx_tile", True), ("avx2 amx_bf16", True), ("avx512f avx512_bf16s", False), (None, False)],
)
def test_bfloat16_is_computed_as_such_where_the_cpu_has_it(flags, found, tmp_path, monkeypatch):
    """Elsewhere it computes in float32: some of its convolutions in bfloat16 would never return."""
    monkeypatch.setattr(onednn, "CPU_FLAGS", tmp_path / "cpuinfo")
    if flags is not None:
        onednn.CPU_FLAGS.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n")
    onednn.has_bfloat16.cache_clear()
    try:
        x, w, bias = arrays((2, 5, 5, 3), (3, 3, 3, 4), (4,), dtype="bfloat16")
        call = partial(onednn.convolve, padding=((1, 1), (1, 1)), added=(bias,))
        assert jax.eval_shape(call, x, w).dtype == jnp.bfloat16
        calls = [line for line in lowered(call, x, w).splitlines() if CALL in line]
        assert [("bf16" in line, "f32" in line) for line in calls] == [(found, not found)]
    finally:
        onednn.has_bfloat16.cache_clear()


def test_the_encoding_is_as_jaxlib_reads_it():
    config = json.loads(onednn.encoding((3, 3), ((1, 0), (1, 2)), 2, (1, 16), True, ["BIAS"]))["onednn_conv_config"]
    assert config["window"] == {
        "size": ["3", "3"],
        "pad_left": ["1", "1"],
        "pad_right": ["0", "2"],
        "strides": ["2", "2"],
        "window_dilations": ["1", "16"],
    }
    assert config["kernel"]["filter"] == {
        "input_feature_dim": "3",
        "output_feature_dim": "2",
        "spatial_dims": ["0", "1"],
    }
    assert config["fusions"] == {"ops": ["BIAS"]}
