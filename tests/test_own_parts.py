"""Parts of one's own: those of the documentation in a whole run, mistakes, and that no saved name is imported."""

import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import infofeat_jax
from infofeat_jax import cli, data, experiment, methods, models, parts, report, run, streams, weights
from infofeat_jax import config as configs
from infofeat_jax.evaluation import attack_names, evaluators
from infofeat_jax.export import convert
from infofeat_jax.models import own
from infofeat_jax.training import optimizers
from infofeat_jax.types import InvalidInput

ROOT = pathlib.Path(__file__).parent.parent
BUDGET = attack_names.Budget("linf", 8 / 255, 2 / 255)
EVIL = """
import pathlib
pathlib.Path({mark!r}).touch()
from own import ViT, tables, pairing, sign_noise, shifted, confidence
"""
WRONG = """
import flax.linen as nn
import jax
from infofeat_jax import methods
number = 3
def takes_nothing(): return None
def returns_none(*given, **options): return None
def draws(forward, key, images, labels): return jax.random.uniform(key, (len(images),))
def fails(*given, **options): raise RuntimeError("the first line\\nand the second")
def flat(forward, key, images, labels, **options): return images.reshape(len(images), -1)
def branches(**options): return lambda step: 0.1 if step < 100 else 0.01
def in_l2(forward, key, images, labels, *, norm, **options): return {"l2": images}[norm]
def in_colour(forward, key, images, labels, **options): return images.at[..., 2].add(0.1).reshape(-1, 3)
class Deep(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images): return nn.Dense(self.num_classes)(images)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current directory, with the page's own.py, wrong.py, and evil.py, whose import leaves the file `mark`."""
    folder = tmp_path_factory.mktemp("place")
    page = (ROOT / "docs" / "how-to" / "own-parts.md").read_text()
    (folder / "own.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    (folder / "wrong.py").write_text(WRONG)
    (folder / "broken.py").write_text("import nothing_of_that_name")
    (folder / "evil.py").write_text(EVIL.format(mark=str(folder / "mark")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        yield folder
    for name in ("own", "wrong", "broken", "evil"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def given(monkeypatch, place):
    """Nothing is trusted at first; evil has not been imported."""
    monkeypatch.setattr(parts, "_trusted", set())
    sys.modules.pop("evil", None)
    (place / "mark").unlink(missing_ok=True)


def configure(**changes):
    """A run of the page's parts on a few digits."""
    config = configs.default()
    config.batch_size, config.num_epochs = 16, 2
    config.model.name, config.method.name = "own:ViT", "own:pairing"
    config.data.update({"name": "digits", "train_size": 32, "validation_size": 8, "test_size": 12, "crop_padding": 0})
    config.attack.num_steps = 1
    config.optimizer.update({"name": "own:lion", "schedule": "own:triangle", "learning_rate": 0.01})
    config.eval.update({"attacks": ("clean", "own:sign_noise(tries=2)"), "validation_attack": "own:sign_noise",
                        "evaluators": ("own:shifted(pixels=1)", "own:confidence"), "batch_size": 16,
                        "probe_examples": 0})  # fmt: skip
    config.checkpoint.every_minutes = 0.0
    config.update_from_flattened_dict(changes)
    return configs.resolve(config)


def trusting(config):
    """As the command does with what it is given."""
    parts.trust(*parts.names_in(configs.to_json(config)))
    return config


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """A trained and evaluated run of the page's parts."""
    directory = tmp_path_factory.mktemp("runs") / "mine"
    config = trusting(configure())
    cli.check(config, directory, "train")
    cli.execute_run(config, directory, "train")
    return directory


def test_a_run_of_ones_own_parts(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results["examples"]) == {"clean", "own:sign_noise(tries=2)"}
    assert results["own:sign_noise(tries=2)"] <= results["clean"]
    assert "patches" in (finished / "parameters.txt").read_text()
    assert not (finished / "cam_images.npz").exists()  # it returns no maps
    epochs = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs if "epoch" in line] == [1, 2]


def test_ones_own_evaluators_give_each_image_a_value(finished, capsys):
    """Against a plain loop over the moved images; and where a reader meets the means."""
    images, labels = data.load("digits", validation_size=8, train_size=32, test_size=12).test
    one = experiment.create(trusting(configure()), finished)
    state = experiment.restore(one, "best")
    subject = run.create_subject(one, state.evaluated)

    def logits(pixels):
        return np.asarray(one.module.apply(state.evaluated, data.to_unit(jnp.asarray(pixels))).logits)

    moves = itertools.product((-1, 0, 1), repeat=2)
    predicted = [logits(np.roll(images, move, (1, 2))).argmax(-1) for move in moves]
    expected = [classes == labels for classes in predicted]
    shares = np.exp(logits(images)) / np.exp(logits(images)).sum(-1, keepdims=True)
    with np.load(finished / "outcomes.npz") as values:
        np.testing.assert_array_equal(values["evaluator/own:shifted(pixels=1)"], np.all(expected, axis=0))
        np.testing.assert_allclose(values["evaluator/own:confidence"], shares.max(-1), rtol=1e-5)
    parts.trust("wrong:draws")
    drawn = [evaluators.measure(subject._replace(seed=seed), "wrong:draws", lambda *_, **__: None) for seed in (0, 1)]
    key = jax.random.fold_in(streams.key(1, "evaluation"), 0)
    np.testing.assert_array_equal(drawn[1], np.asarray(jax.random.uniform(key, (16,)))[:12])
    assert (drawn[0] != drawn[1]).all()
    middle = predicted[4].astype(np.int32)  # as labels, which such a short training does not hit
    found = evaluators.measure(
        subject._replace(split=data.Split(images, middle)), "own:shifted(pixels=1)", lambda *_, **__: None
    )
    np.testing.assert_array_equal(found, np.all([classes == middle for classes in predicted], axis=0))
    assert 0 < found.mean() < 1
    means = {"own:shifted(pixels=1)": np.all(expected, axis=0).mean(), "own:confidence": shares.max(-1).mean()}
    results = json.loads((finished / "results.json").read_text())
    assert results["evaluators"] == pytest.approx(means, rel=1e-5)
    report.write(finished)
    text = (finished.parent / "report" / "index.html").read_text()
    shown = capsys.readouterr().out.replace("\n", " ")
    for name, value in means.items():
        assert name in text
        assert f"{name} {value:.4g}" in shown


def test_it_resumes_to_the_same_bits(finished, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    shutil.rmtree(again / "checkpoints" / "4")
    trained = run.train(experiment.create(trusting(configure()), again))
    assert "continuing at step 2" in capsys.readouterr().out
    expected = weights.read_variables(finished, "latest")["params"]
    jax.tree.map(np.testing.assert_array_equal, trained.params, expected)


def test_another_run_starts_from_it_and_is_attacked_from_it(finished, tmp_path):
    config = trusting(configure(**{"init_from": str(finished)}))
    adopted = weights.adopt(config, tmp_path)
    assert adopted.model.name == "own:ViT"
    one = experiment.create(adopted, finished.parent / "other")
    started = experiment.create_state(one)
    expected = weights.read_variables(finished, "best")["params"]
    jax.tree.map(np.testing.assert_array_equal, started.params, expected)
    source = run.load_source(one, "mine")
    images = jnp.zeros((1, 8, 8, 1))
    np.testing.assert_array_equal(source.forward(images).logits, one.module.apply(started.variables, images).logits)
    assert run.is_current(finished.parent / "other", "pgd2@mine", source.digest)


def test_tables_of_files_are_a_data_set(place, tmp_path):
    for split, count in (("train", 6), ("test", 2)):
        for index in range(count):
            Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{split}{index}.png")
        lines = [f"{split}{index}.png,{('cat', 'dog')[index % 2]}\n" for index in range(count)]
        (tmp_path / f"{split}.csv").write_text("".join(lines))
    parts.trust("own:tables")
    loaded = data.load("own:tables", data_dir=str(tmp_path), validation_size=1)
    assert (loaded.num_classes, loaded.name, loaded.test.images.shape) == (2, "own:tables", (2, 4, 4, 3))
    assert loaded.class_names == ("cat", "dog")
    np.testing.assert_array_equal(loaded.train.images[:, 0, 0, 0] % 2, loaded.train.labels)


# Models.


def create(name: str, **options):
    parts.trust(name)
    return models.create(name, num_classes=3, **options)


def test_dropout_acts_in_training_alone():
    module, images = create("own:ViT"), jnp.linspace(0, 1, 64).reshape(1, 8, 8, 1)
    variables = module.init(jax.random.key(0), images)

    def trained(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0].logits

    assert np.abs(trained(1) - trained(2)).max() > 0
    evaluated = module.apply(variables, images)
    np.testing.assert_array_equal(evaluated.logits, module.inner.apply({"params": variables["params"]}, images))
    assert evaluated.cam is None


def test_collections_may_have_any_name():
    class Counting(nn.Module):
        """Counts its passes in training, in a collection of its own."""

        @nn.compact
        def __call__(self, images, is_training):
            count = self.variable("passes", "count", lambda: jnp.zeros(()))
            if is_training:
                count.value += 1
            return nn.Dense(3)(images.mean((1, 2))), count.value

    module, images = own.Own(Counting()), jnp.ones((2, 4, 4, 1))
    variables = module.init(jax.random.key(0), images)
    assert set(variables) == {"params", "batch_stats"}
    _, moved = module.apply(variables, images, train=True, mutable=["batch_stats"])
    assert moved["batch_stats"]["passes"]["count"] == 1
    assert module.apply(variables | moved, images).logits.shape == (2, 3)


def test_options_that_differ_from_their_defaults_reach_the_model():
    assert create("own:ViT").inner.dim == 16
    assert create("own:ViT", dim=8, dtype="float32", remat=False).inner.dim == 8
    with pytest.raises(InvalidInput, match=r"own:ViT.*unexpected keyword argument 'dtype'"):
        create("own:ViT", dtype="bfloat16")


@pytest.mark.parametrize(
    ("method", "message"), [("infofeature", "no class activation maps"), ("feature_matching", "returns logits alone")]
)
def test_methods_that_need_maps_say_so(method, message):
    config = trusting(configure(**{"method.name": method}))
    with pytest.raises(InvalidInput, match=rf"{method}.*own:ViT.*{message}") as caught:
        experiment.create(config, pathlib.Path("nowhere"))
    assert "\n" not in str(caught.value)


def test_attacks_that_need_maps_say_so_before_training():
    config = trusting(configure(**{"eval.attacks": ("clean", "infofeature5")}))
    with pytest.raises(InvalidInput, match=r"infofeature5.*no class activation maps"):
        experiment.create(config, pathlib.Path("nowhere"))


# Attacks.


@pytest.mark.parametrize(
    ("written", "name", "file"),
    [
        ("a.b:attack20", "a.b:attack20", "a.b_attack20"),
        (" my_1:A ( tries = 3, epsilon=4 ) ", "my_1:A(epsilon=4,tries=3)", "my_1_A_epsilon_4_tries_3_"),
        ("a:b(mode=fast)@madry-seed0", "a:b(mode=fast)@madry-seed0", "a_b_mode_fast_madry-seed0"),
    ],
)
def test_names_of_attacks_are_parsed_without_an_import(written, name, file):
    spec = attack_names.parse(written)
    assert (spec.name, spec.file_name) == (name, file)
    assert attack_names.parse(spec.name) == spec
    assert not spec.is_cascade


@pytest.mark.parametrize("name", ["confidence", "pgd20", "own:shifted(2)", "own:shifted@run"])
def test_mistaken_names_of_evaluators_are_not_called_attacks(name):
    with pytest.raises(InvalidInput, match=r"^config.eval.evaluators: .*: expected package.module:name"):
        evaluators.create(name)


@pytest.mark.parametrize("name", ["a:b20:c", "a:", ":b", "a:b(3)", "a:b(x=1,x=2)", "a:b(x=)", "a:b(epsilon=-1)"])
def test_mistaken_names_of_attacks(name):
    with pytest.raises(InvalidInput, match=r"attack"):
        attack_names.parse(name)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_attack_cannot_leave_the_threat_model(monkeypatch, norm):
    seen = {}

    def cheat(forward, key, images, labels, **options):
        seen.update(options)
        return (1 - images).at[0, 0, 0].set(jnp.nan)

    monkeypatch.setattr(parts, "find", lambda field, name: cheat)
    budget = attack_names.Budget(norm, 8 / 255, 2 / 255)
    attack = attack_names.create(attack_names.parse("my:cheat(step_size=51,epsilon=25.5,kind=x)"), budget)
    images = jnp.full((2, 4, 4, 1), 0.3)
    found = attack(lambda x: x.mean((1, 2)), jax.random.key(0), images, jnp.zeros(2, jnp.int32))
    flat = np.asarray(found - images).reshape(2, -1)
    sizes = np.linalg.norm(flat, ord={"linf": np.inf, "l2": 2}[norm], axis=1)
    np.testing.assert_allclose(sizes, 0.1, rtol=1e-4)
    assert seen == {"norm": norm, "epsilon": 0.1, "step_size": 0.2, "kind": "x"}


def test_an_attack_is_tried_in_the_threat_model_and_on_the_shape_of_the_data():
    """Before training, with a model of ours too; the digits have one channel."""
    changes = {"model.name": "wrn_10_1", "method.name": "standard", "optimizer.name": "sgd", "eval.evaluators": ()}
    changes |= {"optimizer.schedule": "piecewise", "eval.validation_attack": "fgsm", "attack.norm": "l2"}
    config = trusting(configure(**changes | {"eval.attacks": ("wrong:in_l2",)}))
    cli.check(config, pathlib.Path("nowhere"), "")
    experiment.create(config, pathlib.Path("nowhere"))
    config = trusting(configure(**changes | {"eval.attacks": ("wrong:in_colour",)}))
    cli.check(config, pathlib.Path("nowhere"), "")
    with pytest.raises(InvalidInput, match=r"attack 'wrong:in_colour' failed: .*") as caught:
        experiment.create(config, pathlib.Path("nowhere"))
    assert "\n" not in str(caught.value)


def test_a_schedule_is_tried_before_training():
    changes = {"model.name": "wrn_10_1", "method.name": "madry", "optimizer.name": "sgd", "eval.evaluators": ()}
    changes |= {"optimizer.schedule": "wrong:branches", "eval.attacks": ("clean",), "eval.validation_attack": "fgsm"}
    with pytest.raises(InvalidInput, match=r"optimizer.schedule 'wrong:branches'.*TracerBool") as caught:
        experiment.create(trusting(configure(**changes)), pathlib.Path("nowhere"))
    assert "\n" not in str(caught.value)


def test_every_name_that_a_configuration_gives_is_trusted(monkeypatch):
    """Of any alphabet, beside values that are no JSON."""
    trusted = set()

    def trust(*names):
        trusted.update(names)
        raise InvalidInput("nothing is run")

    monkeypatch.setattr(parts, "trust", trust)
    config = configs.default()
    config.model.name, config.study.seeds = "own:R\u00e9seau", tuple(np.arange(2))
    config.eval.attacks = ("clean", "own:bruit(tries=2)")
    with pytest.raises(InvalidInput, match="nothing is run"):
        cli.execute(config, "configs/digits.py", workdir="", mode="", hosts=("", 0, 0))
    assert trusted == {"own:R\u00e9seau", "own:bruit"}


# Mistakes.

CALLS = {
    "model": lambda name: models.create(name, num_classes=3),
    "method": lambda name: methods.create(name, methods.Options(3, {})),
    "attack": lambda name: attack_names.check(attack_names.parse(name), BUDGET),
    "data": lambda name: data.load(name),
    "evaluator": lambda name: evaluators.check(name, lambda images: jnp.zeros((len(images), 3)), (8, 8, 1)),
    "optimizer": lambda name: optimizers.create_optimizer(name, lambda step: 0.1, momentum=0.9),
    "schedule": lambda name: optimizers.create_schedule(name, learning_rate=0.1),
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.module:x", "no module 'absent', neither in .* nor installed: check the spelling"),
        ("broken:x", "importing broken failed: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("own:lyon", "own.py has no such name: expected a function or class, such as lion"),
        ("wrong:number", "wrong.py has a value of type int: expected a function or class"),
        ("wrong:takes_nothing", "called as .*but (got an unexpected|too many positional).*docs/how-to/own-parts.md"),
        ("wrong:fails", "failed: RuntimeError: the first line and the second"),
        ("wrong:returns_none", "returned NoneType: expected"),
    ],
)
def test_mistakes_are_one_line(kind, name, message):
    parts.trust(name)
    with pytest.raises(InvalidInput, match=message) as caught:
        CALLS[kind](name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_does_not_fit_the_images_is_one_line():
    with pytest.raises(InvalidInput, match=r"wrong:Deep.*logits of shape \[2, 8, 8, 10\]"):
        experiment.create(trusting(configure(**{"model.name": "wrong:Deep"})), pathlib.Path("nowhere"))


def test_main_finds_modules_in_the_current_directory(place):
    flags = ["--config=digits", "--config.optimizer.name=own:lyon", f"--workdir={place}/new"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *flags], cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.fullmatch(r"error: config.optimizer.name = 'own:lyon': .*such as lion\n", done.stderr)


# Other people's runs.


@pytest.fixture
def theirs(finished, tmp_path):
    """Somebody else's run, whose configuration and results name parts of the module evil."""
    directory = tmp_path / "theirs"
    shutil.copytree(finished, directory)
    for name in ("config.json", "results.json"):
        text = (directory / name).read_text().replace("own:", "evil:")
        (directory / name).write_text(text)
    assert "evil:ViT" in (directory / "config.json").read_text()
    return directory


def start_from(directory):
    config = trusting(configure(**{"init_from": str(directory)}))
    experiment.create(weights.adopt(config, directory.parent / "new"), directory.parent / "new")


def evaluate_converted(directory):
    """Their directory holds "converted" weights, whose model is taken over from config.json."""
    stored = json.loads((directory / "config.json").read_text()) | {"num_epochs": 0, "init_from": "robust.pt"}
    (directory / "config.json").write_text(json.dumps(stored))
    config = trusting(configure())
    experiment.create(weights.adopt(config, directory), directory)


def attack_from(directory):
    one = experiment.create(trusting(configure()), directory.parent / "new")
    run.load_source(one, directory.name)


def evaluate_results_data(directory):
    """As export.robustbench --official does."""
    results = json.loads((directory / "results.json").read_text())
    results["config"]["data"]["name"] = "evil:tables"
    experiment.load_data(configs.ConfigDict(configs.complete(results["config"])))


@pytest.mark.parametrize("use", [start_from, evaluate_converted, attack_from, evaluate_results_data])
def test_a_saved_name_is_not_imported(theirs, place, use):
    with pytest.raises(InvalidInput, match=r"evil:\w+.*not imported.*--trust=evil:\w+") as caught:
        use(theirs)
    assert "\n" not in str(caught.value)
    assert not (place / "mark").exists()


def test_it_is_imported_once_the_command_line_names_it(theirs, place):
    parts.trust("evil:ViT")
    attack_from(theirs)
    assert (place / "mark").exists()


def other_evaluation(directory):
    cli.check(trusting(configure()), directory, "evaluate")


@pytest.mark.parametrize(
    "use",
    [
        weights.load, infofeat_jax.load, other_evaluation,
        lambda directory: convert.main([str(directory), str(directory.parent / "x.npz")]),
        lambda directory: convert.main([str(directory), str(directory.parent / "x.stablehlo")]),
    ],
)  # fmt: skip
def test_what_cannot_use_it_refuses_without_an_import(theirs, place, use):
    with pytest.raises(InvalidInput, match=r"evil:ViT"):
        use(theirs)
    assert not (place / "mark").exists()


def test_a_report_imports_nothing(theirs, place):
    report.write(theirs)
    assert "evil:sign_noise" in (theirs.parent / "report" / "index.html").read_text()
    assert not (place / "mark").exists()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("own:ViT", ["own:ViT"]),
        ("a.b:c(x=1)@run", ["a.b:c"]),
        ("label: model.name=a.b:c method.name=d:e", ["a.b:c", "d:e"]),
        ("C://x", []),
        ("madry", []),
    ],
)
def test_the_command_line_trusts_the_names_in_its_texts(text, names):
    assert parts.names_in(text) == names


@pytest.fixture
def reported(monkeypatch):
    """The directories that the command has reported, in this process, which it leaves as it is."""
    directories = []
    monkeypatch.setattr(cli.report, "write", directories.append)
    for name in ("compilation.tune_cpu", "processes.start", "compilation.keep_compiled", "signals.listen"):
        monkeypatch.setattr(f"infofeat_jax.cli.{name}", lambda *given: None)
    return directories


def test_a_report_is_of_the_runs_there_are_where_the_configurations_own_is_not(reported, monkeypatch, tmp_path):
    """After `:standard` alone a report of `--config=digits.py` is of that; a --workdir is as it was given."""
    monkeypatch.chdir(tmp_path)
    report = partial(cli.execute, configs.default(), "digits.py", mode="report", hosts=("", 0, -1))
    for workdir in ("", "runs/digits/none"):
        report(workdir=workdir)
    pathlib.Path("runs/digits/standard").mkdir(parents=True)
    for workdir in ("", "runs/digits/none"):
        report(workdir=workdir)
    assert list(map(str, reported)) == [
        "runs/digits/infofeature",
        "runs/digits/none",
        "runs/digits",
        "runs/digits/none",
    ]


@pytest.mark.usefixtures("reported")
def test_the_command_trusts_what_it_is_given(tmp_path):
    config = configs.default()
    config.model.name, config.study.rows = "own:ViT", ("a: method.name=own:pairing",)
    cli.execute(config, "x.py", workdir=str(tmp_path), mode="report", hosts=("", 0, -1), trust=["evil:tables"])
    assert parts._trusted >= {"own:ViT", "own:pairing", "evil:tables"}


def test_a_saved_evaluator_is_not_imported_unless_the_command_line_names_it(tmp_path, place):
    """An evaluation has the evaluators of its command line, which are imported if that names them."""
    own_model = {"model.name": "wrn_10_1", "method.name": "standard", "eval.attacks": ("clean",),
                 "eval.validation_attack": "fgsm", "optimizer.name": "sgd",
                 "optimizer.schedule": "piecewise"}  # fmt: skip
    saved = configure(**own_model, **{"eval.evaluators": ("evil:shifted",)})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(configs.to_json(saved))
    cli.check(configure(**own_model, **{"eval.evaluators": ()}), tmp_path, "evaluate")
    assert not (place / "mark").exists()
    with pytest.raises(InvalidInput, match=r"evil:shifted.*not imported.*--trust=evil:shifted"):
        cli.check(saved, tmp_path, "evaluate")
    assert not (place / "mark").exists()
    cli.check(trusting(saved), tmp_path, "evaluate")
    assert (place / "mark").exists()


@pytest.mark.parametrize("name", ["pgd20", "own:shifted@other", "own"])
def test_an_evaluator_is_ones_own(name):
    with pytest.raises(InvalidInput, match=r"expected package\.module:name|unknown attack"):
        evaluators.parse(name)


def test_evaluate_imports_the_attacks_that_its_caller_names():
    model = lambda images: jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], -1)  # noqa: E731
    images, labels = np.linspace(0.3, 0.7, 32, dtype=np.float32).reshape(8, 2, 2, 1), np.repeat([1, 0], 4)
    result = infofeat_jax.evaluate(
        model, images, labels, epsilon=0.3, attacks=("clean", "own:sign_noise(tries=30)"), progress=False
    )
    assert result.accuracy["clean"] == 1
    assert result.accuracy["own:sign_noise(tries=30)"] < 1


def test_what_is_trusted_is_a_name():
    with pytest.raises(InvalidInput, match=r"package.module:name"):
        parts.trust("evil")
