"""Evaluation of untrained networks on a few digits: outcomes against plain calls, and what is taken over."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infofeat_jax import attacks, experiment
from infofeat_jax import config as configs
from infofeat_jax.evaluation import evaluate, probes
from infofeat_jax.evaluation.probes import Probes
from infofeat_jax.runtime import files
from infofeat_jax.training import checkpoint
from infofeat_jax.types import InvalidInput

COUNT = 20


def make(directory: pathlib.Path, seed: int = 0, **evaluation) -> experiment.Run:
    """A run of a small network with one checkpoint, its initial state."""
    config = configs.default()
    config.seed = seed
    config.model.name, config.model.width = "wrn_10_1", 4
    config.data.name = "digits"
    config.attack.epsilon = 48.0
    small = {"batch_size": 16, "num_examples": COUNT, "step_size": 12.0, "pictures": 3, "probe_examples": 0}
    config.eval.update(small | evaluation)
    config = configs.resolve(config)
    the_run = experiment.create(config, directory)
    if not (directory / "config.json").exists():
        directory.mkdir(parents=True)
        files.write_atomically(directory / "config.json", configs.to_json(config))
        with checkpoint.opened(directory) as checkpoints:
            checkpoint.save(checkpoints.epochs, 7, experiment.create_state(the_run), 0.5)
    return the_run


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs")


def outcomes(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "outcomes.npz", allow_pickle=False) as saved:
        return dict(saved)


def batches(the_run: experiment.Run):
    """(key, images, labels) as the evaluation cuts and numbers them, the last batch filled up."""
    root = jax.random.fold_in(jax.random.key(the_run.config.seed), evaluate.RANDOM_STARTS)
    for index, start in enumerate(range(0, COUNT, 16)):
        rows = np.minimum(np.arange(start, start + 16), COUNT - 1)
        images = jnp.asarray(the_run.data.test.images[rows] / 255, jnp.float32)
        yield jax.random.fold_in(root, index), images, jnp.asarray(the_run.data.test.labels[rows])


def forward(the_run: experiment.Run):
    variables = experiment.restore(the_run, "latest").variables
    return jax.jit(lambda images: the_run.module.apply(variables, images))


def test_a_transferred_attack_is_crafted_on_the_source_and_scored_on_the_target(directory):
    target = make(directory / "target", attacks=("clean", "pgd2", "pgd2@source"))
    source = make(directory / "source", seed=5)
    results = evaluate.evaluate(target)
    expected = []
    for key, images, labels in batches(target):
        perturbed = attacks.pgd(
            forward(source), key, images, labels, epsilon=48 / 255, step_size=12 / 255, num_steps=2
        )  # fmt: skip
        expected.append(forward(target)(perturbed).logits.argmax(-1) == labels)
    found = outcomes(target.workdir)
    np.testing.assert_array_equal(found["pgd2@source"], np.concatenate(expected)[:COUNT])
    assert results["pgd2@source"] == found["pgd2@source"].mean()
    assert list(results["examples"]) == ["clean", "pgd2", "pgd2@source"]
    assert results["worst_case"] == np.all([found[name] for name in results["examples"]], axis=0).mean()


def test_distances_are_norms_of_the_difference_to_pgd(directory):
    target = make(directory / "target", attacks=("clean",), distances=("cw2",))
    results = evaluate.evaluate(target)
    budget = {"epsilon": 48 / 255, "step_size": 12 / 255, "num_steps": 2}
    expected = [
        np.sqrt(np.sum((attacks.cw(*args, **budget) - attacks.pgd(*args, **budget)) ** 2, axis=(1, 2, 3)))
        for args in ((forward(target), *batch) for batch in batches(target))
    ]
    np.testing.assert_allclose(outcomes(target.workdir)["distance/cw2"], np.concatenate(expected)[:COUNT], atol=1e-5)
    assert results["distances"] == {"cw2": pytest.approx(np.concatenate(expected)[:COUNT].mean(), abs=1e-5)}
    assert results["distances"]["cw2"] > 0


def test_what_was_measured_is_taken_over_in_the_same_setting_only(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda run, name, *_: measured.append(name) or np.ones(COUNT, bool))
    workdir = directory / "again"
    evaluate.evaluate(make(workdir, attacks=("clean",), pictures=0))
    first = json.loads((workdir / "results.json").read_text())
    evaluate.evaluate(make(workdir, attacks=("clean", "pgd2"), pictures=0))
    assert measured == ["clean", "pgd2"]
    evaluate.evaluate(make(workdir, attacks=("pgd2",), pictures=0, checkpoint="both"))
    assert measured == ["clean", "pgd2"]  # the best is the latest
    results = json.loads((workdir / "results.json").read_text())
    assert first["clean"] == results["clean"] == results["pgd2"] == results["latest"]["pgd2"] == 1.0
    evaluate.evaluate(make(workdir, attacks=("clean",), pictures=0, step_size=3.0))
    assert measured == ["clean", "pgd2", "clean"]
    assert "pgd2" not in json.loads((workdir / "results.json").read_text())


def test_other_weights_are_measured_anew(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda run, name, *_: measured.append(name) or np.ones(COUNT, bool))
    the_run = make(directory / "weights", attacks=("clean",), pictures=0)
    evaluate.evaluate(the_run)
    state = experiment.restore(the_run, "best")
    moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    with checkpoint.opened(the_run.workdir) as checkpoints:
        checkpoint.save(checkpoints.epochs, 8, moved, 0.6)
    evaluate.evaluate(the_run)
    assert measured == ["clean", "clean"]


def test_autoattack_on_other_examples_is_measured_anew(directory, monkeypatch):
    counts = []

    def measure_one(the_run, name, *_):
        counts.append(the_run.config.eval.autoattack_examples or COUNT)
        return np.ones(counts[-1], bool)

    monkeypatch.setattr(evaluate, "measure_one", measure_one)
    for count in (5, 5, 10, 0):
        evaluate.evaluate(make(directory / "few", attacks=("autoattack",), pictures=0, autoattack_examples=count))
    assert counts == [5, 10, COUNT]


def test_flags_come_from_outcomes_and_probes(directory, monkeypatch):
    correct = {"fgsm": 0, "pgd20": COUNT}
    seen = []

    def probe(forward, key, images, labels, **budget):
        seen.append((jax.jit(forward)(images).logits, images, labels, budget))
        never = np.zeros(4, bool)
        names = ("clean", "one step", "steps", "more steps", "restarts", "large budget")
        return Probes(never, never, np.zeros(4, np.float32), ~never, dict.fromkeys(names, never))

    monkeypatch.setattr(evaluate, "measure_one", lambda run, name, *_: np.arange(COUNT) < correct[name])
    monkeypatch.setattr(probes, "probe", probe)
    target = make(directory / "flagged", attacks=("fgsm", "pgd20"), pictures=0, probe_examples=4)
    results = evaluate.evaluate(target)
    assert [flag.split(":")[0] for flag in results["flags"]] == ["outputs are probabilities", "one step beats many"]
    ((logits, images, labels, budget),) = seen
    np.testing.assert_array_equal(images, np.float32(target.data.test.images[:4] / 255))
    np.testing.assert_array_equal(labels, target.data.test.labels[:4])
    np.testing.assert_allclose(logits, forward(target)(images).logits, rtol=1e-5)
    assert budget == {"norm": "linf", "epsilon": 48 / 255, "step_size": 12 / 255}


def test_pictures_are_what_the_network_sees(directory):
    the_run = make(directory / "target", attacks=("clean",))
    evaluate.evaluate(the_run)
    with np.load(the_run.workdir / "pictures.npz", allow_pickle=False) as pictures:
        images, perturbed, labels = (jnp.asarray(pictures[name]) for name in ("images", "perturbed", "labels"))
        for name, x in (("clean", images), ("perturbed", perturbed)):
            outputs = forward(the_run)(x)
            np.testing.assert_array_equal(pictures[f"predicted_{name}"], outputs.logits.argmax(-1))
            label_maps = np.stack([cam[..., label] for cam, label in zip(outputs.cam, labels, strict=True)])
            np.testing.assert_allclose(pictures[f"cam_{name}"], label_maps, atol=1e-5)
        assert images.shape == perturbed.shape == (3, 8, 8, 1)
        assert 0 < np.abs(perturbed - images).max() <= pictures["epsilon"] == 48 / 255


def test_a_source_of_other_data_is_refused(directory):
    target, source = make(directory / "target"), make(directory / "source", seed=5)
    path = source.workdir / "config.json"
    before = path.read_text()
    path.write_text(before.replace('"digits"', '"cifar10"'))
    with pytest.raises(InvalidInput, match="crafted on 'source': it was trained on cifar10, not on digits"):
        experiment.source(target, "source")
    path.write_text(before)
    with pytest.raises(InvalidInput, match="crafted on 'nobody': no run in"):
        experiment.check_source(target.workdir, "nobody")
