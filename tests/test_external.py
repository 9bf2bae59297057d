"""Adversarial images for RobustBench: in the official order, within the threat model, of these results."""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
from torch_helpers import assert_equal_trees, small

import infofeat_jax
from infofeat_jax import cli, models, weights
from infofeat_jax import config as configs
from infofeat_jax.attacks.autoattack import ROBUST, ResumeState
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import autoattack
from infofeat_jax.export import adversarial_images, convert, external, robustbench
from infofeat_jax.runtime import files
from infofeat_jax.types import InvalidInput

COUNT = 12
ARGUMENTS = ["--model=Rade2021Helper_ddpm", "--authors=A, B", "--method=M", "--dataset=cifar10"]
PAPER = ["--name=Yan2026Improving", "--title=T", "--authors=A", "--venue=V", "--link=L", "--dataset=cifar10"]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(robustbench, "EXAMPLES", COUNT)


def evaluated(directory: pathlib.Path, *, norm: str = "linf", attack: str = "autoattack", share: float = 1.0):
    """(run, test_batch.bin, adversarial images in its order, where robust): made-up results on shuffled data.

    Each second image is broken, by a perturbation of `share` of epsilon; two clean images are equal.
    """
    rng = np.random.default_rng(0)
    official, labels = rng.integers(16, 240, (COUNT, 32, 32, 3), np.uint8), np.arange(COUNT, dtype=np.uint8) % 10
    official[3], labels[3] = official[1], labels[1]
    robust, order = np.arange(COUNT) % 2 == 0, rng.permutation(COUNT)
    signs = np.where(rng.random(official.shape) < 0.5, -1, 1).astype(np.float32)
    size = share * (8 / 255 if norm == "linf" else 0.5 / np.sqrt(3072))
    moved = to_unit(official) + np.where(robust, 0, size).reshape(-1, 1, 1, 1).astype(np.float32) * signs
    directory.mkdir()
    run, batch = directory / "run", directory / "test_batch.bin"
    rows = np.concatenate([labels[:, None], official.transpose(0, 3, 1, 2).reshape(COUNT, -1)], axis=1)
    batch.write_bytes(rows.tobytes())
    convert.write_run(run, weights.describe(small()[0].clone(mean=0.5, std=0.5)), small()[1], "here")
    config = configs.default()
    config.data.name = "shuffled.npz"
    config.attack.norm, config.attack.epsilon = norm, 8.0 if norm == "linf" else 127.5
    config = configs.resolve(config)
    state = ResumeState(5, np.zeros(COUNT, np.int32), np.where(robust, ROBUST, 1)[order], moved[order], 9, 9)
    name = [] if attack == "autoattack" else [attack]
    autoattack.save(autoattack.Saved(run / f"{attack}.npz", json.dumps(["s", COUNT, *name]), COUNT), state)
    files.write_arrays_atomically(run / "outcomes.npz", {"setting": "s", attack: robust[order]})
    results = {
        "clean": 1.0, attack: 0.5, "examples": {"clean": COUNT, attack: COUNT}, "checkpoint": "best",
        "checkpoint_step": 0, "config": config.to_dict(),
    }  # fmt: skip
    (run / "results.json").write_text(json.dumps(results))
    return run, batch, moved, robust


@pytest.mark.parametrize(("dataset", "labels"), [("cifar10", 1), ("cifar100", 2)])
def test_official_images_follow_their_labels(tmp_path, dataset, labels):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    rows = [np.full((COUNT, labels), 7, np.uint8), images.transpose(0, 3, 1, 2).reshape(COUNT, -1)]
    (tmp_path / "test.bin").write_bytes(np.concatenate(rows, axis=1).tobytes())
    np.testing.assert_array_equal(adversarial_images.read_official(tmp_path / "test.bin", dataset, COUNT), images)


def assert_in_order(stored: np.ndarray, moved: np.ndarray):
    """Bit for bit; of the two equal clean images, 1 and 3, each adversarial image will do for the other."""
    found = np.moveaxis(stored, 1, -1)
    if np.array_equal(found[1], moved[3]):
        found = found[[0, 3, 2, 1, *range(4, COUNT)]]
    np.testing.assert_array_equal(found, moved)


@pytest.mark.parametrize(("norm", "board"), [("linf", "Linf, eps 8/255"), ("l2", "L2, eps 0.5")])
def test_an_external_evaluation(norm, board, tmp_path):
    torch = pytest.importorskip("torch")
    run, batch, moved, _ = evaluated(tmp_path / "there", norm=norm)
    external.main([str(run), str(tmp_path / "out"), f"--official={batch}", *ARGUMENTS])
    path = tmp_path / f"out/Rade2021Helper_ddpm_{board.split(',')[0]}.pt"
    images = torch.load(path, weights_only=True)
    assert (images.dtype, images.shape) == (torch.float32, (COUNT, 3, 32, 32))
    assert_in_order(images.numpy(), moved)
    text = path.with_suffix(".md").read_text()
    assert f"+ **Leaderboard(s):** cifar10, {board}\n" in text
    assert "+ **Model identifier(s):** Rade2021Helper_ddpm\n" in text
    assert "+ **Robust accuracy:** 50.00%\n+ **Author(s):** A, B\n" in text
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".pt", ".md"}


def test_the_latest_checkpoint_may_be_the_best(tmp_path):
    """Then its images are in the file of the best."""
    torch = pytest.importorskip("torch")
    run, batch, moved, _ = evaluated(tmp_path / "there")
    results = json.loads((run / "results.json").read_text())
    results["config"]["eval"] = {"checkpoint": "latest"}
    (run / "results.json").write_text(json.dumps(results))
    external.main([str(run), str(tmp_path / "out"), f"--official={batch}", *ARGUMENTS])
    images = torch.load(tmp_path / "out/Rade2021Helper_ddpm_Linf.pt", weights_only=True)
    assert_in_order(images.numpy(), moved)


def test_a_stage_and_an_npz_in_the_official_order(tmp_path):
    torch = pytest.importorskip("torch")
    run, batch, moved, _ = evaluated(tmp_path / "there", attack="apgd-t")
    pixels = np.fromfile(batch, np.uint8).reshape(COUNT, -1)[:, 1:].reshape(COUNT, 3, 32, 32)
    np.savez(tmp_path / "official.npz", image_test=np.moveaxis(pixels, 1, -1))
    arguments = [f"--official={tmp_path / 'official.npz'}", "--attack=apgd-t", *ARGUMENTS]
    external.main([str(run), str(tmp_path / "out"), *arguments])
    images = torch.load(tmp_path / "out/Rade2021Helper_ddpm_Linf.pt", weights_only=True)
    assert_in_order(images.numpy(), moved)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_entry_with_its_adversarial_images(norm, tmp_path):
    torch = pytest.importorskip("torch")
    run, batch, moved, _ = evaluated(tmp_path / "there", norm=norm)
    robustbench.main([str(run), str(tmp_path / "entry"), f"--official={batch}", *PAPER])
    threat, eps = {"linf": ("Linf", "8/255"), "l2": ("L2", "0.5")}[norm]
    images = torch.load(tmp_path / f"entry/Yan2026Improving_{threat}_adversarial.pt", weights_only=True)
    assert_in_order(images.numpy(), moved)
    entry = json.loads((tmp_path / f"entry/model_info/cifar10/{threat}/Yan2026Improving.json").read_text())
    assert (entry["eps"], entry["autoattack_acc"]) == (eps, "50.00")


def rewritten(path: pathlib.Path, **changes) -> None:
    with np.load(path) as saved:
        arrays = dict(saved) | changes
    np.savez(path, **arrays)


def edit_results(run, batch):
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"autoattack": 0.25}))


def edit_official(run, batch):
    content = bytearray(batch.read_bytes())
    content[100] ^= 128
    batch.write_bytes(content)


BAD = {  # what is done, further arguments, what the one line says
    "none": (lambda run, batch: (run / "autoattack.npz").unlink(), [], "autoattack.npz: no such file: evaluate it"),
    "damaged": (lambda run, batch: (run / "autoattack.npz").write_bytes(b"PK"), [], "autoattack.npz: damaged ("),
    "fields": (lambda run, batch: np.savez(run / "autoattack.npz", a=1), [], "damaged, or of another version"),
    "setting": (lambda run, batch: rewritten(run / "outcomes.npz", setting="t"), [], "not the images of this results"),
    "results": (edit_results, [], "not the images of this results.json"),
    "range": (
        lambda run, batch: rewritten(run / "autoattack.npz", adversarial=np.full((COUNT, 32, 32, 3), np.nan, "f4")),
        [],
        "expected (32, 32, 3), float32, within [0, 1]",
    ),
    "too far": (
        lambda run, batch: rewritten(run / "autoattack.npz", adversarial=np.zeros((COUNT, 32, 32, 3), "f4")),
        [],
        "test_batch.bin: 12 of its 12 images have no adversarial image of their own within linf epsilon 0.0313725",
    ),
    "official": (edit_official, [], "test_batch.bin: 1 of its 12 images have no adversarial image"),
    "absent": (lambda run, batch: batch.unlink(), [], "test_batch.bin: no such file"),
    "size": (lambda run, batch: batch.write_bytes(b"1" * 99), [], "expected cifar10's 12 test images, uint8"),
    "attack": (lambda run, batch: None, ["--attack=pgd20"], "results.json has pgd20 on 0 examples, expected 12"),
    "dataset": (
        lambda run, batch: None,
        ["--dataset=images 12345678"],
        "no leaderboard for data 'images 12345678': give --dataset=cifar10 or cifar100",
    ),
    "name": (lambda run, batch: None, ["--model=../x"], "argument --model: '../x': expected letters, digits"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(name, tmp_path, capsys):
    change, further, message = BAD[name]
    run, batch, *_ = evaluated(tmp_path / "there")
    change(run, batch)
    with pytest.raises(SystemExit), cli.one_line_errors():
        external.main([str(run), str(tmp_path / "out"), f"--official={batch}", *ARGUMENTS, *further])
    printed = capsys.readouterr().err
    assert re.search(re.escape(message), printed), printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_perturbation_slightly_beyond_epsilon_is_seen(tmp_path, capsys):
    for norm in ("linf", "l2"):
        run, batch, *_ = evaluated(tmp_path / norm, norm=norm, share=1.01)
        with pytest.raises(SystemExit), cli.one_line_errors():
            external.main([str(run), str(tmp_path / "out"), f"--official={batch}", *ARGUMENTS])
        assert (
            f"6 of its {COUNT} images have no adversarial image of their own within {norm}" in capsys.readouterr().err
        )


# Of a directory of infofeat_jax.evaluate.


def test_an_evaluation_of_any_model(tmp_path):
    """The tensor is bit for bit what `evaluate` returned, in the order of the official file."""
    torch = pytest.importorskip("torch")
    _, batch, *_ = evaluated(tmp_path / "there")
    rows = np.fromfile(batch, np.uint8).reshape(COUNT, -1)
    images, order = rows[:, 1:].reshape(COUNT, 3, 32, 32), np.random.default_rng(1).permutation(COUNT)
    kernel, name = np.random.default_rng(2).normal(size=(30, 10)).astype(np.float32), "apgd-ce(num_steps=5)"

    def forward(x):  # channels first
        return x.reshape(len(x), -1)[:, :30] @ kernel

    inputs = images[order].astype(np.float32) / 255  # rounded otherwise than by to_unit
    labels = forward(inputs).argmax(1)
    labels[::3] = (labels[::3] + 1) % 10  # misclassified: returned unchanged
    options = {"epsilon": float(np.float32(8 / 255)), "attacks": ("clean", name), "directory": tmp_path / "mine"}
    found = infofeat_jax.evaluate(forward, inputs, labels, progress=False, **options)
    assert 0 < found.accuracy[name] < found.accuracy["clean"] < 1
    external.main(
        [str(tmp_path / "mine"), str(tmp_path / "out"), f"--official={batch}", f"--attack={name}", *ARGUMENTS]
    )
    stored = torch.load(tmp_path / "out/Rade2021Helper_ddpm_Linf.pt", weights_only=True).numpy()
    assert_in_order(stored, np.moveaxis(found.adversarial[name][np.argsort(order)], 1, -1))
    assert np.abs(stored - images.astype(np.float32) / 255).max() <= 8 / 255 + 1e-6
    text = (tmp_path / "out/Rade2021Helper_ddpm_Linf.md").read_text()
    assert f"+ **Robust accuracy:** {100 * found.accuracy[name]:.2f}%\n" in text
    with pytest.raises(InvalidInput, match=r"expected 12: run infofeat_jax.evaluate\(..., attacks=\('clean', 'autoatt"):
        external.main([str(tmp_path / "mine"), str(tmp_path / "out"), f"--official={batch}", *ARGUMENTS])


def test_an_entry_of_an_evaluation_needs_the_run_that_has_its_weights(tmp_path):
    torch = pytest.importorskip("torch")
    run, mine = evaluated(tmp_path / "there")[0], tmp_path / "mine"
    images, labels = np.zeros((COUNT, 32, 32, 3), np.float32), np.zeros(COUNT, int)
    options = {"epsilon": 8 / 255, "attacks": ("clean",), "progress": False, "directory": mine}
    infofeat_jax.evaluate(infofeat_jax.load(run), images, labels, **options)
    results = json.loads((mine / "results.json").read_text())
    results["examples"]["autoattack"], results["autoattack"] = COUNT, 0.25
    (mine / "results.json").write_text(json.dumps(results))
    arguments = [str(mine), str(tmp_path / "entry"), *PAPER]
    with pytest.raises(InvalidInput, match="without its weights: give the run that has them, --weights=RUN"):
        robustbench.main(arguments)
    module, other = small()
    convert.write_run(tmp_path / "other", weights.describe(module), jax.tree.map(lambda x: 2 * x, other), "here")
    with pytest.raises(InvalidInput, match=r"--weights=.*other: not the weights that were evaluated in .*mine"):
        robustbench.main([*arguments, f"--weights={tmp_path / 'other'}"])
    assert not (tmp_path / "entry").exists()
    robustbench.main([*arguments, f"--weights={run}"])
    entry = json.loads((tmp_path / "entry/model_info/cifar10/Linf/Yan2026Improving.json").read_text())
    assert (entry["autoattack_acc"], entry["eps"]) == ("25.00", "8/255")
    state = torch.load(tmp_path / "entry/Yan2026Improving.pt", weights_only=True)
    assert_equal_trees(jax.device_get(models.from_torch(state)[1]), other)
