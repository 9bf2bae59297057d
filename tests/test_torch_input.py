"""PyTorch checkpoints: files of each kind, and one-line errors for bad input. Code in a file is never executed."""

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch_helpers import assert_equal_trees, package_for, small, small_state

from infofeat_jax import models
from infofeat_jax.types import InvalidInput

# Bad input: one line that names what is at fault.


def without(state, *keys):
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s, {"arch": "resnet50"}, "not 'resnet50': by its keys and shapes it is wrn_10_2"),
        (lambda s: s, {"arch": "wrn_28_10"}, "not 'wrn_28_10': by its keys and shapes it is wrn_10_2"),
        (lambda s: s, {"key": "net"}, "key 'net' does not tell which network: ''"),
        (
            lambda s: {},
            {},
            "no network that is known here, none of its keys ends in conv1.weight or init_conv.weight or"
            " conv_2d.weight: empty",
        ),
        (lambda s: {"features.0.weight": s["conv1.weight"]}, {}, "1 keys: features.0.weight"),
        (lambda s: {"conv1.weight": s["conv1.weight"], "a": s["fc.bias"]}, {}, "neither a ResNet"),
        (lambda s: without(s, "fc.weight"), {}, "1 missing: fc.weight"),
        (lambda s: without(s, "conv1.weight"), {}, "1 missing: conv1.weight"),
        (lambda s: s | {"conv1.weight": s["fc.bias"]}, {}, "conv1.weight (7,), expected 4 dimensions"),
        (
            lambda s: (
                without(s, "fc.bias", "bn1.weight")
                | {"fc2.bias": s["fc.bias"], "block2.layer.0.conv2.weight": s["conv1.weight"], "bn1.bias": 0}
            ),
            {},
            "3 missing: bn1.bias, bn1.weight, fc.bias; 1 unexpected: fc2.bias; 1 misshapen:"
            " block2.layer.0.conv2.weight (4, 3, 3, 3) for (16, 16, 3, 3)",
        ),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("block3")},
            {},
            "11 missing: block3.layer.0.bn1.bias, block3.layer.0.bn1.running_mean,"
            " block3.layer.0.bn1.running_var, block3.layer.0.bn1.weight ...",
        ),
        (
            lambda s: s | {"conv1.weight": np.zeros((3, 3, 3, 3))},
            {},
            "whose first stage, 8 channels, is no multiple of its stem, 3",
        ),
        (
            lambda s: s | {"module.fc.bias": s["fc.bias"]},
            {},
            "several prefixes: 2 keys: fc.bias, module.fc.bias",
        ),
        (lambda s: s | {"mu": np.zeros(3)}, {}, "one without the other: give both"),
        (lambda s: s, {"mean": 0.5}, "mean 0.5, std None: one without the other: give both"),
        (lambda s: s, {"mean": 0.5, "std": 0.0}, "mean 0.5, std 0.0: expected one number or 3"),
        (lambda s: s, {"mean": (0.5, 0.5), "std": 1.0}, "mean (0.5, 0.5), std 1.0: expected one number or 3"),
        (
            lambda s: s | {"mu": np.zeros((1, 3, 1, 1)), "sigma": np.zeros((1, 3, 1, 1))},
            {},
            "mean (0.0, 0.0, 0.0), std (0.0, 0.0, 0.0): expected one number or 3, finite, std > 0",
        ),
        (
            lambda s: s | {"mean": np.zeros((1, 3, 32, 32)), "std": np.ones((1, 3, 1, 1))},
            {},
            "mean of 3072 numbers, std (1.0, 1.0, 1.0): expected one number or 3",
        ),
        (
            lambda s: (
                s
                | {"fc.bias": s["fc.bias"] * np.nan, "bn1.running_var": -s["bn1.running_var"]}
                | {"fc.weight": s["fc.weight"] * 1j}
            ),
            {},
            "3 with impossible values (not finite, complex, negative variance): bn1.running_var, fc.bias, fc.weight",
        ),
        (
            lambda s: s | {"mu": np.zeros(3), "normalize.mean": np.zeros(3)},
            {},
            "several normalisations: mu, normalize.mean: give mean and std",
        ),
    ],
)
def test_bad_state_dicts_are_named(change, options, message):
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        models.from_torch(change(small_state()), **options)
    assert str(caught.value).startswith("state_dict: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "options", "message"),
    [
        ({"params": {}}, {}, "variables with params: need params and batch_stats"),
        ({"params": {"dense": {"kernel": np.zeros((2, 2))}}, "batch_stats": {}}, {}, "1 keys: dense.weight"),
        (small("resnet10")[1], {"arch": "resnet18"}, "not 'resnet18': by its keys and shapes it is resnet10"),
        (small("resnet10")[1], {"sub_block1": True}, "sub_block1: only a WideResNet has it"),
        (small("resnet10")[1], {"mean": 0.5}, "one without the other"),
    ],
)
def test_bad_variables_are_named(variables, options, message):
    with pytest.raises(InvalidInput, match=re.escape(message)):
        models.to_torch(variables, **options)


# Files.


def test_importing_the_models_imports_neither_torch_nor_safetensors():
    code = "import sys, infofeat_jax.models; print(sorted({'torch', 'safetensors'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SUFFIXES = (".npz", ".safetensors", ".pt", ".pth")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_hold_the_same(suffix, tmp_path):
    package_for(suffix)
    module, variables = small()
    models.save_torch(tmp_path / f"a{suffix}", variables, "wrn_10_2", mean=0.5, std=0.25)
    imported_module, imported = models.from_torch(tmp_path / f"a{suffix}")
    assert imported_module == module.clone(mean=(0.5,) * 3, std=(0.25,) * 3)
    assert_equal_trees(imported, variables)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", ["truncated", "empty", "text"])
def test_damaged_files_are_named(suffix, content, tmp_path):
    package_for(suffix)
    path = tmp_path / f"a{suffix}"
    models.save_torch(path, small()[1])
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello\nworld\n"}[content])
    with pytest.raises(InvalidInput, match="truncated, or not a") as caught:
        models.from_torch(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


class Code:
    """A pickle of it, loaded without care, makes the file `marker`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["torch", "pickle", "pickle2", "npz"])
def test_code_in_a_file_is_refused_and_not_executed(kind, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / f"a{'.npz' if kind == 'npz' else '.pt'}"
    code = {"conv1.weight": Code(marker)}
    if kind == "npz":
        np.savez(path, **{"conv1.weight": np.array(code, object)})
    elif kind.startswith("pickle"):
        package_for(path.suffix)
        path.write_bytes(pickle.dumps(code, protocol=2 if kind == "pickle2" else None))
    else:
        pytest.importorskip("torch").save(code, path)
    expected = "Object arrays cannot be loaded" if kind == "npz" else r"refused: .*\(.*\); nothing was executed"
    with pytest.raises(InvalidInput, match=expected) as caught:
        models.from_torch(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()
    if kind.startswith("pickle"):
        pickle.loads(path.read_bytes())
        assert marker.exists()  # the file does hold the code


def test_other_bad_files_are_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"absent\.pt: no such file"):
        models.from_torch(tmp_path / "absent.pt")
    with pytest.raises(InvalidInput, match=r"a\.h5: unknown kind of file: choose one of \.pt, .*, \.npz"):
        models.save_torch(tmp_path / "a.h5", small()[1])
    with pytest.raises(InvalidInput, match=r"a\.npz: no such folder: .*absent$"):
        models.save_torch(tmp_path / "absent" / "a.npz", small()[1])
    torch = pytest.importorskip("torch")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(InvalidInput, match=r"list\.pt: holds a list, expected a dictionary"):
        models.from_torch(tmp_path / "list.pt")
    endless = {}
    endless["net"] = endless
    torch.save(endless, tmp_path / "endless.pt")
    with pytest.raises(InvalidInput, match=r"endless\.pt: dictionaries within dictionaries without end$"):
        models.from_torch(tmp_path / "endless.pt")
    torch.save({"conv1.weight": torch.zeros(2, 2).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(InvalidInput, match=r"sparse\.pt: conv1\.weight cannot be read as an array: .*Sparse") as caught:
        models.from_torch(tmp_path / "sparse.pt")
    assert "\n" not in str(caught.value)


def test_only_torch_files_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    _, variables = small()
    (tmp_path / "a.pt").write_bytes(b"")
    for use in (models.from_torch, lambda path: models.save_torch(path, variables)):
        with pytest.raises(InvalidInput, match=r"needs torch: pip install .*\[torch\].*', or .*npz"):
            use(tmp_path / "a.pt")
    models.save_torch(tmp_path / "a.npz", variables)
    assert_equal_trees(models.from_torch(tmp_path / "a.npz")[1], variables)
    package_for(".safetensors")
    models.save_torch(tmp_path / "a.safetensors", variables)
    assert_equal_trees(models.from_torch(tmp_path / "a.safetensors")[1], variables)
