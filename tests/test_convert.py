"""Weights across directories and files: converted, evaluated, trained from, written as a RobustBench entry."""

import json
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from test_evaluate import COUNT, make, outcomes, save_latest
from torch_helpers import assert_equal_trees, package_for, small

import infofeat_jax
from infofeat_jax import cli, models, report, run, weights
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.export import convert, robustbench
from infofeat_jax.types import InvalidInput

ROOT = pathlib.Path(__file__).parent.parent
ATTACKS = ("clean", "pgd2")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> experiments.Experiment:
    """A run's directory, evaluated."""
    the_run = make(tmp_path_factory.mktemp("runs") / "trained", attacks=ATTACKS, seed=3, model="wrn_10_1")
    run.evaluate_run(the_run)
    return the_run


@pytest.fixture(scope="module")
def file(trained) -> pathlib.Path:
    """Its weights as a file that needs no PyTorch."""
    path = trained.workdir.parent / "weights.npz"
    convert.main([str(trained.workdir), str(path)])
    return path


def configured(the_run: experiments.Experiment, directory: pathlib.Path, changes: dict) -> ConfigDict:
    """The run's configuration with changes, but another model: weights say what they are."""
    config = ConfigDict(the_run.config.to_dict())
    config.model = configs.default().model
    config.update_from_flattened_dict(changes)
    return weights.adopt(configs.resolve(config), directory)


def variables(the_run: experiments.Experiment):
    return jax.device_get(experiments.restore(the_run, "latest").variables)


def test_the_checkpoint_is_the_one_asked_for(tmp_path):
    """The best is the older one."""
    the_run = make(tmp_path / "run", model="wrn_10_1", seed=4)
    best, latest = save_latest(the_run)
    for which, state in (("best", best), ("latest", latest)):
        file = tmp_path / f"{which}.npz"
        convert.main([str(the_run.workdir), str(file), f"--checkpoint={which}"])
        for found in (infofeat_jax.load(the_run.workdir, which=which), infofeat_jax.load(file)):
            assert_equal_trees(found.args[0]["params"], jax.device_get(state.params))


def test_a_file_is_evaluated_as_its_run(trained, file, tmp_path):
    config = configured(trained, tmp_path, {"eval.torch_checkpoint": str(file)})
    cli.check(config, tmp_path, "evaluate")
    results = run.evaluate_run(experiments.create(config, tmp_path))
    for name in ATTACKS:
        np.testing.assert_array_equal(outcomes(tmp_path)[name], outcomes(trained.workdir)[name])
    assert results["checkpoint"] == str(file)
    assert results["config"]["num_epochs"] == 0
    assert results["config"]["model"]["name"] == "wrn_10_1"
    assert not (tmp_path / "checkpoints").exists()


def test_its_normalisation_goes_with_it_or_is_given(trained, file, tmp_path):
    config = configured(
        trained, tmp_path, {"eval.torch_checkpoint": str(file), "model.mean": (0.25,), "model.std": (0.125,)}
    )
    assert (experiments.create(config, tmp_path).module.mean, experiments.create(config, tmp_path).module.std) == (
        0.25,
        0.125,
    )
    convert.main([str(trained.workdir), str(tmp_path / "bare.npz"), "--bare"])
    config = configured(trained, tmp_path, {"eval.torch_checkpoint": str(tmp_path / "bare.npz")})
    assert (experiments.create(config, tmp_path).module.mean, experiments.create(config, tmp_path).module.std) == (
        0.0,
        1.0,
    )
    setting = run.describe_setting(experiments.create(config, tmp_path), variables(trained), COUNT)
    assert setting != run.describe_setting(trained, variables(trained), COUNT)  # outcomes are not mixed up


def test_an_activation_is_given_for_a_file_and_told_apart(trained, file, tmp_path, capsys):
    config = configured(trained, tmp_path, {"eval.torch_checkpoint": str(file), "model.activation": "silu"})
    the_run = experiments.create(config, tmp_path)
    assert the_run.module == trained.module.clone(activation="silu")
    settings = [run.describe_setting(one, variables(trained), COUNT) for one in (the_run, trained)]
    assert settings[0] != settings[1]
    trained.config.model.mean = (0.5,)
    old = ConfigDict({k: v for k, v in trained.config.model.to_dict().items() if k != "activation"})
    assert json.dumps(configs.to_json(old)) in run.describe_setting(trained, variables(trained), COUNT)  # as it was
    trained.config.model.mean = ()
    convert.main([str(file), str(tmp_path / "a.npz"), "--activation=silu", "--key="])
    printed = capsys.readouterr().out
    assert "wrn_10_1 of width 4 with SiLU, 10 classes" in printed
    assert "it does not tell the activation: whoever reads it gives SiLU" in printed


def test_deepminds_file_is_converted_and_written_as_one(tmp_path, capsys):
    """A file, a run's directory, a file again: the same network; a program for serving."""
    module, values = small("wrn_10_2", activation="silu", padding="same")
    normal = {"mean": (0.125, 0.25, 0.5), "std": (0.5, 0.5, 0.25)}
    models.save_torch(tmp_path / "dm.npz", values, "dm_wrn_10_2", deepmind_keys=True, **normal)
    convert.main([str(tmp_path / "dm.npz"), str(tmp_path / "run")])
    convert.main([str(tmp_path / "run"), str(tmp_path / "again.npz")])
    assert "a state_dict with the buffers mean and std" in capsys.readouterr().out
    with np.load(tmp_path / "dm.npz") as first, np.load(tmp_path / "again.npz") as again:
        assert_equal_trees(dict(first), dict(again))
    convert.main([str(tmp_path / "run"), str(tmp_path / "bare.npz"), "--bare"])
    with np.load(tmp_path / "dm.npz") as first, np.load(tmp_path / "bare.npz") as bare:
        assert set(first) - set(bare) == {"mean", "std"}
    assert weights.load(tmp_path / "run")[0] == module.clone(mean=normal["mean"], std=normal["std"])
    convert.main([str(tmp_path / "bare.npz"), str(tmp_path / "raw"), "--mean=0", "--std=1"])
    convert.main([str(tmp_path / "raw"), str(tmp_path / "raw.npz")])  # whose absence would stand for CIFAR-10's
    read = weights.load(tmp_path / "raw.npz")[0]
    assert (np.unique(read.mean), np.unique(read.std)) == (0, 1)
    convert.main([str(tmp_path / "dm.npz"), str(tmp_path / "model.stablehlo"), "--batch=2"])
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    served = jax.export.deserialize(bytearray((tmp_path / "model.stablehlo").read_bytes())).call(images)
    loaded, values = weights.load(tmp_path / "run")
    np.testing.assert_allclose(served, jax.jit(loaded.apply)(values, images).logits, atol=1e-4)


def test_a_converted_directory_is_evaluated_as_its_run(trained, file, tmp_path):
    directory = tmp_path / "converted"
    convert.main([str(file), str(directory)])
    config = configured(trained, directory, {})
    cli.check(config, directory, "evaluate")
    run.evaluate_run(experiments.create(config, directory))
    for name in ATTACKS:
        np.testing.assert_array_equal(outcomes(directory)[name], outcomes(trained.workdir)[name])
    for changes in ({"ema.decay": 0.9, "optimizer.name": "adam"}, {"optimizer.decay_norm": False}):
        recipe = configured(trained, directory, changes)  # which it was trained with
        experiments.restore(experiments.create(recipe, directory), "best")
    page = report.write(directory).read_text()  # beside runs that were trained here, and without their settings
    assert f"weights of {file}" in page
    assert "None steps" not in page
    with pytest.raises(InvalidInput, match=r"holds converted weights: to train from them, give --config\.init_from="):
        cli.check(config, directory, "train")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_training_starts_from_weights_and_goes_on_without_them(kind, trained, file, tmp_path):
    """With a learning rate of 0 the parameters stay, and the statistics move."""
    source = tmp_path / "source"
    if kind == "file":
        source = source.with_suffix(".npz")
        source.write_bytes(file.read_bytes())
    else:
        convert.main([str(file), str(source)])
    changes = {
        "init_from": str(source), "optimizer.learning_rate": 0.0, "num_epochs": 1, "data.train_size": 64,
        "batch_size": 64, "attack.num_steps": 1, "eval.validation_attack": "pgd1", "seed": 4,
    }  # fmt: skip
    workdir = tmp_path / "run"
    the_run = experiments.create(configured(trained, workdir, changes), workdir)
    workdir.mkdir()
    (workdir / "config.json").write_text(configs.to_json(the_run.config))
    run.train(the_run)
    after, before = variables(the_run), variables(trained)
    assert_equal_trees(after["params"], before["params"])
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), after["batch_stats"], before["batch_stats"])
    assert all(jax.tree.leaves(moved))
    source.rename(tmp_path / "elsewhere")
    again = configured(trained, workdir, changes)
    cli.check(again, workdir, "train")
    assert again.to_dict() == the_run.config.to_dict()
    assert int(run.train(experiments.create(again, workdir)).step) == 1
    (tmp_path / "elsewhere").rename(source)
    damaged = experiments.create(again, workdir)  # the weights are read again, not replaced by random ones
    for path in workdir.rglob("*/default/manifest.ocdbt"):
        path.write_bytes(b"")
    assert_equal_trees(run.train(damaged).params, before["params"])


def test_a_training_that_failed_before_its_first_checkpoint_keeps_no_normalisation(trained, tmp_path):
    """The file that it started from may have been exported anew since."""
    for mean in (0.25, 0.75):
        values = {"mean": mean, "std": 0.5}
        models.save_torch(tmp_path / "source.npz", variables(trained), **values)
        config = configured(trained, tmp_path / "run", {"init_from": str(tmp_path / "source.npz")})
        assert config.model.mean == (mean,)
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "config.json").write_text(configs.to_json(config))


def test_an_evaluation_does_not_ask_for_a_training_batch(trained, file, tmp_path):
    config = configured(trained, tmp_path, {"eval.torch_checkpoint": str(file), "batch_size": 10_000})
    with pytest.raises(InvalidInput, match="batch_size=10000 is larger than the training set"):
        experiments.create(config, tmp_path)
    restored = experiments.restore(experiments.create(config, tmp_path, to_train=False), "best")
    assert_equal_trees(jax.device_get(restored.params), variables(trained)["params"])


def test_runs_of_before_these_fields_go_on(trained):
    old = json.loads((trained.workdir / "config.json").read_text())
    del old["init_from"], old["model"]["mean"], old["model"]["options"], old["eval"]["torch_checkpoint"]
    del old["model"]["activation"]
    configs.check_same(old, trained.config, "run")
    with pytest.raises(InvalidInput, match=r"model\.mean: .* there, .* now"):
        configs.check_same(old, configured(trained, trained.workdir, {"model.mean": (0.1,)}), "run")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10", {}),
        ("resnet18", {"blocks": (1, 2, 1, 1)}),
        ("preact_resnet18", {"final_norm": False, "activated_shortcut": False}),
        ("wrn_16_2", {"activation": "silu", "padding": "same"}),
    ],
)
def test_every_model_survives_the_way_there_and_back(name, options, tmp_path):
    module, values = small(name, **options)
    module = module.clone(mean=(0.1, 0.2, 0.3), std=0.5)
    described = json.loads(json.dumps(weights.describe(module)))
    assert weights.create(described, 7) == module
    convert.write_run(tmp_path / "run", described, values, "here")
    assert weights.load(tmp_path / "run")[0] == module
    plain = weights.describe(models.create("wrn_16_2", num_classes=7))
    unset = {"width": 0, "activation": "", "mean": (), "std": (), "options": {}}  # as in any configuration
    assert plain == {"name": "wrn_16_2"} | unset
    assert_equal_trees(weights.load(tmp_path / "run")[1], values)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_files_of_each_kind_compute_the_same(suffix, trained, tmp_path):
    package_for(suffix)
    convert.main([str(trained.workdir), str(tmp_path / f"a{suffix}")])
    module, values = models.from_torch(tmp_path / f"a{suffix}")
    assert module == trained.module
    assert_equal_trees(jax.device_get(values), variables(trained))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize(("flags", "shape"), [([], "b,8,8,1"), (["--batch=5"], "5,8,8,1")])
def test_a_program_for_serving(flags, shape, trained, tmp_path):
    path = tmp_path / "model.stablehlo"
    convert.main([str(trained.workdir), str(path), "--image_size=8", *flags])
    served = jax.export.deserialize(bytearray(path.read_bytes()))
    images = trained.data.test.images[:5].astype(np.float32) / 255
    expected = trained.module.apply(jax.device_put(variables(trained)), jax.numpy.asarray(images)).logits
    np.testing.assert_allclose(served.call(images), expected, atol=1e-5)
    assert f"float32[{shape}]" in str(served.in_avals[0])


# What a RobustBench entry needs.

PAPER = ["--name=Yan2026Improving", "--title=T", "--authors=A, B", "--venue=V", "--link=https://example.org"]


def evaluated(trained, directory: pathlib.Path, **changes) -> pathlib.Path:
    """A directory with the weights of `trained` and made-up results over as many examples as an entry needs."""
    convert.write_run(directory, weights.describe(trained.module), variables(trained), "here")
    config = trained.config.to_dict()
    config["data"]["name"], config["attack"]["epsilon"] = "cifar10", 8.0
    results = {
        "clean": 0.81235, "autoattack": 0.5, "examples": {"clean": 10_000, "autoattack": 10_000},
        "checkpoint": "best", "checkpoint_step": 0, "config": config,
    }  # fmt: skip
    (directory / "results.json").write_text(json.dumps(results | changes))
    return directory


def test_robustbench_entry(trained, tmp_path):
    torch = pytest.importorskip("torch")
    source = evaluated(trained, tmp_path / "run")
    robustbench.main([str(source), str(tmp_path / "entry"), *PAPER])
    path = tmp_path / "entry/model_info/cifar10/Linf/Yan2026Improving.json"
    entry = json.loads(path.read_text())
    footnote = entry.pop("footnote")
    assert "infofeat_jax" in footnote
    assert entry == {  # the fields and their types as in RobustBench's own files
        "link": "https://example.org", "name": "T", "authors": "A, B", "additional_data": False,
        "number_forward_passes": 1, "dataset": "cifar10", "venue": "V",
        "architecture": "WideResNet-10-1 (width 4)", "eps": "8/255", "clean_acc": "81.23", "reported": "50.00",
        "autoattack_acc": "50.00",
    }  # fmt: skip
    state = torch.load(tmp_path / "entry/Yan2026Improving.pt", weights_only=True)
    assert float(state["mu"].squeeze()) == float(state["sigma"].squeeze()) == 0.5
    robustbench.main([str(source), str(tmp_path / "more"), *PAPER, "--additional_data"])
    assert json.loads((tmp_path / "more" / path.relative_to(tmp_path / "entry")).read_text())["additional_data"] is True
    assert_equal_trees(jax.device_get(models.from_torch(state)[1]), variables(trained))


def test_the_network_of_a_file_is_the_one_asked_for(file, tmp_path):
    torch = pytest.importorskip("torch")
    with np.load(file) as arrays:
        first = {name: torch.from_numpy(arrays[name]) for name in arrays}
    second = {name: value + (name == "fc.bias") for name, value in first.items()}
    torch.save({"net": first, "ema": second}, tmp_path / "both.pt")
    biases = []
    for key in ("net", "ema"):
        convert.main([str(tmp_path / "both.pt"), str(tmp_path / key), f"--key={key}"])
        biases.append(weights.load(tmp_path / key)[1]["params"]["fc"]["bias"])
    np.testing.assert_allclose(biases[1], biases[0] + 1, atol=1e-6)


def test_a_run_is_loaded_in_its_dtype(tmp_path, trained):
    """In float32 its accuracies would be a little different from those that were evaluated."""
    convert.write_run(tmp_path / "run", weights.describe(trained.module), variables(trained), "here")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    module, values = weights.load(tmp_path / "run")
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    assert module == trained.module.clone(dtype=jnp.bfloat16)
    found, expected = (one.apply(values, images).logits for one in (module, trained.module))
    assert 0 < np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("resnet18", 0, "ResNet-18"), ("resnet18", 16, "ResNet-18 (width 16)"),
        ("preact_resnet18", 0, "PreActResNet-18"), ("wrn_28_10", 0, "WideResNet-28-10"),
    ],
)  # fmt: skip
def test_architectures_in_an_entry(name, width, expected):
    assert robustbench.architecture(models.create(name, num_classes=10, width=width)) == expected


def test_an_entry_has_the_weights_of_the_checkpoint_that_was_evaluated(trained, tmp_path):
    torch = pytest.importorskip("torch")
    the_run = make(tmp_path / "run", model="wrn_10_1", seed=5)
    _, latest = save_latest(the_run)
    scored = evaluated(trained, tmp_path / "scored")
    results = json.loads((scored / "results.json").read_text()) | {"checkpoint": "latest"}
    results["checkpoint_step"] = int(latest.step)
    (the_run.workdir / "results.json").write_text(json.dumps(results))
    robustbench.main([str(the_run.workdir), str(tmp_path / "entry"), *PAPER])
    state = torch.load(tmp_path / "entry/Yan2026Improving.pt", weights_only=True)
    assert_equal_trees(jax.device_get(models.from_torch(state)[1]["params"]), jax.device_get(latest.params))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": {"clean": 10_000}}, "autoattack on 0 examples, expected 10000: run main.py --mode=evaluate"),
        ({"examples": {"clean": 10_000, "autoattack": 1_000}}, "autoattack on 1000 examples, expected 10000"),
        ({"examples": {"clean": 500, "autoattack": 10_000}}, "clean on 500 examples"),
        ({"checkpoint_step": 9}, "results.json is of step 9, the best checkpoint of 0: evaluate it anew"),
        (
            {"config": {"attack": {"norm": "linf", "epsilon": 8.0}, "data": {"name": "digits"}}},
            "data .digits.: give --dataset",
        ),
        ({"config": {"attack": {"norm": "linf", "epsilon": 4.0}, "data": {"name": "cifar10"}}}, "epsilon 4/255, the"),
    ],
)
def test_robustbench_refuses_other_results(trained, changes, message, tmp_path):
    source = evaluated(trained, tmp_path / "run", **changes)
    with pytest.raises(InvalidInput, match=message):
        robustbench.main([str(source), str(tmp_path / "entry"), *PAPER])
    assert not (tmp_path / "entry").exists()


def test_robustbench_has_no_weights_of_an_evaluated_file(trained, tmp_path):
    config = trained.config.to_dict()
    config["data"]["name"], config["attack"]["epsilon"] = "cifar10", 8.0
    config["eval"]["torch_checkpoint"] = "wang.pt"
    source = evaluated(trained, tmp_path / "run", config=config, checkpoint="wang.pt")
    with pytest.raises(InvalidInput, match=r"evaluated wang.pt .*convert wang.pt DIRECTORY"):
        robustbench.main([str(source), str(tmp_path / "entry"), *PAPER])


def test_an_entry_is_not_written_into_a_file(trained, tmp_path):
    source = evaluated(trained, tmp_path / "run")
    (tmp_path / "entry").touch()
    for target in (tmp_path / "entry", tmp_path / "entry" / "more"):
        with pytest.raises(InvalidInput, match=r"entry is a file: give a directory"):
            robustbench.main([str(source), str(target), *PAPER])


# Bad input.


def with_code(path: pathlib.Path, marker: pathlib.Path) -> None:
    class Code:
        def __reduce__(self):
            return pathlib.Path.touch, (marker,)

    path.write_bytes(pickle.dumps({"conv1.weight": Code()}, protocol=2))


BAD = {  # what is done to the file's arrays or bytes, and what the one line says
    "missing": (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, "1 missing: fc.bias"),
    "extra": (lambda s: s | {"fc2.bias": s["fc.bias"]}, "1 unexpected: fc2.bias"),
    "shape": (lambda s: s | {"fc.bias": s["fc.bias"][:3]}, "1 misshapen: fc.bias (3,) for (10,)"),
    "unknown": (lambda s: {"features.0.weight": s["fc.bias"]}, "1 keys: features.0.weight"),
    "truncated": (None, "truncated, or not a"),
    "absent": (None, "no such file"),
    "classes": (lambda s: s | {"fc.weight": s["fc.weight"][:7], "fc.bias": s["fc.bias"][:7]}, "in 7 classes; data"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("field", ["init_from", "eval.torch_checkpoint"])
def test_bad_weights_are_named_before_anything_is_written(kind, field, trained, file, tmp_path):
    change, message = BAD[kind]
    path, workdir = tmp_path / "bad.npz", tmp_path / "run"
    if change is not None:
        with np.load(file) as arrays:
            np.savez(path, **change(dict(arrays)))
    elif kind == "truncated":
        path.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidInput) as caught:
        experiments.create(configured(trained, workdir, {field: str(path)}), workdir)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not workdir.exists()


def test_what_no_shape_tells_is_said_and_is_not_overridden_in_silence(trained, tmp_path, capsys):
    """A PreActResNet whose shortcuts convolve the raw input, though it has a final BatchNorm."""
    module = models.create("preact_resnet18", num_classes=10, width=4, activated_shortcut=False)
    raw = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    directory, file, arch = tmp_path / "raw", str(tmp_path / "raw.npz"), "--arch=preact_resnet18_raw_shortcut"
    convert.write_run(directory, weights.describe(module), raw, "here")
    capsys.readouterr()
    convert.main([str(directory), file])
    assert f"whoever reads it here gives {arch}" in capsys.readouterr().out
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    logits = [infofeat_jax.load(path)(images).logits for path in (directory, file)]
    assert jnp.abs(logits[0] - logits[1]).max() > 1e-3
    assert not weights.load(file, "preact_resnet18_raw_shortcut")[0].activated_shortcut
    wanted = {"eval.torch_checkpoint": file, "model.options": {"activated_shortcut": False}}
    with pytest.raises(
        InvalidInput, match=r"options.activated_shortcut = False: .* is read with True; name what it is"
    ):
        configured(trained, tmp_path / "run", wanted)
    converted = configured(trained, tmp_path / "run", wanted | {"eval.torch_checkpoint": str(directory)})
    assert converted.model.options.activated_shortcut is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "out"], "error: none.pt: no such file"),
        (["{file}", "out.h5"], "error: out.h5: expected a directory, or a file ending in .pt, .pth"),
        (["{file}", "out.npz", "--arch=resnet50"], "not 'resnet50': by its keys and shapes it is wrn_10_1"),
        (["{file}", "nowhere/out.npz"], "no such folder: nowhere"),
        (["{file}", "{run}"], "exists already: give another name"),
        (["{run}", "out.npz", "--mean=0.5"], "a run's config.json determines its architecture, activation and"),
        (["{file}", "out.npz", "--activation=gelu"], "argument --activation: invalid choice: 'gelu'"),
        (["{run}/..", "out.npz"], "no config.json: expected a run's directory"),
        (["{file}", "out.npz", "--mean=abc"], "error: argument --mean: 'abc': expected a number, or several as 0.49,"),
        (["{file}", "out.npz", "--mean=0.5", "--std=0"], "std 0.0: expected one number or"),
        (["{file}", "out.npz", "--image_size=x"], "argument --image_size: 'x': expected a whole number, 1 or more"),
        (["{file}"], "error: the following arguments are required: TARGET; --help explains"),
        (["{file}", "out.stablehlo", "--batch=0"], "argument --batch: '0': expected a whole number, 1 or more"),
        (["{file}", "out.npz", "--checkpoint=latest"], "--checkpoint has no effect here: expected a run's directory"),
        (["{file}", "out", "--bare"], "--bare has no effect here: expected a TARGET ending in .pt, "),
        (["{file}", "out.npz", "--image_size=32"], "--image_size has no effect here: expected a TARGET ending in"),
        (["{file}", "out", "--batch=8"], "--batch has no effect here: expected a TARGET ending in .stablehlo"),
    ],
)
def test_mistakes_in_the_command(arguments, message, trained, file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit), cli.one_line_errors():
        convert.main([text.format(file=file, run=trained.workdir) for text in arguments])
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_itself_and_code_in_a_file(tmp_path):
    package_for(".pt")
    marker, path = tmp_path / "executed", tmp_path / "bad.pt"
    with_code(path, marker)
    command = [sys.executable, "-m", "infofeat_jax.export.convert", str(path), str(tmp_path / "out")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "refused: it holds more than tensors" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_other_misuse_is_named(trained, file, tmp_path):
    config = configured(trained, tmp_path, {"eval.torch_checkpoint": str(file)})
    with pytest.raises(InvalidInput, match=r"is for --mode=evaluate; to train from it, use config\.init_from"):
        cli.check(config, tmp_path, "train")
    with pytest.raises(InvalidInput, match="holds a run of its own: give another --workdir"):
        cli.check(config, trained.workdir, "evaluate")
    broken = tmp_path / "broken"
    convert.write_run(broken, weights.describe(trained.module), variables(trained), "here")
    for part in (broken / "checkpoints/0/default").rglob("*"):
        if part.is_file() and part.stat().st_size > 200:
            part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"checkpoint .*/0 is damaged \("):
        weights.load(broken)
