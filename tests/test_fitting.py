"""fit: the loop of the command in one call, and what it refuses."""

import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from test_data import message
from test_loop import same
from test_step import create_experiment
from test_wiring import create_data

import infofeat_jax
from infofeat_jax import attacks, data, methods, run
from infofeat_jax import experiment as experiments
from infofeat_jax.data import augment
from infofeat_jax.runtime import signals
from infofeat_jax.training import checkpoint, fit, fitting
from infofeat_jax.training.awp import Awp
from infofeat_jax.types import RunFailed, Stopped

LABELS = np.zeros(32, np.int32)
ROOT = pathlib.Path(__file__).parent.parent


class Plain(nn.Module):
    """A model of one's own, with layer normalisation and dropout, without BatchNorm or class activation maps."""

    num_classes: int = 5
    rate: float = 0.1

    @nn.compact
    def __call__(self, images, deterministic: bool = True):
        x = nn.LayerNorm()(images.reshape(len(images), -1))
        return nn.Dense(self.num_classes, name="last")(nn.Dropout(self.rate, deterministic=deterministic)(x))


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return create_experiment("standard").data


@pytest.fixture
def plain(dataset, tmp_path):
    """Arguments of a small training of one's own model."""
    return {
        "module": Plain(), "method": "madry", "data": dataset, "directory": tmp_path / "fitted", "epsilon": 8 / 255,
        "num_epochs": 3, "batch_size": 16, "num_steps": 1, "learning_rate": 0.01, "validation_attack": "fgsm",
        "checkpoint_minutes": 0.0, "optimizer": optax.adam,
    }  # fmt: skip


def test_it_is_the_commands_training(dataset, tmp_path):
    """The same parts given as values and by a configuration: the same bits."""
    one = create_experiment("infofeature", 8)
    config = one.config.copy_and_resolve_references()
    config.update({"num_epochs": 2})
    config.eval.validation_attack, config.eval.batch_size = "fgsm", 250
    config.optimizer.milestones = (1.0, 1.5)
    config.accumulate_steps, config.awp.gamma, config.awp.warmup_epochs, config.ema.decay = 2, 0.3, 1.0, 0.2
    (tmp_path / "command").mkdir()
    one = one._replace(config=config, workdir=tmp_path / "command")
    optimizer, schedule = experiments.create_optimizer(config, 2)
    expected = run.loop.train(run.create_training(one._replace(optimizer=optimizer, schedule=schedule)))
    fitted = fit(
        small.TinyNet(), "infofeature", dataset, directory=tmp_path / "fit", epsilon=8 / 255, num_epochs=2, num_steps=2,
        batch_size=16, augment=partial(augment.crop_and_flip, padding=1, flip=True), validation_attack="fgsm",
        accumulate_steps=2, awp=Awp(0.3, 2), ema_decay=0.2,
    )  # fmt: skip
    assert same(fitted.latest, expected.evaluated)
    best = checkpoint.restore(one.workdir, "best", expected)
    assert same(fitted.best, best.evaluated)
    there = [json.loads(line) for line in (one.workdir / "metrics.jsonl").read_text().splitlines()]
    accuracies = [record["validation_robust_accuracy"] for record in there if "epoch" in record]
    assert [record["validation_robust_accuracy"] for record in fitted.epochs] == accuracies


def test_ones_own_model_goes_on_to_the_same_bits_after_every_stop(plain, monkeypatch):
    plain["num_epochs"], stops = 2, 0
    whole = fit(**plain | {"directory": plain["directory"].with_name("whole")})
    while True:
        asked = itertools.count()
        monkeypatch.setattr(signals, "requested", lambda asked=asked: next(asked) >= 2)
        try:
            fitted = fit(**plain)
            break
        except Stopped:
            stops += 1
            assert stops < 20
    assert stops >= 3
    assert same(whole.latest, fitted.latest)
    assert same(whole.best, fitted.best)
    assert [record["step"] for record in fitted.epochs] == [2, 4]
    logits = plain["module"].apply(fitted.best, jnp.zeros((1, 8, 8, 3)))
    assert set(fitted.best) == {"params"}
    monkeypatch.undo()
    split = plain["data"].test
    clean = infofeat_jax.evaluate(fitted.model, *split, epsilon=8 / 255, attacks=("clean",), progress=False)
    assert logits.shape == (1, 5)
    best = max(record["validation_robust_accuracy"] for record in fitted.epochs)
    scores = [r["validation_clean_accuracy"] for r in fitted.epochs if r["validation_robust_accuracy"] == best]
    assert clean.accuracy["clean"] == pytest.approx(scores[-1])


def test_what_is_trained_is_returned_at_once(plain, monkeypatch):
    plain["num_epochs"] = 1
    first = fit(**plain)
    monkeypatch.setattr("infofeat_jax.training.loop.load_batch", pytest.fail)
    second = fit(**plain)
    assert same(first.best, second.best)
    assert first.epochs == second.epochs


def test_ones_own_method(plain):
    """A loss and an attack given as functions; standard training judges by clean accuracy."""

    def loss(forward, batch):
        logits = forward(batch.perturbed).logits
        return optax.softmax_cross_entropy(logits, batch.targets), logits

    def targets(forward, images, labels):
        return jax.nn.one_hot(labels, 5)

    attack = partial(attacks.fgsm, epsilon=8 / 255)
    ours = fit(**plain | {"method": methods.Method(attack, targets, loss), "num_epochs": 1})
    assert len(ours.epochs) == 1


def test_a_directory_is_for_one_training(plain):
    plain["num_epochs"] = 1
    fit(**plain)
    for changes, expected in (
        ({"seed": 1}, "holds a training with seed 0, not 1: repeat its arguments to continue it, or give another dir"),
        (
            {"module": Plain(rate=0.2)},
            "num_classes = 5 rate = 0.1 ), not Plain( # attributes num_classes = 5 rate = 0.2",
        ),
        ({"epsilon": 4 / 255}, "holds a training with epsilon 0.03137254901960784, not 0.0156"),
        ({"method": "trades"}, "holds a training with method madry, not trades"),
        ({"data": plain["data"]._replace(train=plain["data"].train._replace(labels=LABELS))}, "with data "),
        ({"batch_size": 8}, "with batch_size 16, not 8"),
        ({"num_epochs": 2}, "with num_epochs 1, not 2"),
        ({"accumulate_steps": 2}, "with accumulate_steps 1, not 2"),
        ({"awp": Awp(0.01)}, "with awp [0.0, 0], not [0.01, 0]"),
        ({"ema_decay": 0.5}, "with ema_decay 0.0, not 0.5"),
        ({"validation_attack": "pgd2"}, "with validation_attack fgsm, not pgd2"),
    ):
        assert expected in message(fit, **plain | changes)


def test_what_failed_before_its_first_checkpoint_binds_nobody(plain):
    with pytest.raises(RunFailed, match="lower the learning rate, in another directory if there is a checkpoint"):
        fit(**plain | {"learning_rate": 1e38, "optimizer": optax.sgd})
    assert len(fit(**plain | {"num_epochs": 1, "batch_size": 8}).epochs) == 1


@pytest.mark.usefixtures("unchecked")
def test_numbers_may_be_numpys(plain):
    plain |= {"num_epochs": np.int64(1), "seed": np.int64(3), "batch_size": np.int32(16), "num_steps": np.int64(1)}
    plain |= {"step_size": np.float32(2 / 255), "learning_rate": np.float32(0.01), "ema_decay": np.float32(0.5)}
    fit(**plain)
    assert "holds a training with learning_rate 0.0099" in message(fit, **plain | {"learning_rate": 0.02})


def test_a_directory_of_something_else(plain):
    plain["directory"].mkdir()
    (plain["directory"] / "config.json").write_text("{}")
    assert "fitted holds something else: give another directory" in message(fit, **plain)
    (plain["directory"].parent / "file").write_text("")
    assert "cannot be made (Not a directory)" in message(
        fit, **plain | {"directory": plain["directory"].parent / "file" / "x"}
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"method": "infofeature"}, "no class activation maps"),
        ({"method": "madri"}, "unknown method 'madri'"),
        ({"validation_attack": "pgd"}, "unknown attack 'pgd'"),
        ({"validation_attack": "autoattack"}, "validation_attack 'autoattack': expected one such as pgd7"),
        ({"epsilon": -1.0}, "epsilon -1.0: expected a finite number >= 0"),
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"num_epochs": 0}, "num_epochs 0: expected 1 or more"),
        ({"batch_size": 33}, "batch_size=33 is larger than the training set"),
        ({"module": nn.Dense(5)}, "logits"),
        ({"data": "digit"}, "unknown data set 'digit'"),
        ({"data": pathlib.Path("missing")}, "unknown data set 'missing'"),
        ({"accumulate_steps": 0}, "accumulate_steps 0: expected 1 or more"),
        ({"log_every": 0}, "log_every 0: expected 1 or more"),
        ({"seed": -1}, "seed -1: expected 0 or more"),
        ({"awp": 0.01}, "awp 0.01: expected training.awp.Awp(gamma, warmup_steps)"),
        ({"optimizer": optax.adam(0.1)}, "expected a function of the schedule"),
        ({"batch_size": 30, "accumulate_steps": 4}, "batch_size = 30: expected a multiple of the"),
        ({"learning_rate": lambda step: 0.1 if step < 3 else 0.01}, "optimizer or schedule with this module"),
        ({"ema_decay": 1.5}, "ema_decay 1.5: expected at least 0 (no average) and below 1"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_computed(unchecked, plain, monkeypatch, changes, expected):
    monkeypatch.setattr("infofeat_jax.training.loop.train", pytest.fail)
    assert expected in message(fit, **plain | changes)
    assert not plain["directory"].exists()


def test_without_a_validation_split(plain):
    nothing = data.Split(plain["data"].validation.images[:0], plain["data"].validation.labels[:0])
    assert "no validation split" in message(fit, **plain | {"data": plain["data"]._replace(validation=nothing)})


def test_the_steps_of_the_validation_may_not_change(plain, monkeypatch):
    """With one step in training the method's are of epsilon, given or not; the validation's are not."""
    asked = iter([False, True])
    monkeypatch.setattr(signals, "requested", lambda: next(asked, True))
    with pytest.raises(Stopped):
        fit(**plain)
    assert "holds a training with validation_step_size 0.0078" in message(
        fit, **plain | {"step_size": plain["epsilon"]}
    )
    told = plain["directory"] / "fit.json"  # as earlier versions wrote it
    told.write_text(json.dumps({k: v for k, v in json.loads(told.read_text()).items() if k != "validation_step_size"}))
    with pytest.raises(Stopped):
        fit(**plain)


def test_a_loss_that_is_not_finite_ends_it(plain):
    with pytest.raises(RunFailed, match=r"loss nan.* at step 2"):
        fit(**plain | {"learning_rate": 1e38, "optimizer": optax.sgd})


def test_the_handlers_of_signals_are_given_back(plain):
    """The notebook's stop button works as before; and a stop asked for once does not end the next training."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    killer = threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT))

    def augmenting(key, images):
        jax.debug.callback(lambda: killer.start() if killer.ident is None else None)
        return images

    with pytest.raises(Stopped, match="the state is saved"):
        fit(**plain | {"augment": augmenting, "num_epochs": 200})
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not signals.requested()


def test_the_page_s_example(tmp_path):
    """In a process of its own, with fewer epochs."""
    page = (ROOT / "docs" / "how-to" / "notebook.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    assert "num_epochs=20" in code
    code = code.replace("num_epochs=20", "num_epochs=1")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "worst case over these" in done.stdout
    assert (tmp_path / "runs" / "mine" / "checkpoints").is_dir()


def test_each_argument_reaches_the_loop_or_the_step(plain, monkeypatch):
    """Each split in its place; of the same seed the same initial weights."""
    dataset, seen, initial = create_data(), {}, []

    class Reached(Exception):
        """Nothing is trained."""

    def train(training):
        seen.update(training=training)
        raise Reached

    def create(module, attack, split, mesh, **options):
        seen.update(attack=attack, split=split, seed=options["seed"])

    monkeypatch.setattr(fitting.loop, "train", train)
    monkeypatch.setattr(fitting.validation, "create", create)
    monkeypatch.setattr(fitting, "_step", lambda plan, build=fitting._step: seen.update(plan=plan) or build(plan))
    budget = {"norm": "l2", "epsilon": 0.5, "num_steps": 2}
    for method, seed, judge in (("madry", 3, "robust"), ("standard", 4, "clean"), ("madry", 3, "robust")):
        directory = plain["directory"] / f"{method}{len(initial)}"
        changes = {"data": dataset, "method": method, "seed": seed, "directory": directory, "validation_attack": "pgd7"}
        with pytest.raises(Reached):
            fit(**plain | changes | budget)
        training = seen["training"]
        assert (training.data, seen["split"]) == (dataset.train, dataset.validation)
        assert (training.settings.seed, seen["seed"], training.judge) == (seed, seed, judge)
        assert seen["attack"].keywords == {"norm": "l2", "epsilon": 0.5, "step_size": 0.125, "num_steps": 7}
        if method == "madry":
            expected = {"norm": "l2", "epsilon": 0.5, "step_size": 0.125, "num_steps": 2}
            assert seen["plan"].method.attack.keywords == expected
        initial.append(training.initial().params)
    assert same(initial[0], initial[2])
    assert not same(initial[0], initial[1])


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("madry", {}, (7, 0.02)),
        ("bilateral", {}, (1, 0.08)),
        ("bilateral", {"num_steps": 7}, (7, 0.02)),
        ("madry", {"num_steps": 1}, (1, 0.08)),
        ("madry", {"num_steps": 1, "step_size": 0.03}, (1, 0.03)),
    ],
)
def test_steps_that_are_not_given_are_those_of_the_command(plain, monkeypatch, method, given, expected):
    class Reached(Exception):
        """The method's options."""

    def create(name, options):
        raise Reached(options.attack["num_steps"], options.attack["step_size"])

    monkeypatch.setattr(methods, "create", create)
    del plain["num_steps"]
    with pytest.raises(Reached) as caught:
        fit(**plain | {"method": method, "epsilon": 0.08} | given)
    assert caught.value.args == pytest.approx(expected)
