"""PyTorch checkpoints in and out: equal to published networks and to PyTorch itself; exact round trips."""

import os
from functools import partial
from pathlib import Path

import golden_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_helpers import assert_equal_trees, small, small_state

from infofeat_jax import models
from infofeat_jax.types import InvalidInput

BATCH = golden_nets.images()
COUNTER = "num_batches_tracked"


@partial(jax.jit, static_argnums=0)
def evaluate(module, variables, images):
    return module.apply(variables, images)


@partial(jax.jit, static_argnums=0)
def train(module, variables, images):
    return module.apply(variables, images, train=True, mutable=["batch_stats"])


# What the published code computes.


def check_network(module, variables, images, golden):
    out = evaluate(module, variables, images)
    maps = np.moveaxis(golden["featmap_nchw"], 1, -1)
    np.testing.assert_allclose(out.logits, golden["logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.features, golden["pooled"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.maps[: len(maps)], maps, rtol=0, atol=1e-5)
    out, statistics = train(module, variables, images)
    np.testing.assert_allclose(out.logits, golden["train_logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.features, golden["train_pooled"], rtol=0, atol=1e-5)
    after = models.to_torch({**variables, **statistics})
    checked = [key for key in golden["after_train"] if not key.startswith("sub_block1.")]
    assert checked == [key for key in golden["after_train"] if key in after] != []
    for key in checked:
        np.testing.assert_allclose(after[key], golden["after_train"][key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", golden_nets.NETS)
def test_published_networks_compute_the_same(net):
    module, variables = models.from_torch(golden_nets.state_dict(net), **golden_nets.NETS[net])
    check_network(module, variables, BATCH, golden_nets.expected(net))


@pytest.mark.parametrize("net", [*golden_nets.NETS, "preact18_rb_bn_w4", "wrn16_rb_w4"])
def test_published_files_compute_the_same(net):
    """The whole golden set (its .pt files and nets.npz), where INFOFEAT_GOLDEN names its folder."""
    if not (folder := os.environ.get("INFOFEAT_GOLDEN")):
        pytest.skip("INFOFEAT_GOLDEN is not set")
    pytest.importorskip("torch")
    with np.load(Path(folder) / "nets.npz") as archive:
        golden = {key.removeprefix(f"{net}/"): archive[key] for key in archive if key.startswith(net)}
    after = {k.removeprefix("after_train/"): v for k, v in golden.items() if ".running_" in k}
    module, variables = models.from_torch(Path(folder) / f"{net}.pt", **golden_nets.NETS.get(net, {}))
    check_network(module, variables, BATCH, golden | {"after_train": after})


@pytest.mark.parametrize("net", golden_nets.NETS)
def test_round_trip_is_exact(net):
    state = golden_nets.state_dict(net)
    steps = next(int(value) for key, value in state.items() if key.endswith(COUNTER))
    _, variables = models.from_torch(state)
    back = models.to_torch(variables, sub_block1="trades" in net, num_batches_tracked=steps)
    assert back.keys() == state.keys()
    for key in state:
        if not key.startswith("sub_block1."):  # never run: written as a copy of block1
            np.testing.assert_array_equal(back[key], state[key], strict=True)
    assert_equal_trees(models.from_torch(back)[1], variables)


# What a state_dict tells.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10", {}),
        ("resnet18", {}),
        ("preact_resnet18", {}),
        ("preact_resnet18", {"final_norm": False, "activated_shortcut": False}),
        ("wrn_10_1", {}),
        ("wrn_22_3", {}),
    ],
)
def test_architecture_is_read_from_the_shapes(name, options):
    created, variables = small(name, **options)
    for arch in (None, name):
        module, imported = models.from_torch(models.to_torch(variables, name), arch)
        assert module == created
        assert_equal_trees(imported, variables)


@pytest.mark.parametrize("final_norm", [True, False])
def test_arch_chooses_what_no_shape_tells(final_norm):
    state = small_state("preact_resnet18", final_norm=final_norm)
    activated = {
        arch: models.from_torch(state, arch)[0].activated_shortcut
        for arch in (None, "preact_resnet18_activated_shortcut", "preact_resnet18_raw_shortcut")
    }
    assert list(activated.values()) == [final_norm, True, False]


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.basic_net.", "_orig_mod.module.model.", "1."])
def test_prefixes_are_removed(prefix):
    state = small_state()
    wrapped = {prefix + key: value for key, value in state.items()} | {"n_averaged": np.array(3)}
    wrapped[f"{prefix}model_preact_hl1.1.weight"] = state["conv1.weight"]
    assert_equal_trees(models.from_torch(wrapped)[1], models.from_torch(state)[1])


@pytest.mark.parametrize("path", ["state_dict", "net", "model", "model_state_dict", "ema", "state.model"])
def test_nesting_is_opened(path):
    state = small_state()
    nested = state
    for name in reversed(path.split(".")):
        momentum = {0: {"momentum_buffer": state["conv1.weight"]}}
        nested = {name: nested, "epoch": 3, "optimizer": {"state": momentum, "param_groups": []}}
    assert_equal_trees(models.from_torch(nested)[1], models.from_torch(state)[1])


def test_key_tells_which_of_several_networks():
    state = small_state()
    other = {key: value + 1 for key, value in state.items()}
    checkpoint = {"net": state, "ema": {"net": other}}
    with pytest.raises(InvalidInput, match=r"^state_dict: key None does not tell .*: 'net', 'ema\.net'$"):
        models.from_torch(checkpoint)
    assert_equal_trees(models.from_torch(checkpoint, key="ema.net")[1], models.from_torch(other)[1])


@pytest.mark.parametrize(
    "names",
    [("mu", "sigma"), ("mean", "std"), ("0.mean", "0.std"), ("module.normalize.mean", "normalize.std")],
)
def test_normalisation_buffers_are_found(names):
    mean, std = np.float32([0.25, 0.5, 0.75]), np.float32([0.125, 0.25, 0.5])
    buffers = dict(zip(names, (mean.reshape(1, 3, 1, 1), std.reshape(3, 1, 1)), strict=True))
    module, _ = models.from_torch(small_state() | buffers)
    assert (module.mean, module.std) == (tuple(mean), tuple(std))
    module, _ = models.from_torch(small_state() | buffers, mean=0.5, std=(0.5, 0.5, 0.25))
    assert (module.mean, module.std) == (0.5, (0.5, 0.5, 0.25))


def test_normalisation_given_found_or_none():
    module, variables = small()
    assert (models.from_torch(small_state())[0].mean, models.from_torch(small_state())[0].std) == (0.0, 1.0)
    written = models.to_torch(variables, mean=(0.25, 0.5, 0.75), std=0.5)
    assert written["mu"].shape == written["sigma"].shape == (1, 3, 1, 1)
    module, _ = models.from_torch(written)
    assert (module.mean, module.std) == ((0.25, 0.5, 0.75), (0.5, 0.5, 0.5))


def test_other_precisions_become_float32():
    state = {key: value.astype(np.float16) for key, value in small_state().items()}
    _, variables = models.from_torch(state)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], state["fc.bias"])


def test_variables_are_a_copy():
    state = golden_nets.state_dict("wrn10_1_fs")
    _, variables = models.from_torch(state)
    before = jax.tree.map(np.array, variables)
    for value in state.values():  # as a PyTorch network in training mode does to what it holds
        value += 1
    assert_equal_trees(jax.tree.map(np.array, variables), before)


# PyTorch itself, on networks written for these tests.

PREACT = "preact_resnet18"
TORCH_NETWORKS = {  # name: (class, its arguments, arguments of from_torch, of to_torch)
    "resnet18": ("resnet18", {}, {}, {}),
    "preact": (PREACT, {"final_norm": True, "activated": True}, {}, {}),
    "preact_plain": (PREACT, {"final_norm": False, "activated": False}, {"arch": PREACT}, {}),
    "preact_raw": (
        PREACT,
        {"final_norm": True, "activated": False},
        {"arch": f"{PREACT}_raw_shortcut"},
        {"arch": PREACT},
    ),
    "wrn_sub_block1": ("wide_resnet", {"sub_block1": True}, {}, {"sub_block1": True}),
    "wrn_buffers": ("wide_resnet", {"buffers": True}, {}, {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}),
}


@pytest.mark.parametrize("name", ["resnet18", "preact_plain", "wrn_buffers"])
def test_silu_in_the_public_classes(name, monkeypatch):
    """In evaluation and in training, where BatchNorm is not folded into the convolution."""
    torch = pytest.importorskip("torch")
    import torch_networks

    build, arguments, importing, _ = TORCH_NETWORKS[name]
    monkeypatch.setattr(torch_networks.F, "relu", torch.nn.functional.silu)
    torch.manual_seed(0)
    network = getattr(torch_networks, build)(classes=10, width=4, **arguments)
    torch_networks.randomize(network)
    module, variables = models.from_torch(network.state_dict(), activation="silu", **importing)
    out = evaluate(module, variables, BATCH)
    np.testing.assert_allclose(out.logits, torch_networks.run(network, BATCH), atol=1e-5)
    products = np.asarray(out.maps)[..., None] * np.asarray(out.kernel)
    np.testing.assert_allclose(out.cam, np.maximum(products, 0).sum(-2), atol=1e-5)  # Eq. 6: features may be negative
    if name == "wrn_buffers":
        out, _ = train(module, variables, BATCH)
        np.testing.assert_allclose(out.logits, torch_networks.run(network, BATCH, train=True), atol=1e-5)


@pytest.mark.parametrize("name", TORCH_NETWORKS)
def test_pytorch_loads_strictly_and_computes_the_same(name):
    torch = pytest.importorskip("torch")
    import torch_networks

    build, arguments, importing, exporting = TORCH_NETWORKS[name]
    build = partial(getattr(torch_networks, build), classes=10, width=4, **arguments)
    torch.manual_seed(0)
    network = build()
    torch_networks.randomize(network)
    logits = torch_networks.run(network, BATCH)
    module, variables = models.from_torch(network.state_dict(), **importing)
    np.testing.assert_allclose(evaluate(module, variables, BATCH).logits, logits, atol=1e-5)

    copy = build()
    exported = models.to_torch(variables, **exporting)
    copy.load_state_dict({key: torch.from_numpy(value) for key, value in exported.items()}, strict=True)
    np.testing.assert_array_equal(torch_networks.run(copy, BATCH), logits)

    out, statistics = train(module, variables, BATCH)
    np.testing.assert_allclose(out.logits, torch_networks.run(network, BATCH, train=True), atol=1e-5)
    after, state = models.to_torch({**variables, **statistics}), network.state_dict()
    for key in (key for key in after if ".running_" in key):
        np.testing.assert_allclose(after[key], state[key].numpy(), rtol=1e-5, atol=1e-6)
