"""The public evaluation: outcomes against attacks called by hand, models of every kind, storage, one-line refusals."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
import scipy.stats
import small
from flax import nnx
from processes import free_port

import infofeat_jax
from infofeat_jax import attacks, evaluator, report, streams
from infofeat_jax.adapters import calling, given
from infofeat_jax.attacks.inputs import as_forward
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import evaluate as measurements
from infofeat_jax.evaluation import measured as stored
from infofeat_jax.evaluation import pace, robustness, summaries
from infofeat_jax.evaluator import batches
from infofeat_jax.runtime import console, devices, memory
from infofeat_jax.types import InvalidInput

FORWARD, IMAGES, LABELS, _ = linear_model.problem()
X, Y = np.asarray(IMAGES), np.asarray(LABELS)
EPSILON, WEAK = 0.05, 0.008


def evaluate(model=FORWARD, images=X, labels=Y, *, names=("clean", "fgsm"), epsilon=EPSILON, **options):
    return infofeat_jax.evaluate(model, images, labels, epsilon=epsilon, attacks=names, progress=False, **options)


@pytest.fixture(autouse=True)
def no_probes(monkeypatch):
    """Compiling them takes longer than all else here."""
    monkeypatch.setattr(summaries, "probe", lambda subject: None)


@pytest.fixture(scope="module")
def result():
    names = ("clean", "pgd3(restarts=2)", "square(num_queries=20)")
    return evaluate(names=names, epsilon=WEAK, batch_size=16, seed=3)


def test_outcomes_and_images_are_those_of_attacks_called_by_hand(result):
    """In batches of 16, the last filled up, each with its own key; Square's is the cascade's."""
    attack = jax.jit(partial(attacks.pgd, FORWARD, epsilon=WEAK, step_size=WEAK / 4, num_steps=3, restarts=2))
    expected = []
    for index, start in enumerate((0, 16)):
        rows = np.minimum(np.arange(start, start + 16), len(Y) - 1)
        expected.append(attack(jax.random.fold_in(streams.key(3, "evaluation"), index), X[rows], Y[rows]))
    expected = np.concatenate(expected)[: len(Y)]
    np.testing.assert_array_equal(result.adversarial["pgd3(restarts=2)"], expected)
    np.testing.assert_array_equal(result.adversarial["clean"], X)
    for name, outcome in result.outcomes.items():
        found = result.adversarial[name]
        np.testing.assert_array_equal(outcome, FORWARD(jnp.asarray(found)).argmax(-1) == Y)
        assert np.abs(found.astype(np.float64) - X).max() <= WEAK
    everything = np.all(list(result.outcomes.values()), axis=0)
    assert result.worst_case == everything.mean() <= min(result.accuracy.values()) < result.accuracy["clean"]


def test_intervals_are_scipys(result):
    for name, outcome in result.outcomes.items():
        interval = scipy.stats.binomtest(int(outcome.sum()), len(outcome)).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(result.intervals[name], (interval.low, interval.high), atol=1e-12)
        assert result.accuracy[name] == outcome.mean()


def test_the_table_as_text_and_as_html(result):
    flagged = result._replace(flags=("a < b",), stages={"apgd-ce": 0.5})
    text, page = str(flagged), flagged._repr_html_()
    for name, value in result.accuracy.items():
        line = next(line for line in text.splitlines() if line.startswith(name))
        assert f"{100 * value:.1f}" in line
        assert f"<td>{name}</td><td>{100 * value:.1f}</td>" in page
    assert "24 images, linf epsilon 0.008 (2.04/255)" in text
    assert text.splitlines()[-1] == "warning: a < b"
    assert "<li>warning: a &lt; b</li>" in page
    assert repr(result) == str(result)
    cascade = flagged._replace(accuracy={"autoattack": 0.25}, intervals={"autoattack": (0.1, 0.5)})
    assert re.search(r"\n  after apgd-ce +50\.0\n", str(cascade))
    assert "after apgd-ce</td><td>50.0</td>" in cascade._repr_html_()
    beyond = result._replace(accuracy=result.accuracy | {"fgsm(epsilon=9)": 0.1})
    beyond = beyond._replace(intervals=result.intervals | {"fgsm(epsilon=9)": (0.0, 0.2)})
    assert "worst case over these " in text
    assert "worst case over those of that epsilon " in str(beyond)


# Models of every kind, all of them the same function: one convolution, ReLU, pooling, one linear layer.

RNG = np.random.default_rng(0)
KERNEL, HEAD = RNG.normal(size=(3, 3, 3, 6)).astype(np.float32), RNG.normal(size=(6, 4)).astype(np.float32)
RANDOM_IMAGES = RNG.uniform(size=(6, 7, 7, 3)).astype(np.float32)


def plain(images, kernel=KERNEL, head=HEAD, layout="NHWC"):
    maps = jax.lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=(layout, "HWIO", layout))
    return jax.nn.relu(maps).mean((1, 2) if layout == "NHWC" else (2, 3)) @ head


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, train: bool = True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3), 2)(images))
        return nn.Dense(4)(nn.relu(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 6, (3, 3), 2, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.drop, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, images):
        return self.linear(self.drop(nnx.relu(self.norm(self.conv(images)))).mean((1, 2)))


class AskingNnx(Nnx):
    def __call__(self, images, train: bool = True):
        return super().__call__(jnp.zeros_like(images) if train else images)


def called(model, images=RANDOM_IMAGES, labels=None):
    """(the logits as the evaluation sees them, the notes)."""
    ready = given.read(model)
    way = calling.find(ready, images.shape[1:])
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    way, *_ = calling.look(ready, way, images, labels)
    return np.asarray(as_forward(calling.in_way(ready.call, way))(jnp.asarray(images)).logits), [
        *ready.notes,
        *way.notes,
    ]


def test_a_linen_module_with_its_variables():
    """Also where it is bound to them."""
    module = Linen()
    variables = module.init(jax.random.key(0), RANDOM_IMAGES)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    logits, notes = called((module, variables))
    np.testing.assert_allclose(logits, module.apply(variables, RANDOM_IMAGES, train=False), atol=1e-5)
    assert notes == ["the model is called with train=False, for evaluation"]
    np.testing.assert_array_equal(called(module.bind(variables))[0], logits)
    ours = small.TinyNet()  # returns Outputs; its train is False by default
    weights = ours.init(jax.random.key(0), jnp.asarray(RANDOM_IMAGES))
    logits, notes = called((ours, weights))
    np.testing.assert_allclose(logits, ours.apply(weights, jnp.asarray(RANDOM_IMAGES)).logits, atol=1e-5)
    assert notes == []


def test_an_nnx_model_in_training_mode_is_evaluated_in_evaluation_mode_and_left_as_it_is():
    model = Nnx()
    model.norm.mean[...] += 0.3
    logits, notes = called(model)
    assert notes == ["the NNX model is in training mode; it is evaluated as after model.eval()"]
    assert not model.norm.use_running_average
    model.eval()
    np.testing.assert_allclose(logits, model(RANDOM_IMAGES), atol=1e-5)
    assert called(model)[1] == []
    np.testing.assert_array_equal(called(nnx.jit(lambda images: model(images)))[0], called(model)[0])
    asked, notes = called(AskingNnx())
    np.testing.assert_array_equal(asked, called(Nnx())[0])
    assert notes[1] == "the model is called with train=False, for evaluation"


def test_a_function_of_a_linen_module_has_its_weights_as_leaves():
    module = Linen()
    variables = module.init(jax.random.key(0), RANDOM_IMAGES, train=False)
    for function in (partial(module.apply, variables, train=False), partial(module.bind(variables), train=False)):
        call = given.read(function).call
        leaves = jax.tree.leaves(variables) if function.args else []  # of a bound method, they are constants
        assert len(jax.tree.leaves(call)) == len(leaves)
        np.testing.assert_array_equal(call(RANDOM_IMAGES), function(RANDOM_IMAGES))
    keyed = given.read(partial(lambda key, images: images + jax.random.uniform(key), jax.random.key(0)))
    assert jax.tree.leaves(keyed.call) == []


def test_an_equinox_model_of_single_images_channels_first():
    eqx = pytest.importorskip("equinox")

    class Equinox(eqx.Module):
        conv: eqx.nn.Conv2d
        drop: eqx.nn.Dropout
        linear: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key)
            self.conv, self.drop = eqx.nn.Conv2d(3, 6, 3, 2, key=keys[0]), eqx.nn.Dropout(0.5)
            self.linear = eqx.nn.Linear(6, 4, key=keys[1])

        def __call__(self, image):
            return self.linear(self.drop(jax.nn.relu(self.conv(image))).mean((1, 2)))

    model = Equinox(jax.random.key(0))
    logits, notes = called(model)
    expected = jax.vmap(eqx.nn.inference_mode(model))(RANDOM_IMAGES.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert notes == [
        "the Equinox model is in training mode; it is evaluated in equinox.nn.inference_mode",
        "the model gets its images channels first, one by one",
    ]


def test_an_equinox_model_with_batch_norm_and_its_state():
    eqx = pytest.importorskip("equinox")
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    model = eqx.nn.Sequential([norm, eqx.nn.Lambda(lambda image: image.mean((1, 2)))])
    logits, _ = called((model, state))
    (moved, deviation), zero = np.split(logits, 2), RANDOM_IMAGES.mean((1, 2))
    np.testing.assert_allclose(np.concatenate([moved, deviation]), zero, rtol=1e-4)  # initial statistics
    jitted = eqx.filter_jit(
        lambda images: jax.vmap(lambda image: eqx.nn.inference_mode(model)(image, state)[0])(images)
    )
    np.testing.assert_allclose(called(jitted)[0], logits, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda x: plain(x, layout="NCHW"), "channels first"),
        (lambda x: plain(x[None])[0], "one by one"),
        (lambda x: plain(x, KERNEL.astype(jnp.float16), HEAD.astype(jnp.float16)), "as float16"),
    ],
)
def test_how_a_function_takes_its_images(model, expected):
    logits, notes = called(model)
    np.testing.assert_allclose(logits, plain(RANDOM_IMAGES), atol=0.05 if "float16" in expected else 1e-5)
    assert notes == [f"the model gets its images {expected}"]


def test_a_model_that_expects_0_to_255_gets_that():
    levels = lambda x: FORWARD(jnp.floor(x) / 255)  # noqa: E731
    logits, notes = called(levels, X, Y)
    np.testing.assert_allclose(logits, FORWARD(np.floor(255 * X) / 255), atol=1e-4)
    assert notes == ["the model gets its images in 0 to 255"]
    assert called(FORWARD, X, Y)[1] == []


def test_the_range_is_recognised_where_the_first_images_are_of_one_class():
    order = np.argsort(Y, kind="stable")
    images, labels = (np.repeat(array[order], 40, axis=0) for array in (X, Y))
    assert len({*labels[: calling.LOOKED_AT]}) == 1
    assert called(lambda x: FORWARD(x / 255), images, labels)[1] == ["the model gets its images in 0 to 255"]


def test_where_either_layout_would_do_it_is_that_of_the_given_images():
    """A linear model of flattened pixels, trained on channels first."""
    images = RNG.uniform(size=(12, 3, 6, 5)).astype(np.float32)
    weights = RNG.normal(size=(90, 4)).astype(np.float32)
    labels = (images.reshape(12, -1) @ weights).argmax(-1)
    flat = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    assert evaluate(flat, images, labels, names=("clean",)).accuracy["clean"] == 1
    last = images.transpose(0, 2, 3, 1)
    assert evaluate(flat, last, flat(last).argmax(-1), names=("clean",)).accuracy["clean"] == 1


def test_an_answer_that_is_right_by_chance_does_not_move_the_range():
    """Right in 0 to 255 and wrong in [0, 1]: on three images only, or always with the commonest label."""
    labels = np.asarray(FORWARD(X).argmax(-1))
    model = lambda x: jnp.where(x.max() > 1, FORWARD(x / 255), jnp.roll(FORWARD(x), 1, -1))  # noqa: E731
    assert called(model, X, labels)[1] == ["the model gets its images in 0 to 255"]
    assert called(model, X[:3], labels[:3])[1] == []
    constant = lambda x: jax.nn.one_hot(jnp.full(len(x), x.max() > 1, int), 6)  # noqa: E731
    assert called(constant, X, np.repeat([1, 2], 12))[1] == []


@pytest.mark.parametrize("classes", [2, 1000])
def test_two_to_a_thousand_classes_and_logits_of_low_precision(classes):
    head = RNG.normal(size=(6, classes)).astype(np.float32)
    standard = lambda x: (x - x.mean((1, 2, 3), keepdims=True)) / x.std((1, 2, 3), keepdims=True)  # noqa: E731
    model = lambda x: plain(standard(x), head=head).astype(jnp.bfloat16)  # noqa: E731
    labels = np.asarray(jax.jit(model)(RANDOM_IMAGES).argmax(-1))
    found = evaluate(model, RANDOM_IMAGES, labels, names=("clean", "apgd-dlr(num_steps=2)"), epsilon=0.3)
    assert found.accuracy["clean"] == 1 > found.accuracy["apgd-dlr(num_steps=2)"]


def test_images_as_the_caller_has_them():
    """uint8, and channels first: in the given layout the adversarial images are what the others are."""
    levels = RNG.integers(0, 256, (6, 9, 9, 3)).astype(np.uint8)
    square = to_unit(levels)
    labels = np.asarray(plain(square).argmax(-1))
    usual = evaluate(plain, square, labels, names=("fgsm",))
    given_first = evaluate(plain, levels.transpose(0, 3, 1, 2), labels, names=("fgsm",))
    np.testing.assert_allclose(
        given_first.adversarial["fgsm"].transpose(0, 2, 3, 1), usual.adversarial["fgsm"], rtol=0, atol=1e-6
    )  # fmt: skip
    assert [note.split(",")[0] for note in given_first.notes] == [
        "the images are channels first", "the images are uint8 and were divided by 255; those returned are in [0",
    ]  # fmt: skip


def test_many_channels_are_noted():
    """Which a layout that is not recognised looks like."""
    images = RNG.uniform(0, 1, (2, 9, 9, 13)).astype(np.float32)
    notes = evaluate(lambda x: x.mean((1, 2)), images, np.array([0, 1]), names=("clean",)).notes
    assert "images of shape [2, 9, 9, 13] are taken as [n, height, width, channels]" in notes


LINEN = Linen().init(jax.random.key(0), RANDOM_IMAGES)


def blind(images):
    """A model of another library, which JAX cannot differentiate."""
    shape = jax.ShapeDtypeStruct((len(images), 6), jnp.float32)
    return jax.pure_callback(lambda x: np.asarray(FORWARD(x)), shape, images, vmap_method="sequential")


def training_nnx():
    model = Nnx()
    return lambda images: model(images)


# Several processes.

SEVERAL = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import infofeat_jax
import linear_model
import numpy as np
from infofeat_jax.evaluation import summaries
from infofeat_jax.runtime import processes
from infofeat_jax.types import InvalidInput
summaries.probe = lambda subject: None
forward, images, labels, _ = linear_model.problem()
options = {"attacks": ("clean", "pgd2", "apgd-ce(num_steps=2)"), "batch_size": 16, "progress": False}
processes.PATIENCE = 6
def evaluate(epsilon, **more):
    return infofeat_jax.evaluate(forward, images, labels, epsilon=epsilon, **options, **more)
own = sys.argv[4] + "-directory"
for epsilon, more in (
    (0.05, {}), (0.05, {"directory": sys.argv[3]}), (0.1, {"directory": sys.argv[3]}), (0.05, {"directory": own}),
    (0.05 + 0.01 * jax.process_index(), {"directory": sys.argv[3]}),
):
    try:
        result = evaluate(epsilon, **more)
    except InvalidInput as error:
        print("refused:", error)
fields = ("outcomes", "adversarial")
arrays = {f"{field}/{name}": value for field in fields for name, value in getattr(result, field).items()}
np.savez(sys.argv[4], devices=jax.device_count(), **arrays)
"""


def test_two_processes_give_the_result_of_one(tmp_path, monkeypatch):
    """Each of them, with half of the devices; refused alike without a directory, and with another epsilon."""
    monkeypatch.setattr(devices, "mesh", lambda: jax.sharding.Mesh(jax.devices()[:2], (devices.AXIS,)))
    expected = evaluate(names=("clean", "pgd2", "apgd-ce(num_steps=2)"), batch_size=16)
    port, shared = str(free_port()), str(tmp_path / "shared")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, port, str(index), shared, str(tmp_path / f"{index}.npz")],
            cwd=pathlib.Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parent.parent)},
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    refusals = [re.findall("refused: (.*)", stdout) for stdout, _ in outputs]
    assert refusals[0][1].startswith(f"{shared} holds an evaluation with epsilon 0.05, not 0.1")
    assert refusals[1][1] == f"{shared} cannot be used: process 0 says why"
    for index in range(2):
        missing, _, own, different = refusals[index]
        assert missing == "directory is missing: expected one that all 2 processes share"
        assert f"{index}.npz-directory is not the same directory for all 2 processes: give one that they share" in own
        assert different == "the processes have different weights, images or arguments: give each of them the same"
        found = np.load(tmp_path / f"{index}.npz")
        assert found["devices"] == 2
        for field in ("outcomes", "adversarial"):
            for name, values in getattr(expected, field).items():
                np.testing.assert_array_equal(found[f"{field}/{name}"], values)


# Refusals, in one line, before anything is attacked.


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda x: FORWARD(x) - FORWARD(x).mean(0), {}, "change by up to .* other images of its batch: put BatchNorm"),
        (Linen(), {}, "Linen has no weights: a Linen module is given as a pair"),
        ("resnet18.pt", {}, "the model is of type str: expected a function"),
        (
            training_nnx(),
            {"images": RANDOM_IMAGES, "labels": Y[:6] * 0},
            "<lambda> cannot be called .* give the model itself",
        ),
        (lambda x: x @ jnp.ones((7, 3)), {}, r"<lambda> cannot be called with images \[b, 4, 4, 2\]: TypeError"),
        (lambda x: FORWARD((x | jnp.uint8(0)) / 255), {}, "<lambda> takes integers only, which have no gradient"),
        (FORWARD, {"names": ("pgd",)}, "unknown attack 'pgd': choose"),
        (FORWARD, {"names": ()}, "attacks is empty: expected names"),
        (FORWARD, {"names": ("pgd5@other",)}, "attacks crafted on another run are for config"),
        (FORWARD, {"names": ("infofeature5",)}, "attack 'infofeature5': .*class activation maps"),
        (FORWARD, {"epsilon": -0.1}, "epsilon -0.1: expected a finite number"),
        (FORWARD, {"epsilon": "8/255"}, "epsilon '8/255': expected a number"),
        (FORWARD, {"epsilon": None}, "epsilon None: expected a number"),
        (FORWARD, {"epsilon": 8}, "epsilon 8: expected at most 1 in linf"),
        (
            FORWARD,
            {"epsilon": 128, "norm": "l2"},
            "epsilon 128: expected at most .* in l2, as .*such as 0.5",
        ),
        (FORWARD, {"seed": 1.5}, "seed 1.5: expected an integer"),
        (FORWARD, {"norm": ["l2"]}, r"unknown norm \['l2'\]"),
        (FORWARD, {"names": None}, "attacks None: expected names"),
        (FORWARD, {"directory": 5}, "directory 5: expected a path"),
        (FORWARD, {"images": [[1, 2], [3]]}, "lists of unequal lengths: expected arrays"),
        (lambda x: FORWARD(x)[:, :1], {"labels": 0 * Y}, "the model has 1 classes: expected 2 or more"),
        (lambda x: {"scores": FORWARD(x)}, {}, "a value of type dict: expected logits"),
        (
            lambda x: np.asarray(x).mean((1, 2)),
            {},
            "<lambda> cannot be called .* with NumPy what depends on the images",
        ),
        ((Linen(), 3), {}, "the variables are of type int: a Linen module is given as a pair"),
        ((Linen(), LINEN["params"]), {"images": RANDOM_IMAGES, "labels": Y[:6] * 0}, "its variables lack batch_stats"),
        (blind, {"names": ("fgsm",)}, "attack 'fgsm': the model has no gradient .*: choose square, or noise"),
        (blind, {"names": ("apgd-ce",)}, "attack 'apgd-ce': the model has no gradient"),
        (FORWARD, {"epsilon": np.ones(24)}, r"epsilon is of shape \[24\]: expected one number"),
        (FORWARD, {"norm": "l3"}, "unknown norm 'l3'"),
        (FORWARD, {"batch_size": 0}, "batch_size 0: expected 1 or more"),
        (FORWARD, {"labels": Y + 5}, "labels span .*: expected 0 to 5"),
        (FORWARD, {"labels": Y[:5]}, r"labels of shape \[5\]: expected"),
        (FORWARD, {"labels": Y / 2}, "labels are float64: expected integers"),
        (FORWARD, {"images": 255 * X}, "images span .*: divide 8-bit images by 255"),
        (FORWARD, {"images": X.astype(np.float64)}, "images are float64"),
        (FORWARD, {"images": X[:0], "labels": Y[:0]}, "with at least one image"),
        (FORWARD, {"directory": "/proc/nowhere"}, "directory /proc/nowhere cannot be made"),
    ],
)
def test_refusals(unchecked, model, options, message):
    with pytest.raises(InvalidInput, match=message) as error:
        evaluate(model, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_norm_is_that_of_the_attacks(norm):
    found = evaluate(names=("pgd3",), norm=norm, batch_size=24)
    attack = jax.jit(partial(attacks.pgd, FORWARD, norm=norm, epsilon=EPSILON, step_size=EPSILON / 4, num_steps=3))
    key = jax.random.fold_in(streams.key(0, "evaluation"), 0)
    np.testing.assert_allclose(found.adversarial["pgd3"], attack(key, X, Y), atol=1e-6)


def test_a_randomised_model_of_pixels_up_to_255_is_recognised():
    noisy = lambda x, key: FORWARD(x / 255) + 1e-4 * jax.random.normal(key, (len(x), 6))  # noqa: E731
    found = evaluate(noisy, names=("clean",))
    assert found.accuracy["clean"] == evaluate(names=("clean",)).accuracy["clean"]
    assert any("255" in note for note in found.notes)


def test_a_key_that_a_model_is_bound_to_is_no_obstacle(monkeypatch):
    fixed = jax.tree_util.Partial(lambda key, x: FORWARD(x) + 1e-4 * jax.random.normal(key, (6,)), jax.random.key(0))
    monkeypatch.undo()  # the probes, which are left out
    assert evaluate(fixed, names=("clean", "fgsm")).accuracy == evaluate(names=("clean", "fgsm")).accuracy


# The directory.


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    first = evaluate(directory=tmp_path / "a")
    monkeypatch.setattr(measurements, "measure_one", lambda *_: pytest.fail("measured again"))
    again = evaluate(directory=tmp_path / "a")
    for name, outcome in first.outcomes.items():
        np.testing.assert_array_equal(again.outcomes[name], outcome)
        np.testing.assert_array_equal(again.adversarial[name], first.adversarial[name])
    assert (again.accuracy, again.flags, again.seconds) == (first.accuracy, first.flags, first.seconds)
    monkeypatch.undo()
    monkeypatch.setattr(summaries, "probe", lambda subject: None)
    (tmp_path / "a" / "fgsm.npz").unlink()
    found = evaluate(directory=tmp_path / "a", names="fgsm")  # measured again
    np.testing.assert_array_equal(found.adversarial["fgsm"], first.adversarial["fgsm"])
    moved = lambda x: FORWARD(x) * 1.01  # noqa: E731
    for model, options, message in (
        (FORWARD, {"epsilon": 0.1}, "holds an evaluation with epsilon 0.05, not 0.1: give another directory"),
        (FORWARD, {"images": X[:20], "labels": Y[:20]}, "holds an evaluation with images .*, not"),
        (FORWARD, {"labels": np.roll(Y, 1)}, "holds an evaluation with images .*, not"),
        (FORWARD, {"seed": 1}, "holds an evaluation with seed 0, not 1"),
        (FORWARD, {"norm": "l2"}, "holds an evaluation with norm linf, not l2"),
        (jax.tree_util.Partial(FORWARD.func, 1.01 * FORWARD.args[0], FORWARD.args[1]), {}, "evaluation with weights"),
        (moved, {}, "holds an evaluation with model _logits, not <lambda>"),
    ):
        with pytest.raises(InvalidInput, match=message):
            evaluate(model, directory=tmp_path / "a", **options)


def test_what_is_not_finite_is_said_and_compared(tmp_path):
    """A masked class, of logit -inf, hides no other model; a NaN is one in the next call too."""
    masked = lambda factor: lambda x: (factor * FORWARD(x)).at[:, 5].set(-jnp.inf)  # noqa: E731
    labels = np.minimum(Y, 4)
    assert evaluate(masked(1.0), labels=labels, names=("clean",), directory=tmp_path / "a").notes == ()
    with pytest.raises(InvalidInput, match="of another model, by its logits"):
        evaluate(masked(3.0), labels=labels, names=("clean",), directory=tmp_path / "a")
    bright = lambda x: jnp.where(x.mean((1, 2, 3))[:, None] > 0.5, jnp.nan, FORWARD(x))  # noqa: E731
    count = (X.mean((1, 2, 3)) > 0.5).sum()
    for _ in range(2):
        notes = evaluate(bright, names=("clean",), directory=tmp_path / "b").notes
        assert notes == (f"NaN among the logits of {count} of the first 24 images: such images count as misclassified",)


def test_a_model_without_gradient_is_evaluated_without_one(monkeypatch):
    monkeypatch.undo()  # the probes, which are left out
    found = evaluate(blind, names=("clean", "noise", "square(queries=3)"))
    expected = evaluate(FORWARD, names=("clean", "noise", "square(num_queries=3)"))
    assert list(found.outcomes) == ["clean", "noise", "square(num_queries=3)"]
    for name, outcome in expected.outcomes.items():
        np.testing.assert_array_equal(found.outcomes[name], outcome)
    assert found.notes == ("the model has no gradient: signs of masked gradients were not looked for",)


def test_another_function_is_told_by_its_logits(tmp_path):
    def model(factor):
        return lambda x: factor * FORWARD(x)

    evaluate(model(1.0), names=("clean",), directory=tmp_path)
    evaluate(model(1.0001), names=("clean",), directory=tmp_path)  # the same on another device
    with pytest.raises(InvalidInput, match="of another model, by its logits: give another directory"):
        evaluate(model(1.1), names=("clean",), directory=tmp_path)
    (tmp_path / "evaluation.json").unlink()
    with pytest.raises(InvalidInput, match="holds a run: give another directory"):
        evaluate(model(1.0), names=("clean",), directory=tmp_path)


INTERRUPTED = """
import sys, time
sys.path.insert(0, "tests")
import linear_model, infofeat_jax
from infofeat_jax.evaluation import summaries
summaries.probe = lambda subject: None
from infofeat_jax.evaluation import autoattack, robustness
autoattack.SAVE_EVERY = robustness.SAVE_EVERY = 0.0
save = robustness.save
robustness.save = lambda *args: (save(*args), time.sleep(0.2))
forward, images, labels, _ = linear_model.problem()
options = {"attacks": ("clean", "pgd3"), "batch_size": 3, "directory": sys.argv[1]}
infofeat_jax.evaluate(forward, images, labels, epsilon=0.05, **options)
"""


def test_a_killed_evaluation_taken_up_again_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    root = pathlib.Path(__file__).parent.parent
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path / "killed")], cwd=root)
    found, deadline = tmp_path / "killed" / "pgd3.npz", time.monotonic() + 120
    while not found.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    begun = []
    in_batches = robustness.in_batches
    monkeypatch.setattr(robustness, "in_batches", lambda *a, done=0: begun.append(done) or in_batches(*a, done=done))
    resumed = evaluate(names=("clean", "pgd3"), batch_size=3, directory=tmp_path / "killed")
    assert 0 < begun[0] < 24
    whole = evaluate(names=("clean", "pgd3"), batch_size=3)
    np.testing.assert_array_equal(resumed.outcomes["pgd3"], whole.outcomes["pgd3"])
    np.testing.assert_array_equal(resumed.adversarial["pgd3"], whole.adversarial["pgd3"])


def test_the_directory_becomes_the_report_page_of_a_run(tmp_path, capsys):
    found = evaluate(directory=tmp_path / "mine")
    page = report.write(str(tmp_path / "mine")).read_text()
    for value in found.accuracy.values():
        assert f"<td>{100 * value:.1f}" in page
    assert "<dt>model</dt><dd>_logits</dd>" in page
    assert "24 images; linf epsilon 12.75/255, seed 0" in page
    config = json.loads((tmp_path / "mine" / "results.json").read_text())["config"]
    assert config["attack"]["step_size"] == config["eval"]["step_size"] == 12.75 / 4
    assert "python main.py" not in page
    assert re.search(
        r"mine +" + " +".join(f"{100 * value:.1f}" for value in found.accuracy.values()), capsys.readouterr().out
    )


# AutoAttack's quick version.

QUICK = "autoattack(version=quick)"


@pytest.mark.parametrize(("robust", "followed"), [({"pgd20": 20, QUICK: 19}, False), ({"pgd20": 20, QUICK: 9}, True)])
def test_quick_is_labelled_and_the_whole_follows_a_flag(tmp_path, monkeypatch, capsys, robust, followed):
    calls, looks, ahead, robust = [], [], [], robust | {"autoattack": 8}

    def measure_one(subject, name, tell):
        calls.append(name)
        return np.arange(len(Y)) < robust[name]

    monkeypatch.setattr(measurements, "measure_one", measure_one)
    monkeypatch.setattr(summaries, "probe", looks.append)
    for module in (evaluator, stored):
        monkeypatch.setattr(module, "adversarial", lambda subject, name: X)
    monkeypatch.setattr(pace, "left", lambda reports, costs: ahead.append(costs.get("probes")))
    found = evaluate(names=("pgd20", QUICK), directory=tmp_path / "mine")
    assert calls == ["pgd20", QUICK, *["autoattack"] * followed] == list(found.outcomes)
    assert len(looks) == 1  # at the model: it takes gradients, which count in the time left
    assert ahead == [24 * pace.PROBING] * 4 + [None] * 2 * followed
    assert any(flag.startswith("large gap") for flag in found.flags) == followed
    page = report.write(str(tmp_path / "mine")).read_text()
    results, shown = json.loads((tmp_path / "mine" / "results.json").read_text()), capsys.readouterr().out
    for text in (str(found), found._repr_html_()):
        assert f"{QUICK}, not standard" in text
    assert "AutoAttack (version=quick, not standard)" in page
    assert "standard)" in shown  # a heading of several lines
    for told in (results["flags"], found.flags):
        assert any(flag.startswith(f"not standard AutoAttack: {QUICK}") for flag in told) != followed


# Memory and time.


def test_the_batch_is_lowered_until_its_gradient_fits(monkeypatch):
    """Against the memory of the gradient as compiled here; the eight devices of the tests share a batch."""
    split = evaluator.pixels.read(np.repeat(RANDOM_IMAGES, 64, 0), np.zeros(384, np.int32))[0]
    forward = jax.tree_util.Partial(plain)

    def needed(count):
        loss = lambda x: jax.nn.log_softmax(plain(x))[:, 0].sum()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(jnp.zeros((count // 8, 7, 7, 3))).compile()
        return memory.needed(program) + 16 * count // 8 * 7 * 7 * 3 * 4

    have = int(1.2 * needed(96))
    monkeypatch.setattr(memory, "available", lambda: have)
    assert batches.fit(forward, split, 384, 8) == 96
    monkeypatch.setattr(memory, "available", lambda: 100 * have)
    assert batches.fit(forward, split, 384, 8) == 384
    monkeypatch.setattr(batches, "fit", lambda *_: 5)
    assert evaluate(names=("clean",)).notes == ("batches of 5 images, not 250: more would not fit the memory",)


def test_seconds_left_count_compilation_and_what_is_to_come():
    """10 s of compilation and 100 s for pgd9, of cost 28; then the same compilation, and 2 times the cost."""
    costs = {"pgd9": 28.0, "pgd18": 56.0}
    assert pace.left([], costs) is None
    reports = [pace.Report("pgd9", 0.1, 20.0), pace.Report("pgd9", 0.5, 60.0)]
    assert pace.left(reports, costs) == pytest.approx(50 + 10 + 200)
    reports += [pace.Report("pgd9", 1.0, 110.0), pace.Report("pgd18", 0.01, 1.0)]
    assert pace.left(reports, costs) == pytest.approx(10 + 200)  # too early for a pace of its own
    reports = [*reports[:3], pace.Report("pgd18", 0.5, 110.0)]
    assert pace.left(reports, costs) == pytest.approx(110)
    costs |= {"probes": 24 * pace.PROBING}  # the flags come last
    assert pace.left(reports, costs) == pytest.approx(110 + 10 + 24 * pace.PROBING * 220 / 56)
    assert pace.cost("pgd9(restarts=2)") == 1 + 3 * 9 * 2
    assert pace.cost("square(num_queries=50)") == 51
    assert pace.cost("autoattack") > pace.cost("apgd-t") > pace.cost("clean") == 1


def test_lines_without_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "BETWEEN", -1.0)
    with console.progress(1) as show:
        show(0.5, "pgd9: 50.0% correct", left=200.0)
        show(1, "pgd9", "pgd9: 49.0% of 10 correct (9 s)")
    assert capsys.readouterr().err.splitlines() == [
        "pgd9: 50.0% correct; at most 4 min left", "pgd9: 49.0% of 10 correct (9 s)",
    ]  # fmt: skip
    evaluate(names=("clean",), images=np.uint8(255 * X))
    assert capsys.readouterr().err == ""


def test_what_is_being_done_is_said_again_at_intervals(capsys, monkeypatch):
    """After 30 s, or a twentieth of the time so far; with the time left or else the time so far; a line counts too."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    lines = console._Lines()

    def after(seconds: float) -> str:
        now[0] += seconds
        lines.remind()
        return capsys.readouterr().err

    assert after(20) == ""
    assert after(11) == f"{console.STARTING}; 31 s so far\n"
    lines.show(1, "autoattack: fab-t", left=7200.0)
    assert after(29) == ""
    assert after(2) == "autoattack: fab-t, unchanged for 31 s; at most 2.0 h left\n"
    lines.show(2, "autoattack: square", "a line", left=600.0, bound="about")
    assert capsys.readouterr().err == "a line\n"
    now[0] += 5990
    lines.show(3, "autoattack: square", left=500.0, bound="about")
    assert capsys.readouterr().err == "autoattack: square; about 9 min left\n"
    assert after(300) == ""  # a twentieth of 6,000 s is more
    assert after(50) == "autoattack: square, unchanged for 6 min; about 9 min left\n"


def test_a_long_compilation_is_not_silent(capsys, monkeypatch):
    """Nothing is reported while it lasts."""
    monkeypatch.setattr(console, "BETWEEN", 0.0)
    said, end = "", time.monotonic() + 60
    with console.progress(1) as show:
        show(0, "pgd9: compiling", "a line")
        while "pgd9: compiling; " not in said and time.monotonic() < end:
            time.sleep(0.05)
            said += capsys.readouterr().err
    assert said.startswith("a line\npgd9: compiling; ")
    assert " so far\n" in said


def test_results_json_holds_what_the_result_does(tmp_path):
    found = evaluate(directory=tmp_path / "b")
    stored = json.loads((tmp_path / "b" / "results.json").read_text())
    assert {name: stored[name] for name in found.accuracy} == found.accuracy
    assert stored["worst_case"] == found.worst_case
    assert stored["given"]["model"] == "_logits"
