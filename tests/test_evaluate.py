"""Evaluation of untrained networks on a few digits: outcomes against direct calls, and reuse of measurements."""

import json
import pathlib
import re
import shutil
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import tiny_model

import infofeat_jax
from infofeat_jax import attacks, models, run, streams
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import aside, attack_names, autoattack, evaluate, probes, summaries
from infofeat_jax.evaluation.measured import Measured
from infofeat_jax.evaluation.probes import Probes
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.experiment import Experiment
from infofeat_jax.report import gaps
from infofeat_jax.runtime import files
from infofeat_jax.training import checkpoint
from infofeat_jax.types import InUse, InvalidInput

__all__ = ["tiny_model"]
COUNT = 20


def make(directory: pathlib.Path, seed: int = 0, model: str = "tiny", **evaluation) -> Experiment:
    """A run of a small network with one checkpoint, its initial state; its files say that training was completed."""
    config = configs.default()
    config.seed = seed
    config.model.name, config.model.width = model, 4
    config.data.name = "digits"
    config.attack.epsilon = 48.0
    small = {"batch_size": 16, "num_examples": COUNT, "step_size": 12.0, "cam_images": 3, "probe_examples": 0}
    config.eval.update(small | evaluation)
    config = configs.resolve(config)
    the_run = experiments.create(config, directory)
    if not (directory / "config.json").exists():
        directory.mkdir(parents=True)
        files.write_atomically(directory / "config.json", configs.to_json(config))
        files.write_atomically(directory / "metrics.jsonl", json.dumps({"step": 7, "epoch": config.num_epochs}) + "\n")
        with checkpoint.opened(directory) as checkpoints:
            checkpoint.save(checkpoints, checkpoint.Snapshot(7, experiments.create_state(the_run), 0.5))
    return the_run


def save_latest(the_run: Experiment):
    """(best, latest) state, after saving a checkpoint of one step more, other parameters and a lower score."""
    best = experiments.restore(the_run, "best")
    latest = best._replace(params=jax.tree.map(lambda leaf: leaf + 1, best.params), step=best.step + 1)
    with checkpoint.opened(the_run.workdir) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(8, latest, 0.1))
    return best, latest


@pytest.fixture(scope="module")
def directory(tiny_model, tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs")


def outcomes(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "outcomes.npz", allow_pickle=False) as saved:
        return dict(saved)


def batches(the_run: Experiment):
    """(key, images, labels) as the evaluation cuts and numbers them, the last batch filled up."""
    root = streams.key(the_run.config.seed, "evaluation")
    for index, start in enumerate(range(0, COUNT, 16)):
        rows = np.minimum(np.arange(start, start + 16), COUNT - 1)
        images = to_unit(jnp.asarray(the_run.data.test.images[rows]))
        yield jax.random.fold_in(root, index), images, jnp.asarray(the_run.data.test.labels[rows])


def forward(the_run: Experiment):
    variables = experiments.restore(the_run, "latest").variables
    return jax.jit(lambda images: the_run.module.apply(variables, images))


def test_a_transferred_attack_is_crafted_on_the_source_and_scored_on_the_target(directory):
    target = make(directory / "target", attacks=("clean", "pgd2", "pgd2@source"))
    source = make(directory / "source", seed=5)
    of_source = forward(source)
    save_latest(source)  # other weights, which are not attacked
    end = {"step": 8, "epoch": source.config.num_epochs}
    files.write_atomically(source.workdir / "metrics.jsonl", json.dumps(end) + "\n")
    results = run.evaluate_run(target)
    craft = jax.jit(partial(attacks.pgd, of_source, epsilon=48 / 255, step_size=12 / 255, num_steps=2))
    score = forward(target)
    expected = [score(craft(*batch)).logits.argmax(-1) == batch[-1] for batch in batches(target)]
    found = outcomes(target.workdir)
    np.testing.assert_array_equal(found["pgd2@source"], np.concatenate(expected)[:COUNT])
    assert results["pgd2@source"] == found["pgd2@source"].mean()
    assert list(results["examples"]) == ["clean", "pgd2", "pgd2@source"]
    assert results["worst_case"] == np.all([found[name] for name in results["examples"]], axis=0).mean()


def test_the_worst_case_is_over_the_attacks_of_the_threat_model_on_the_images_that_all_saw():
    outcomes = {
        "pgd2": np.array([True, True, False, True]),
        "autoattack": np.array([True, False]),
        "fgsm(epsilon=24)": np.zeros(4, bool),
    }
    assert summaries.worst_case(outcomes) == 0.5
    assert summaries.worst_case({name: outcomes[name] for name in ("pgd2", "fgsm(epsilon=24)")}) == 0.75
    assert summaries.worst_case({"fgsm(epsilon=24)": outcomes["fgsm(epsilon=24)"]}) is None


def test_accuracies_on_the_images_that_all_attacks_saw():
    outcomes = {
        "pgd2": np.array([True, True, False, True]),
        "autoattack": np.array([True, False]),
        "fgsm(epsilon=24)": np.array([False, True, True]),
        "noise(epsilon=24)": np.array([True]),  # too few, but not in the threat model
    }
    assert summaries.common(outcomes) == {
        "pgd2": 1.0, "autoattack": 0.5, "fgsm(epsilon=24)": 0.5, "worst_case": 0.5,
        "examples": {"pgd2": 2, "autoattack": 2, "fgsm(epsilon=24)": 2},
    }  # fmt: skip
    assert summaries.common({name: outcomes[name] for name in ("pgd2", "fgsm(epsilon=24)")}) == {}


def test_distances_are_norms_of_the_difference_to_pgd(directory):
    """Also of KL's, which by itself starts outside of the box."""
    names = {"cw2": attacks.cw, "kl2": partial(attacks.kl, clip_start=True), "cw2(random_start=False)": attacks.cw}
    target = make(directory / "target", attacks=("clean",), distances=tuple(names))
    results = run.evaluate_run(target)
    budget = {"epsilon": 48 / 255, "step_size": 12 / 255, "num_steps": 2}
    for name, attack in names.items():
        options = budget | ({"random_start": False} if "random_start" in name else {})
        craft, pgd = (jax.jit(partial(one, forward(target), **options)) for one in (attack, attacks.pgd))
        differences = [craft(*batch) - pgd(*batch) for batch in batches(target)]
        expected = np.sqrt(np.sum(np.square(np.concatenate(differences)), axis=(1, 2, 3)))[:COUNT]
        np.testing.assert_allclose(outcomes(target.workdir)[f"distance/{name}"], expected, atol=1e-5)
        assert results["distances"][name] == pytest.approx(expected.mean(), abs=1e-5)
        assert results["distances"][name] > 0


def test_as_many_images_are_kept_for_the_report_as_were_asked_for_last(directory):
    for count in (2, 3):
        results = run.evaluate_run(make(directory / "images", attacks=("clean",), cam_images=count))
        stored = np.load(directory / "images" / "cam_images.npz")
        assert len(stored["images"]) == len(stored["cam_clean"]) == results["cam_images"] == count


def test_an_evaluation_without_an_attack_in_the_threat_model_is_reported(directory):
    results = run.evaluate_run(make(directory / "curve", attacks=("fgsm(epsilon=9)",), cam_images=0))
    assert results["worst_case"] is None
    assert gaps.find_damage(json.loads((directory / "curve" / "results.json").read_text())) == ""


def test_lowered_batches_stay_lowered_for_the_whole(monkeypatch):
    sizes = []

    def measure(subject, names, known=None, *, progress):
        sizes.append(subject.batch_size)
        return Measured({"pgd20": np.ones(4, bool)}, {}, {}, batch_size=known.batch_size if known else 5)

    monkeypatch.setattr(evaluate, "measure", measure)
    monkeypatch.setattr(evaluate.summaries, "look", lambda subject, measured, progress: measured)
    monkeypatch.setattr(evaluate.summaries, "summarise", lambda subject, measured: {"flags": ["zero gradients"]})
    monkeypatch.setattr(evaluate.heuristics, "unconfirmed", lambda names: {"quick": "autoattack"})
    subject = Subject(None, None, 3, None, None, None, "", source=None, batch_size=20)
    assert evaluate.measure_and_summarise(subject, ["pgd20"])[0].batch_size == 5
    assert sizes == [20, 5]


def test_what_was_measured_is_taken_over_in_the_same_setting_only(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda _, name, *__: measured.append(name) or np.ones(COUNT, bool))
    workdir = directory / "again"
    run.evaluate_run(make(workdir, attacks=("clean",), cam_images=0))
    first = json.loads((workdir / "results.json").read_text())
    run.evaluate_run(make(workdir, attacks=("clean", "pgd2"), cam_images=0))
    assert measured == ["clean", "pgd2"]
    run.evaluate_run(make(workdir, attacks=("pgd2",), cam_images=0, checkpoint="both"))
    assert measured == ["clean", "pgd2"]  # the best is the latest
    results = json.loads((workdir / "results.json").read_text())
    assert first["clean"] == results["clean"] == results["pgd2"] == results["latest"]["pgd2"] == 1.0
    run.evaluate_run(make(workdir, attacks=("clean",), cam_images=0, step_size=3.0))
    assert measured == ["clean", "pgd2", "clean"]
    assert "pgd2" not in json.loads((workdir / "results.json").read_text())
    run.evaluate_run(make(workdir, attacks=("clean", "pgd2"), cam_images=0))  # nothing was lost by that
    assert measured == ["clean", "pgd2", "clean"]
    assert json.loads((workdir / "results.json").read_text())["pgd2"] == 1.0
    run.evaluate_run(make(workdir, attacks=("clean",), cam_images=0, step_size=3.0))
    assert measured == ["clean", "pgd2", "clean"]


@pytest.mark.parametrize("suffix", ["", "_latest", "_live", "_latest_live"])
def test_what_is_set_aside_is_the_subjects_own(directory, tmp_path, suffix):
    """Each of the four has its files; a damaged file stays where it is, as nobody knows what it is of."""
    every = ("", "_latest", "_live", "_latest_live")
    for name in ("outcomes", "autoattack", "probes"):
        for other in every:
            np.savez(tmp_path / f"{name}{other}.npz", setting="old", values=np.arange(3))
    target = make(directory / f"aside{suffix}", attacks=("clean",), cam_images=0)
    subject = run.create_subject(target, experiments.restore(target, "best").variables, suffix)
    subject = subject._replace(workdir=tmp_path, setting="new")
    np.savez(tmp_path / f"mine{suffix}.npz", weights=np.arange(3))  # a user's own
    aside.switch(subject)
    (tmp_path / f"mine{suffix}.npz").unlink()
    left = {path.name for path in tmp_path.glob("*.npz")}
    assert left == {f"{n}{o}.npz" for n in ("outcomes", "autoattack", "probes") for o in every if o != suffix}
    aside.switch(subject._replace(setting="old"))
    assert len({*tmp_path.glob("*.npz")}) == 12
    subject.file("outcomes").write_bytes(b"PK damaged")
    aside.switch(subject)
    assert subject.file("outcomes").read_bytes() == b"PK damaged"
    assert len({*tmp_path.glob("*.npz")}) == 10  # the rest would be overwritten


def test_an_interrupted_first_measurement_is_set_aside_too(directory, tmp_path):
    """There are no outcomes yet; a resume state's setting begins with the evaluation's."""
    target = make(directory / "first", attacks=("clean",), cam_images=0)
    subject = run.create_subject(target, experiments.restore(target, "best").variables)
    subject = subject._replace(workdir=tmp_path, setting=json.dumps({"epsilon": 8}))
    np.savez(tmp_path / "autoattack.npz", setting=json.dumps([subject.setting, COUNT]), queries=3)
    aside.switch(subject)
    assert (tmp_path / "autoattack.npz").exists()
    aside.switch(subject._replace(setting=json.dumps({"epsilon": 4})))
    assert not (tmp_path / "autoattack.npz").exists()
    np.savez(tmp_path / "autoattack.npz", setting=json.dumps([json.dumps({"epsilon": 4}), COUNT]), queries=5)
    aside.switch(subject)
    with np.load(tmp_path / "autoattack.npz") as saved:
        assert saved["queries"] == 3


def test_the_state_of_another_number_of_images_is_kept(directory):
    name = "apgd-ce(num_steps=2)"
    for count in (8, 4):
        run.evaluate_run(make(directory / "counts", attacks=(name,), cam_images=0, autoattack_examples=count))
    target = make(directory / "counts", attacks=(name,), cam_images=0, autoattack_examples=8)
    subject, spec = run.create_subject(target, experiments.restore(target, "best").variables), attack_names.parse(name)
    four = subject._replace(autoattack_examples=4)
    assert autoattack.load(autoattack.where(subject, spec)) is None
    assert len(autoattack.load(autoattack.where(four, spec)).broken_by) == 4
    for one, count in ((subject, 8), (four, 4)):
        autoattack.switch(one, spec)
        assert len(autoattack.load(autoattack.where(one, spec)).broken_by) == count


def test_other_weights_are_measured_anew(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda _, name, *__: measured.append(name) or np.ones(COUNT, bool))
    the_run = make(directory / "weights", attacks=("clean",), cam_images=0)
    run.evaluate_run(the_run)
    state = experiments.restore(the_run, "best")
    moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    with checkpoint.opened(the_run.workdir) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(8, moved, 0.6))
    run.evaluate_run(the_run)
    assert measured == ["clean", "clean"]


def test_autoattack_on_other_examples_is_measured_anew(directory, monkeypatch):
    counts = []

    def measure_one(subject, name, *_):
        counts.append(subject.autoattack_examples or COUNT)
        return np.ones(counts[-1], bool)

    monkeypatch.setattr(evaluate, "measure_one", measure_one)
    for count in (5, 5, 10, 0):
        run.evaluate_run(make(directory / "few", attacks=("autoattack",), cam_images=0, autoattack_examples=count))
    assert counts == [5, 10, COUNT]


def test_the_public_call_measures_what_the_evaluation_of_the_run_does(directory, monkeypatch):
    """Of uint8 images, in the same batches from the same seed; its adversarial images are not stored in a run."""
    monkeypatch.setattr(summaries, "probe", lambda subject: None)
    names = ("clean", "pgd2")
    the_run = make(directory / "public", attacks=names, cam_images=0)
    results, test = run.evaluate_run(the_run), the_run.data.test
    loaded = infofeat_jax.load(the_run.workdir)
    images, labels = test.images[:COUNT], test.labels[:COUNT]
    found = infofeat_jax.evaluate(
        loaded, images, labels, epsilon=48 / 255, attacks=names, batch_size=16, progress=False
    )  # fmt: skip
    for name, outcome in found.outcomes.items():
        np.testing.assert_array_equal(outcome, outcomes(the_run.workdir)[name])
        assert results[name] == found.accuracy[name]
    assert not (the_run.workdir / "pgd2.npz").exists()


def test_a_trained_model_in_one_line_and_quietly(directory, capfd):
    the_run = make(directory / "loaded", model="wrn_10_1")  # PyTorch has it, too
    loaded = infofeat_jax.load(the_run.workdir)
    images = to_unit(jnp.asarray(the_run.data.test.images[:4]))
    np.testing.assert_array_equal(jax.jit(loaded)(images).logits, forward(the_run)(images).logits)
    variables = experiments.restore(the_run, "latest").variables
    models.save_torch(directory / "loaded.npz", variables)
    from_file = infofeat_jax.load(directory / "loaded.npz", mean=0.5, std=0.5)
    np.testing.assert_allclose(jax.jit(from_file)(images).logits, forward(the_run)(images).logits, atol=1e-5)
    with pytest.raises(InvalidInput, match=r"no config\.json: expected a run's directory"):
        infofeat_jax.load(directory)
    assert capfd.readouterr() == ("", "")


def test_a_run_is_not_loaded_without_the_extra_train(directory, monkeypatch):
    monkeypatch.delattr(infofeat_jax, "weights", raising=False)
    monkeypatch.setitem(sys.modules, "infofeat_jax.weights", None)  # as if its imports were not there
    with pytest.raises(InvalidInput, match=r"to read a run \(.*\), pip install .*\[train\]"):
        infofeat_jax.load(directory)


def test_flags_come_from_outcomes_and_probes(directory, monkeypatch):
    correct = {"fgsm": 0, "pgd20": COUNT}
    seen = []

    def probe(forward, key, images, labels, **budget):
        seen.append((jax.jit(forward)(images).logits, images, labels, budget))
        never = np.zeros(len(labels), bool)
        names = ("clean", "one step", "steps", "more steps", "restarts", "large budget")
        return Probes(never, never, np.zeros(len(labels), np.float32), ~never, dict.fromkeys(names, never))

    monkeypatch.setattr(evaluate, "measure_one", lambda subject, name, *_: np.arange(COUNT) < correct[name])
    monkeypatch.setattr(probes, "probe", probe)
    target = make(directory / "flagged", attacks=("fgsm", "pgd20"), cam_images=0, probe_examples=4)
    results = run.evaluate_run(target)
    assert [flag.split(":")[0] for flag in results["flags"]] == ["outputs are probabilities", "one step beats many"]
    ((logits, images, labels, budget),) = seen
    np.testing.assert_array_equal(images, to_unit(target.data.test.images[:4]))
    np.testing.assert_array_equal(labels, target.data.test.labels[:4])
    np.testing.assert_allclose(logits, forward(target)(images).logits, rtol=1e-5)
    assert budget == {
        "norm": "linf",
        "epsilon": 48 / 255,
        "step_size": 12 / 255,
        "batch_size": 2,
    }  # on one of 8 devices
    assert run.evaluate_run(target)["flags"] == results["flags"]
    assert len(seen) == 1  # the second evaluation has read them
    run.evaluate_run(make(directory / "flagged", attacks=("fgsm", "pgd20"), cam_images=0, probe_examples=5))
    assert len(seen) == 2
    (target.workdir / "probes.npz").write_bytes(b"damaged")
    assert run.evaluate_run(target)["flags"] == results["flags"]
    assert len(seen) == 3


def test_an_evaluation_prints_its_own_run(tmp_path, directory, capsys):
    target = make(directory / "target")
    for name in ("own", "beside"):
        shutil.copytree(target.workdir, tmp_path / name)
    run.evaluate_run(make(tmp_path / "own", attacks=("clean",), cam_images=0))
    shown = capsys.readouterr().out
    assert shown.count("own: evaluated before the end of its training") == 1
    assert "beside" not in shown


def test_cam_images_are_what_the_network_sees(directory):
    the_run = make(directory / "target", attacks=("clean",))
    run.evaluate_run(the_run)
    with np.load(the_run.workdir / "cam_images.npz", allow_pickle=False) as kept:
        earlier = {name: value for name, value in kept.items() if name != "class_names"}
        assert kept["class_names"].tolist() == [str(digit) for digit in range(10)]
    budget = {"epsilon": 48 / 255, "step_size": 12 / 255, "num_steps": 20}
    attack = jax.jit(partial(attacks.infofeature, forward(the_run), **budget))
    attacked = attack(streams.key(0, "cam_images"), jnp.asarray(earlier["images"]), jnp.asarray(earlier["labels"]))
    np.testing.assert_allclose(earlier["perturbed"], attacked, atol=1e-5)
    assert earlier["attack"] == "infofeature20"
    np.savez(the_run.workdir / "cam_images.npz", **earlier)  # as written before it held the names
    run.evaluate_run(the_run)
    with np.load(the_run.workdir / "cam_images.npz", allow_pickle=False) as kept:
        images, perturbed, labels = (jnp.asarray(kept[name]) for name in ("images", "perturbed", "labels"))
        for name, x in (("clean", images), ("perturbed", perturbed)):
            outputs = forward(the_run)(x)
            np.testing.assert_array_equal(kept[f"predicted_{name}"], outputs.logits.argmax(-1))
            label_maps = np.stack([cam[..., label] for cam, label in zip(outputs.cam, labels, strict=True)])
            np.testing.assert_allclose(kept[f"cam_{name}"], label_maps, atol=1e-5)
        assert images.shape == perturbed.shape == (3, 8, 8, 1)
        assert len(kept["class_names"]) == 10
        assert 0 < np.abs(perturbed - images).max() <= kept["epsilon"] == 48 / 255


def test_a_source_of_other_data_is_refused(directory):
    target, source = make(directory / "target"), make(directory / "source", seed=5)
    path = source.workdir / "config.json"
    before = path.read_text()
    path.write_text(before.replace('"digits"', '"cifar10"'))
    with pytest.raises(InvalidInput, match="crafted on 'source': it was trained on cifar10, not on digits"):
        run.load_source(target, "source")
    path.write_text(before)
    with pytest.raises(InvalidInput, match="crafted on 'nobody': no run in"):
        run.check_source(target.workdir, "nobody")


def test_a_source_that_has_not_been_trained_to_its_end_is_refused(directory):
    target, source = make(directory / "target"), make(directory / "unfinished", seed=5)
    (source.workdir / "metrics.jsonl").write_text(json.dumps({"step": 7, "epoch": 3}) + "\n")
    expected = r"crafted on 'unfinished': .* not been trained to completion \(120 epoch"
    for check in (run.check_source, lambda _, name: run.load_source(target, name)):
        with pytest.raises(InvalidInput, match=expected):
            check(target.workdir, "unfinished")


def test_a_transferred_attack_is_measured_anew_when_its_source_was_trained_anew(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda _, name, *__: measured.append(name) or np.ones(COUNT, bool))
    source = make(directory / "moving", seed=5)
    target = make(directory / "attacked", attacks=("clean", "pgd2@moving"), cam_images=0)
    for _ in range(2):
        run.evaluate_run(target)
    assert measured == ["clean", "pgd2@moving"]
    stored = json.loads((target.workdir / "results.json").read_text())["sources"]["pgd2@moving"]
    assert run.is_current(target.workdir, "pgd2@moving", stored)
    state = experiments.restore(source, "best")
    with checkpoint.opened(source.workdir) as checkpoints:
        moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
        checkpoint.save(checkpoints, checkpoint.Snapshot(8, moved, 0.6))
    files.write_atomically(source.workdir / "metrics.jsonl", json.dumps({"step": 8, "epoch": 120}) + "\n")
    assert not run.is_current(target.workdir, "pgd2@moving", stored)
    run.evaluate_run(target)
    assert measured == ["clean", "pgd2@moving", "pgd2@moving"]


def test_a_transferred_attack_in_another_spelling_is_finished_too(tmp_path, monkeypatch):
    config = configs.default()
    config.eval.attacks = ("pgd10(step_size=1,restarts=2)@madry",)
    config = configs.resolve(config)
    stored = {"pgd10(restarts=2,step_size=1)@madry": "its digest"}
    results = {"config": config.to_dict(), "finished": True, "sources": stored}
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(run, "is_current", lambda workdir, name, source: stored[name] == source)
    assert run.is_finished(config, tmp_path)


def test_autoattack_of_both_checkpoints_keeps_the_stages_of_each(directory):
    the_run = make(
        directory / "both", attacks=("clean", "autoattack"), cam_images=0, checkpoint="both", autoattack_examples=4,
        num_examples=8,
    )  # fmt: skip
    state = experiments.restore(the_run, "best")
    with checkpoint.opened(the_run.workdir) as checkpoints:
        moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 0.1, state.params))
        checkpoint.save(checkpoints, checkpoint.Snapshot(8, moved, 0.1))
    first, second = run.evaluate_run(the_run), run.evaluate_run(the_run)
    assert list(first["autoattack_stages"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for results in (second, second["latest"]):
        assert results["autoattack_stages"]["square"] == results["autoattack"]
    assert first["autoattack_stages"] == second["autoattack_stages"]


def test_a_directory_is_of_one_run(tmp_path):
    with run.own_directory(tmp_path / "new"), pytest.raises(InUse, match="in use by process"):
        run.own_directory(tmp_path / "new").__enter__()
    with run.own_directory(tmp_path / "new"):
        pass


def test_every_field_of_the_results_is_on_the_page(directory):
    the_run = make(
        directory / "fields", attacks=("clean", "autoattack"), cam_images=0, checkpoint="both", autoattack_examples=4
    )
    page = (pathlib.Path(__file__).parent.parent / "docs/how-to/evaluate.md").read_text()
    named = set(re.findall(r"`(\w+)`", page[page.index("## What results.json holds") :]))
    results = run.evaluate_run(the_run)
    assert results.keys() - results["examples"].keys() <= named
    assert named - results.keys() == {"live", "best"}


def test_both_evaluates_the_best_weights_and_the_latest(directory, monkeypatch):
    the_run = make(directory / "which", attacks=("clean",), cam_images=2, checkpoint="both")
    best, latest = save_latest(the_run)
    found = {}
    monkeypatch.setattr(evaluate, "evaluate", lambda subject, *_: found.update({subject.suffix: subject}) or {})
    results = run.evaluate_run(the_run)
    assert (results["checkpoint"], results["latest"]["checkpoint"]) == ("best", "latest")
    assert (found[""].cam_images, found["_latest"].cam_images) == (2, 0)  # one file, of the first
    for suffix, state in (("", best), ("_latest", latest)):
        jax.tree.map(np.testing.assert_array_equal, found[suffix].forward.args[0]["params"], state.params)


def test_evaluating_one_checkpoint_keeps_what_was_measured_of_the_other(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(
        evaluate, "measure_one", lambda subject, *_: measured.append(subject.suffix) or np.ones(COUNT, bool)
    )
    runs = {
        which: make(directory / "turns", attacks=("clean",), cam_images=0, checkpoint=which)
        for which in ("both", "latest", "best")
    }
    state = experiments.restore(runs["both"], "best")
    with checkpoint.opened(runs["both"].workdir) as checkpoints:
        moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
        checkpoint.save(checkpoints, checkpoint.Snapshot(8, moved, 0.1))
    for which in ("both", "latest", "best", "both"):
        run.evaluate_run(runs[which])
    assert measured == ["", "_latest"]


def test_a_stage_of_autoattack_by_name_and_an_attack_with_options(directory):
    names = ("pgd2(epsilon=24,step_size=6)", "pgd2(restarts=2)", "square(num_queries=3)", "apgd-ce(num_steps=2)")
    target = make(directory / "named", attacks=names, cam_images=0, autoattack_examples=8)
    results = run.evaluate_run(target)
    assert set(names[1:]) < results.keys()
    assert results["examples"] == {names[0]: COUNT, names[1]: COUNT, names[2]: 8, names[3]: 8}
    score = forward(target)
    craft = jax.jit(partial(attacks.pgd, score, epsilon=24 / 255, step_size=6 / 255, num_steps=2))
    expected = [score(craft(*batch)).logits.argmax(-1) == batch[-1] for batch in batches(target)]
    found = outcomes(target.workdir)
    np.testing.assert_array_equal(found["pgd2(epsilon=24,step_size=6)"], np.concatenate(expected)[:COUNT])
    inside = [found[name][:8] for name in names[1:]]  # the first has an epsilon of its own
    assert results["worst_case"] == np.all(inside, axis=0).mean()


def test_damaged_outcomes_are_measured_again(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda _, name, *__: measured.append(name) or np.ones(COUNT, bool))
    the_run = make(directory / "damaged", attacks=("clean",), cam_images=0)
    run.evaluate_run(the_run)
    path = the_run.workdir / "outcomes.npz"
    whole = outcomes(the_run.workdir)
    for damage in ({"clean": np.array(True)}, {"clean": np.array(["x"] * COUNT)}, {"seconds": np.array("[1]")}):
        np.savez(path, **whole | damage)
        run.evaluate_run(the_run)
    assert measured == ["clean"] * 4
    (the_run.workdir / "metrics.jsonl").write_bytes(
        b'\xff\xfe\n{"step": 7, "epoch": 120, "epoch_seconds": "x"}\n' + b"[" * 9999
    )
    assert run.evaluate_run(the_run)["training_seconds"] == 0
    epochs = [{"step": 7 * epoch, "epoch": epoch, "epoch_seconds": 1.25 * epoch} for epoch in (1, 2, 119, 120)]
    (the_run.workdir / "metrics.jsonl").write_text("".join(json.dumps(line | {"loss": 9.0}) + "\n" for line in epochs))
    assert run.evaluate_run(the_run)["training_seconds"] == round(1.25 * 242, 1)


def test_a_source_that_is_gone_concerns_only_those_who_ask_for_it(directory, monkeypatch):
    measured = []
    monkeypatch.setattr(evaluate, "measure_one", lambda _, name, *__: measured.append(name) or np.ones(COUNT, bool))
    source = make(directory / "leaving", seed=5)
    run.evaluate_run(make(directory / "left", attacks=("clean", "pgd2@leaving"), cam_images=0))
    source.workdir.rename(directory / "gone")
    results = run.evaluate_run(make(directory / "left", attacks=("clean", "pgd2"), cam_images=0))
    assert measured == ["clean", "pgd2@leaving", "pgd2"]
    assert list(results["examples"]) == ["clean", "pgd2"]
