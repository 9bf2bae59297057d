"""DeepMind's networks: PyTorch's and Haiku's files against PyTorch itself; hostile and damaged files are refused."""

import io
import os
import pathlib
import pickle
import pickletools
import re
import tempfile

import golden_nets
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_helpers import assert_equal_trees, small

from infofeat_jax import models
from infofeat_jax.types import InvalidInput

BATCH = golden_nets.images()
DEEPMIND = {"activation": "silu", "padding": "same"}
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


# What PyTorch computes.


@pytest.fixture(scope="module", params=["wide", "wide_relu", "preact"])
def network(request):
    """(PyTorch network with random weights and statistics, its constructor, from_torch's arguments, our outputs)."""
    torch = pytest.importorskip("torch")
    import torch_networks

    relu = request.param == "wide_relu"
    activation = torch.nn.functional.relu if relu else torch.nn.functional.silu
    wide, blocks = request.param != "preact", 2 if request.param == "wide" else 1

    def build(buffers):
        return torch_networks.DeepMindNetwork(wide, 4, 10, activation, buffers=buffers, blocks=blocks)

    torch.manual_seed(0)
    made = build(buffers=not relu)
    torch_networks.randomize(made)
    reading = {"activation": "relu"} if relu else {}
    module, variables = models.from_torch(made.state_dict(), **reading)
    return made, build, reading, jax.jit(module.apply)(variables, BATCH)


def test_pytorch_computes_the_same_and_loads_strictly(network):
    import torch
    import torch_networks

    made, build, reading, out = network
    module, variables = models.from_torch(made.state_dict(), **reading)
    expected = torch_networks.run(made, BATCH)
    np.testing.assert_allclose(out.logits, expected, atol=1e-5)
    np.testing.assert_allclose((module.mean, module.std), CIFAR10, rtol=1e-6)
    for buffers in (True, False):
        normal = {"mean": module.mean, "std": module.std} if buffers else {}
        exported = models.to_torch(variables, deepmind_keys=True, **normal)
        copy = build(buffers)
        copy.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
        np.testing.assert_array_equal(torch_networks.run(copy, BATCH), expected)
        again, same = models.from_torch(exported, **reading)
        assert again == module
        assert_equal_trees(same, variables)


def test_class_activation_maps_count_negative_features(network):
    """Eq. 6 by its definition: SiLU leaves negative features, ReLU none."""
    *_, reading, out = network
    products = np.asarray(out.maps)[..., None] * np.asarray(out.kernel)
    np.testing.assert_allclose(out.cam, np.maximum(products, 0).sum(-2), atol=1e-5)
    assert (np.asarray(out.maps) < 0).any() == (reading.get("activation") != "relu")


# Haiku's files.


def haiku(state, *, offset=False):
    """The WideResNet's state_dict as Haiku's (parameters, state), in its names, layouts and default of no offsets."""
    params, statistics = {}, {}
    for key, value in state.items():
        *path, leaf = key.split(".")
        name = "wide_res_net/~/" + re.sub(r"layer/~/(\d)/~/block/~/(\d)", r"resnet_lay_\1_block_\2", "/~/".join(path))
        if "running" in leaf:
            ema = f"{name}/~/{'mean' if 'mean' in leaf else 'var'}_ema"
            average = value.reshape(1, 1, 1, -1)
            statistics[ema] = {"average": average, "hidden": average / 2, "counter": np.array(3, np.int32)}
        elif "batchnorm" in name and leaf in ("weight", "bias"):
            if leaf == "weight" or offset:
                leaf = {"weight": "scale", "bias": "offset"}[leaf]
                params.setdefault(name, {})[leaf] = value.reshape(1, 1, 1, -1)
        elif leaf in ("weight", "bias"):
            layout = value.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[value.ndim])
            params.setdefault(name, {})[{"weight": "w", "bias": "b"}[leaf]] = layout
    return params, statistics


def small_state(**options):
    return models.to_torch(small("wrn_10_2", **DEEPMIND)[1], deepmind_keys=True, **options)


def save(path, content) -> pathlib.Path:
    array = np.empty(2, object)
    array[:] = content
    np.save(path, array, allow_pickle=True)
    return path


@pytest.mark.parametrize("offset", [True, False])
def test_haiku_parameters_are_the_same_network(offset, tmp_path):
    state = small_state()
    path = save(tmp_path / "dm.npy", haiku(state, offset=offset))
    module, variables = models.from_torch(path, "dm_wrn_10_2", mean=0.5, std=0.25)
    if not offset:
        state |= {key: np.zeros_like(value) for key, value in state.items() if re.search(r"batchnorm.*bias", key)}
    assert_equal_trees(variables, models.from_torch(state, mean=0.5, std=0.25)[1])
    assert (module.activation, module.padding, module.mean, module.std) == ("silu", "same", 0.5, 0.25)


@pytest.mark.parametrize(("suffix", "logits"), [("pt", "torch_logits"), ("npy", "haiku_logits")])
def test_published_classes_compute_the_same(suffix, logits):
    """The golden files of DeepMind's own classes, where INFOFEAT_GOLDEN names their folder."""
    if not (folder := os.environ.get("INFOFEAT_GOLDEN")):
        pytest.skip("INFOFEAT_GOLDEN is not set")
    with np.load(pathlib.Path(folder) / "dm_wrn.npz") as golden:
        images, expected = golden["images_u8"].astype(np.float32) / np.float32(255), golden[logits]
    module, variables = models.from_torch(pathlib.Path(folder) / f"dm_wrn16_2_swish.{suffix}")
    np.testing.assert_allclose(jax.jit(module.apply)(variables, images).logits, expected, rtol=0, atol=1e-5)


# What a file does not tell, and errors.


def test_normalisation_is_that_of_the_number_of_classes():
    state = small_state()
    wide = {classes: dict(state) for classes in (10, 100)}
    for classes, one in wide.items():
        one["logits.weight"], one["logits.bias"] = np.zeros((classes, 32), np.float32), np.zeros(classes, np.float32)
    found = {classes: models.from_torch(one)[0] for classes, one in wide.items()}
    np.testing.assert_allclose((found[10].mean, found[10].std), CIFAR10, rtol=1e-6)
    np.testing.assert_allclose(found[100].mean, (0.5071, 0.4865, 0.4409), rtol=1e-6)
    np.testing.assert_allclose(found[100].std, (0.2673, 0.2564, 0.2762), rtol=1e-6)
    with pytest.raises(InvalidInput, match="3 channels and 7 classes without its normalisation: give mean and std"):
        models.from_torch(state)
    assert models.from_torch(small_state(mean=0.5, std=0.25))[0].std == (0.25,) * 3


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s, {"arch": "wrn_10_2"}, "not 'wrn_10_2': by its keys and shapes it is dm_wrn_10_2"),
        (lambda s: s, {"activation": "swish"}, "unknown activation 'swish': choose one of relu, silu"),
        (
            lambda s: {k: v for k, v in s.items() if k != "layer.1.block.0.conv_1.weight"} | {"x": s["logits.bias"]},
            {},
            "1 missing: layer.1.block.0.conv_1.weight; 1 unexpected: x",
        ),
        (
            lambda s: s | {"layer.0.block.0.relu_0.0.threshold": np.float32([1.0])},  # MeanSparse
            {},
            "1 unexpected: layer.0.block.0.relu_0.0.threshold",
        ),
    ],
)
def test_bad_state_dicts_are_named_in_their_own_keys(change, options, message):
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        models.from_torch(change(small_state()), mean=0.5, std=0.5, **options)
    assert "\n" not in str(caught.value)


class Code:
    """A pickle of it, loaded without care, makes the file `marker`."""

    def __init__(self, marker: pathlib.Path):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


@pytest.mark.parametrize("place", ["array", "leaf", "module"])
def test_code_in_a_haiku_file_is_refused_and_not_executed(place, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "a.npy"
    params, statistics = haiku(small_state())
    if place == "leaf":
        params["wide_res_net/~/logits"]["w"] = Code(marker)
    if place == "module":
        params[Code(marker)] = {}
    save(path, (params, Code(marker) if place == "array" else statistics))
    with pytest.raises(InvalidInput, match=r"a\.npy: refused: .* \(pathlib.* .*\); nothing was executed") as caught:
        models.from_torch(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists()  # the file does hold the code


def object_file(body: bytes) -> bytes:
    """An .npy of objects whose pickle is `body`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    return file.getvalue() + body


NESTED = (
    b"\x80\x04" + b"]" + b"\x94]\x94h\x00ah\x00a" + b"".join(b"]\x94h%cah%ca" % (i, i) for i in range(1, 200)) + b"."
)
BODIES = {  # what a pickle does, and what the one line says
    "newobj": (b"\x80\x04cnumpy\nndarray\n)\x81.", "NEWOBJ"),
    "persistent": (b"\x80\x04\x8c\x01xQ.", "BINPERSID"),
    "extension": (b"\x80\x04\x82\x01.", "EXT1"),
    "other name": (b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.", "os system"),
    "a line break": (b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.", r"o\\ns system"),
    "calls a text": (b"\x80\x04\x8c\x02ab)R.", "a call of what is no function"),
    "calls a class": (b"\x80\x04cnumpy\nndarray\n)R.", "a call of what is no function"),
    "state of a text": (b"\x80\x04\x8c\x02ab)b.", "the state of what is no array"),
    "empty": (b"", "truncated, or not"),
    "no stop": (b"\x80\x04]", "truncated, or not"),
    "no mark": (b"\x80\x04]e.", "truncated, or not"),
    "no memo": (b"\x80\x04h\x05.", "truncated, or not"),
    "empty stack": (b"\x80\x04.", "truncated, or not"),
    "huge": (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.", "truncated, or not"),
    "one": (b"\x80\x04]N.", "expected Haiku's parameters and state"),
    "nested": (NESTED, "expected Haiku's parameters and state"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_other_pickles_are_refused(name, tmp_path):
    body, message = BODIES[name]
    (tmp_path / "a.npy").write_bytes(object_file(body))
    with pytest.raises(InvalidInput, match=message) as caught:
        models.from_torch(tmp_path / "a.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3), "holds an array of float64, expected dictionaries of arrays by name"),
        (({}, {}), "none of its keys ends in conv1.weight or init_conv.weight or conv_2d.weight: empty"),
        (({"a": 3}, {}), "expected a dictionary of arrays for each module: not 'a'"),
        (([], {}), "expected Haiku's parameters and state"),
        (({"wide_res_net/~/init_conv": {"w": np.zeros((1, 1, 3, 4), "M8[s]")}}, {}), "refused: an array of type"),
    ],
)
def test_other_arrays_are_refused(content, message, tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, content) if isinstance(content, np.ndarray) else save(path, content)
    with pytest.raises(InvalidInput, match=message):
        models.from_torch(path)


def test_older_pickles_of_numpy_are_read(tmp_path):
    """Protocols 3 to 5, and the module's name before NumPy 2."""
    content = haiku(small_state())
    array = np.empty(2, object)
    array[:] = content
    for protocol in (3, 4):
        body = pickle.dumps(array, protocol)
        if protocol == 3:
            body = body.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        (tmp_path / "a.npy").write_bytes(object_file(body))
        assert_equal_trees(
            models.from_torch(tmp_path / "a.npy", mean=0.5, std=0.5)[1],
            models.from_torch(save(tmp_path / "b.npy", content), mean=0.5, std=0.5)[1],
        )


def tiny_file() -> bytes:
    file, statistics = io.BytesIO(), {"wide_res_net/~/batchnorm/~/mean_ema": {"average": np.zeros((1, 1, 1, 2))}}
    array = np.empty(2, object)
    array[:] = ({"wide_res_net/~/init_conv": {"w": np.zeros((1, 1, 1, 2), np.float32)}}, statistics)
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


VALID = tiny_file()
CODES = sorted(ord(opcode.code) for opcode in pickletools.opcodes)
changes = st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255) | st.sampled_from(CODES)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(changes=changes, end=st.integers(0, len(VALID)) | st.just(len(VALID)))
def test_any_haiku_file_is_refused_in_one_line(changes, end):
    content = bytearray(VALID)
    for position, value in changes:
        content[position] = value
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "x.npy"
        path.write_bytes(content[:end])
        with pytest.raises(InvalidInput) as caught:  # the whole file lacks most of the network
            models.from_torch(path)
    assert "\n" not in str(caught.value)
