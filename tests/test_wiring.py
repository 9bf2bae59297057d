"""From configuration to kernel: the exact arguments that reach attack, schedule, optimizer, data and AutoAttack.

Every field below has a value of its own, unlike any default, so that a field that is dropped or exchanged is seen.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

from infofeat_jax import attacks, data, models, remarks, run, streams
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.attacks.autoattack import Progress
from infofeat_jax.data import augment, mixing, to_unit
from infofeat_jax.evaluation import attack_names, autoattack, evaluate, robustness
from infofeat_jax.evaluation.attack_names import Budget
from infofeat_jax.runtime import devices
from infofeat_jax.training import loop
from infofeat_jax.training.averaging import Averaging
from infofeat_jax.training.awp import Awp
from infofeat_jax.training.free import Free
from infofeat_jax.types import InvalidInput

TRAIN, VALIDATION, TEST = 24, 10, 12
OF_MAPS = {"weight": 0.7, "distance": "l1", "classes": "label"}


def configure(method: str = "infofeature", **changes):
    """A resolved configuration of which no value is a default that the method uses."""
    config = configs.default()
    config.seed, config.batch_size, config.num_epochs = 7, 8, 5
    config.max_loss, config.skip_batches, config.log_every, config.checkpoint.keep = 123.0, 3, 4, 6
    config.checkpoint.every_minutes, config.eval.validate_every = 2.5, 3
    config.model.name, config.model.width = "wrn_10_1", 3
    config.data.update({"crop_padding": 2, "flip": False, "validation_size": VALIDATION, "split_seed": 9})
    config.method.update({"name": method, "label_smoothing": 0.3} | (OF_MAPS if method == "infofeature" else {}))
    config.attack.update({"norm": "l2", "epsilon": 100.0, "step_size": 17.0, "num_steps": 3})
    config.optimizer.update(
        {"learning_rate": 0.5, "momentum": 0.8, "weight_decay": 0.02, "milestones": (1.0, 2.0), "decay": 0.25,
         "nesterov": True}
    )  # fmt: skip
    config.eval.update(
        {"step_size": 11.0, "batch_size": 16, "num_examples": 9, "autoattack_examples": 5, "probe_examples": 4,
         "cam_images": 2, "validation_attack": "cw2", "attacks": ("clean", "pgd4", "autoattack")}
    )  # fmt: skip
    config.update_from_flattened_dict(changes)
    return configs.resolve(config)


def create_data() -> data.Dataset:
    """Three splits of different images, so that one taken for another is seen."""
    splits = []
    for seed, count in enumerate((TRAIN, VALIDATION, TEST)):
        images, labels = (np.asarray(part) for part in small.batch(count, seed=seed))
        splits.append(data.Split((255 * images).astype(np.uint8), labels.astype(np.int32)))
    return data.Dataset(*splits, 5, "noise")


def create_experiment(workdir=Path("."), **changes) -> experiments.Experiment:
    one = experiments.create(configure(**changes), workdir, create_data())
    return one._replace(mesh=jax.sharding.Mesh(jax.devices()[:1], (devices.AXIS,)))


def test_the_attack_gets_the_methods_and_the_attacks_fields_in_the_images_units():
    method = experiments.create_method(configure(), 5)
    assert method.attack.func is attacks.infofeature
    assert method.attack.keywords == {
        "norm": "l2", "epsilon": 100 / 255, "step_size": 17 / 255, "num_steps": 3, "weight": 0.7, "distance": "l1",
        "classes": "label",
    }  # fmt: skip
    targets = method.targets(None, None, jnp.array([1]))
    np.testing.assert_allclose(targets, [[0.075, 0.7, 0.075, 0.075, 0.075]], rtol=1e-5)


def test_the_papers_defaults():
    """InfoFeature: lambda 0.1, Euclidean distance of all classes' maps, 7 steps of a quarter of epsilon."""
    config = configs.default()
    config.attack.epsilon = 12.0
    method = experiments.create_method(configs.resolve(config), 5)
    assert method.attack.keywords == {
        "norm": "linf", "epsilon": 12 / 255, "step_size": 3 / 255, "num_steps": 7, "weight": 0.1, "distance": "l2",
        "classes": "all",
    }  # fmt: skip
    np.testing.assert_array_equal(method.targets(None, None, jnp.array([1])), [[0, 1, 0, 0, 0]])


@pytest.mark.parametrize(("given", "expected"), [(None, 25.0), (11.0, 11.0)])
def test_the_evaluations_budget(given, expected):
    """Steps of a quarter of epsilon, as in training, unless given."""
    config = configure(**({} if given else {"eval.step_size": None}))
    if given is None:
        config = configs.default()
        config.attack.norm, config.attack.epsilon = "l2", 100.0
        config = configs.resolve(config)
    assert experiments.create_budget(config) == Budget("l2", 100 / 255, expected / 255)


def test_the_schedule_has_the_decays_at_its_epochs():
    schedule = create_experiment().schedule  # of 3 steps an epoch
    rates = [float(schedule(step)) for step in (0, 2, 3, 5, 6, 14)]
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.125, 0.125, 0.03125, 0.03125], rtol=1e-6)
    assert create_experiment().total_steps == 15


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 8 / 128), ("sqrt", 0.25)])
def test_the_rate_follows_the_batch_size_after_a_warm_up(rule, factor):
    """Batches of 8, two epochs of 3 steps to warm up, then the schedule as it is."""
    changes = {"optimizer.scaling": rule, "optimizer.warmup_epochs": 2.0, "optimizer.milestones": (3.0,)}
    schedule = create_experiment(**changes).schedule
    expected = [0.5 * factor * share for share in (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1, 0.25)]
    np.testing.assert_allclose([float(schedule(step)) for step in range(9 + 1)], expected, rtol=1e-6)


def test_schedule_and_optimizer_are_those_named():
    """Cosine over 15 steps; AdamW's first step is the rate times the sign, whatever the gradient's size."""
    experiment = create_experiment(**{"optimizer.schedule": "cosine", "optimizer.name": "adamw"})
    np.testing.assert_allclose([experiment.schedule(0), experiment.schedule(15)], [0.5, 0], atol=1e-7)
    params = jnp.array([0.0, 0.0])
    changes, _ = experiment.optimizer.update(jnp.array([3.0, -0.01]), experiment.optimizer.init(params), params)
    assert changes[0] < 0 < changes[1]
    np.testing.assert_allclose(changes[0], -changes[1], rtol=1e-4)


def test_the_optimizer_decays_all_parameters_and_has_its_momentum():
    """Against PyTorch's rule written out, Nesterov, weight decay on BatchNorm's scale and bias too."""
    experiment = create_experiment()
    params = {"bn": {"scale": np.array([2.0, -1.0]), "bias": np.array([0.5, 3.0])}, "kernel": np.array([1.0, 4.0])}
    gradient = jax.tree.map(lambda p: 0.1 * p**2, params)
    state = experiment.optimizer.init(params)
    found, expected, v = params, params, jax.tree.map(np.zeros_like, params)
    for _ in range(2):
        changes, state = experiment.optimizer.update(gradient, state, found)
        found = optax.apply_updates(found, changes)
        decayed = jax.tree.map(lambda g, p: g + 0.02 * p, gradient, expected)
        v = jax.tree.map(lambda v, g: 0.8 * v + g, v, decayed)
        expected = jax.tree.map(lambda p, g, v: p - 0.5 * (g + 0.8 * v), expected, decayed, v)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found, expected)


def test_normalisation_is_left_out_of_the_decay_on_demand():
    experiment = create_experiment(**{"optimizer.decay_norm": False})
    params = {"bn": {"scale": jnp.ones(1), "bias": jnp.ones(1)}, "kernel": jnp.ones(1)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    changes, _ = experiment.optimizer.update(nothing, experiment.optimizer.init(params), params)
    assert changes["bn"] == nothing["bn"]
    assert changes["kernel"] < 0


def test_the_step_is_made_of_the_experiments_parts(monkeypatch):
    seen = {}
    monkeypatch.setattr(experiments, "make_step", lambda *parts, **options: seen.update(parts=parts, **options))
    monkeypatch.setattr(devices, "parallelize_update", lambda step, mesh, mode: seen.update(mesh=mesh, mode=mode))
    recipe = {"ema.decay": 0.75, "awp.gamma": 0.03, "awp.warmup_epochs": 4.0}
    experiment = create_experiment(**{"accumulate_steps": 2, "parallel": "pmap", "batch_size": 16, **recipe})
    experiments.compile_step(experiment)
    assert seen["parts"] == (experiment.module, experiment.method, experiment.optimizer)
    assert seen["augment"].func is augment.crop_and_flip
    assert seen["augment"].keywords == {"padding": 2, "flip": False, "first": "none"}
    assert seen["free"].replays == 0
    assert (seen["awp"], seen["averaging"]) == (Awp(0.03, 4), Averaging(0.75))
    assert (seen["accumulate_steps"], seen["mode"], seen["mesh"]) == (2, "pmap", experiment.mesh)


def test_replays_and_the_augmentation_before_the_others_reach_the_step(monkeypatch):
    seen = {}
    monkeypatch.setattr(experiments, "make_step", lambda *parts, **options: seen.update(options))
    monkeypatch.setattr(devices, "parallelize_update", lambda step, mesh, mode: None)
    free = {"method": "madry", "attack.norm": "l2", "attack.replays": 3, "attack.num_steps": 1}
    free |= {"attack.epsilon": 51.0, "attack.step_size": 25.5}
    experiments.compile_step(create_experiment(**{"data.augment": "trivial", **free}))
    assert seen["free"] == Free(3, "l2", 0.2, 0.1)
    assert seen["augment"].keywords["first"] == "trivial"


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_and_the_attacks_batch_norm_reach_the_step(monkeypatch, name):
    seen = {}
    monkeypatch.setattr(experiments, "make_step", lambda *parts, **options: seen.update(options))
    monkeypatch.setattr(devices, "parallelize_update", lambda step, mesh, mode: None)
    experiments.compile_step(create_experiment(**{f"data.{name}": 0.6, "attack.batch_norm": "batch"}))
    assert seen["mix"].func is getattr(mixing, name)
    assert seen["mix"].keywords == {"alpha": 0.6}
    assert seen["batch_norm"] == "batch"


def test_a_ramp_of_the_budget_reaches_the_step(monkeypatch):
    """Over two epochs of 3 steps, to the whole budget."""
    seen = {}
    monkeypatch.setattr(experiments, "make_step", lambda *parts, **options: seen.update(method=parts[1]))
    monkeypatch.setattr(devices, "parallelize_update", lambda step, mesh, mode: None)
    experiments.compile_step(create_experiment(**{"attack.ramp_epochs": 2.0}))
    budgets = [seen["method"](jnp.int32(step)).attack.keywords for step in (0, 4, 5, 9)]
    for name, whole in {"epsilon": 100 / 255, "step_size": 17 / 255}.items():
        found = [budget[name] for budget in budgets]
        np.testing.assert_allclose(found, [whole / 6, 5 * whole / 6, whole, whole], rtol=1e-6)


def test_the_module_is_the_configurations():
    experiment = create_experiment(**{"model.mean": (0.4,), "model.std": (0.2,), "dtype": "bfloat16", "remat": True})
    module = experiment.module
    assert isinstance(module, models.WideResNet)
    assert (module.depth, module.widen_factor, module.width, module.num_classes) == (10, 1, 3, 5)
    assert (module.mean, module.std, module.dtype, module.remat) == (0.4, 0.2, jnp.bfloat16, True)


def test_the_data_are_loaded_as_the_configuration_says(monkeypatch):
    seen = {}
    monkeypatch.setattr(data, "load", lambda *names, **options: seen.update(names=names, **options) or create_data())
    changes = {"data.name": "digits", "data.data_dir": "here", "data.train_size": 20, "data.test_size": 30}
    changes |= {"data.image_size": 64, "data.in_memory": False}
    experiments.load_data(configure(**changes))
    assert seen == {
        "names": ("digits",), "data_dir": "here", "validation_size": VALIDATION, "train_size": 20, "test_size": 30,
        "split_seed": 9, "image_size": 64, "in_memory": False,
    }  # fmt: skip


def test_the_loop_gets_the_training_split_and_its_settings(tmp_path):
    experiment = create_experiment(tmp_path)
    training = run.create_training(experiment)
    assert training.settings == loop.Settings(8, 5, 7, 4, 123.0, 3, 6, 2.5, 3, False)
    assert training.data is experiment.data.train
    assert (training.judge, training.robust_name, training.num_classes) == ("robust", "cw2", 5)
    assert run.create_training(create_experiment(tmp_path, method="standard")).judge == "clean"
    assert training.schedule(5) == experiment.schedule(5)
    images, labels = loop.load_batch(training, 4)
    rows = loop.batch_rows(training, 4).own
    np.testing.assert_array_equal(images, experiment.data.train.images[rows])
    np.testing.assert_array_equal(labels, experiment.data.train.labels[rows])


def test_the_seed_draws_the_initial_weights():
    kernels = [jax.tree.leaves(experiments.create_state(create_experiment(seed=seed)).params)[-1] for seed in (1, 2, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[2])
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_an_epoch_sees_every_image_once_and_the_next_in_another_order(tmp_path):
    training = run.create_training(create_experiment(tmp_path))
    epochs = [
        np.concatenate([loop.batch_rows(training, 3 * epoch + step).own for step in range(3)]) for epoch in (0, 1)
    ]
    for order in epochs:
        assert sorted(order) == list(range(TRAIN))
    assert not np.array_equal(*epochs)


def test_validation_is_of_the_held_out_images_under_the_validation_attack(tmp_path, monkeypatch):
    """Clean accuracy against a plain pass; the robust one with the exact arguments of its attack."""
    made = []
    compile_attack = robustness.compile_attack

    def spy(attack, mesh):
        made.append(attack)
        return compile_attack(attack, mesh)

    monkeypatch.setattr(robustness, "compile_attack", spy)
    experiment = create_experiment(tmp_path)
    validations = run.create_validations(experiment)
    assert made[0] is None
    assert made[1].func is attacks.cw
    assert made[1].keywords == {"norm": "l2", "epsilon": 100 / 255, "step_size": 11 / 255, "num_steps": 2}
    state = experiments.create_state(experiment)
    held_out = experiment.data.validation
    logits = experiment.module.apply(state.variables, to_unit(jnp.asarray(held_out.images))).logits
    found = np.concatenate([robustness.fetch(*batch) for batch in validations["clean"](state)])
    assert found.mean() == (logits.argmax(-1) == held_out.labels).mean()


def test_what_is_evaluated(tmp_path):
    experiment = create_experiment(tmp_path)
    state = experiments.create_state(experiment)
    subject = run.create_subject(experiment, state.evaluated)
    np.testing.assert_array_equal(subject.split.images, experiment.data.test.images[:9])
    np.testing.assert_array_equal(subject.split.labels, experiment.data.test.labels[:9])
    assert (subject.forward.func, subject.mesh, subject.num_classes) == (experiment.module.apply, experiment.mesh, 5)
    assert subject.forward.args == (state.evaluated,)
    assert not subject.keep_adversarial
    assert subject.budget == Budget("l2", 100 / 255, 11 / 255)
    limits = subject.seed, subject.batch_size, subject.autoattack_examples, subject.probe_examples, subject.cam_images
    assert limits == (7, 16, 5, 4, 2)
    assert subject.file("outcomes") == tmp_path / "outcomes.npz"


@pytest.mark.parametrize("name", ["clean", "pgd2", "distance/cw2"])
def test_images_are_attacked_in_batches_of_the_configured_size(tmp_path, monkeypatch, name):
    """And with one key, so that all attacks start alike."""
    given = []

    def spy(one_batch, mesh, variables, key, split, size, **options):
        given.append((key, split, size))
        yield np.ones(9, np.float32 if name.startswith("distance") else bool)

    monkeypatch.setattr(robustness, "in_batches", spy)
    experiment = create_experiment(tmp_path)
    subject = run.create_subject(experiment, experiments.create_state(experiment).evaluated)
    evaluate.measure_one(subject, name, lambda *texts: None)
    ((key, split, size),) = given
    assert key == streams.key(7, "evaluation")
    assert split is subject.split
    assert size == 16


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True), ({"num_epochs": 9}, True), ({"seed": 8}, False), ({"attack.epsilon": 99.0}, False),
        ({"eval.step_size": 12.0}, False), ({"eval.batch_size": 8}, False), ({"dtype": "bfloat16"}, False),
        ({"model.mean": (0.4,)}, False), ({"attack.norm": "linf"}, False),
    ],
)  # fmt: skip
def test_outcomes_of_another_setting_are_not_taken_over(changes, same):
    """Of the same weights; num_examples is told by the count."""
    experiment = create_experiment()
    variables = experiments.create_state(experiment).evaluated
    other = run.describe_setting(create_experiment(**changes), variables, 9)
    assert (run.describe_setting(experiment, variables, 9) == other) is same
    assert run.describe_setting(experiment, variables, 8) != run.describe_setting(experiment, variables, 9)
    renamed = experiment._replace(data=experiment.data._replace(name="other"))
    assert run.describe_setting(renamed, variables, 9) != run.describe_setting(experiment, variables, 9)
    moved = jax.tree.map(lambda leaf: leaf + 1, variables)
    assert run.describe_setting(experiment, moved, 9) != run.describe_setting(experiment, variables, 9)


@pytest.mark.parametrize(("platform", "size", "said"), [("gpu", 16, True), ("gpu", 248, False), ("cpu", 16, False)])
def test_small_batches_on_accelerators_are_remarked_on(platform, size, said):
    devices_there = np.array([SimpleNamespace(platform=platform)] * 4)
    experiment = create_experiment()
    subject = run.create_subject(experiment, experiments.create_state(experiment).evaluated)
    split = data.Split(np.zeros((300, 8, 8, 1), np.uint8), np.zeros(300, np.int32))
    subject = subject._replace(mesh=SimpleNamespace(devices=devices_there, size=4), batch_size=size, split=split)
    text = "config.eval.batch_size = 16 gives each of 4 devices 4 images at once: 128 keep it busy"
    text += ", --config.eval.batch_size=512"
    assert evaluate.advise(subject) == (text if said else None)
    assert evaluate.advise(subject._replace(split=data.Split(*(part[:16] for part in split)))) is None


@pytest.mark.parametrize(
    ("name", "epsilon", "stages", "asked"),
    [
        ("autoattack", 100, ["apgd-ce", "apgd-t", "fab-t", "square"], None),
        ("autoattack(version=plus)", 100, ["apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"], None),
        ("autoattack(version=quick)", 100, ["apgd-ce", "apgd-t"], None),
        ("apgd-t(epsilon=50)", 50, ["apgd-t"], {}),
        ("square(num_queries=7)", 100, ["square"], {"num_queries": 7}),
    ],
)
def test_autoattacks_threat_model_and_stages(tmp_path, monkeypatch, name, epsilon, stages, asked):
    threats, given = [], {}
    plan = autoattack.plan

    def spy_plan(threat, num_classes, size, **options):
        threats.append((threat.norm, threat.epsilon, num_classes, tuple(size)))
        given["asked"] = options.get("options")
        return plan(threat, num_classes, size, **options)

    def spy_steps(the_plan, forward, key, images, labels, **options):
        given.update(stages=[stage.name for stage in the_plan.stages], images=images, labels=labels, key=key, **options)
        found = np.array([-1, 0, 1, -1, 2], np.int32)
        state = autoattack.ResumeState(len(stages) + 1, 0 * found, found, images, 3, 3)
        yield Progress("square", 2, 5, 3, 1.0), state

    monkeypatch.setattr(autoattack, "plan", spy_plan)
    monkeypatch.setattr(autoattack, "steps", spy_steps)
    experiment = create_experiment(tmp_path)
    subject = run.create_subject(experiment, experiments.create_state(experiment).evaluated)
    stopped = autoattack.ResumeState(1, np.arange(5), np.zeros(5, np.int32), np.zeros((5, 8, 8, 3), np.float32), 2, 77)
    autoattack.save(autoattack.where(subject, attack_names.parse(name)), stopped, 1.5)
    outcome = evaluate.measure_one(subject, name, lambda *texts, **more: None)
    jax.tree.map(np.testing.assert_array_equal, given["state"], stopped)
    ((norm, found, num_classes, size),) = threats
    assert (norm, num_classes, size) == ("l2", 5, (8, 8))
    assert epsilon / 255 - 1e-6 < found <= epsilon / 255
    assert (given["stages"], given["asked"]) == (stages, asked)
    assert given["key"] == streams.key(7, "autoattack")
    np.testing.assert_array_equal(given["images"], to_unit(experiment.data.test.images[:5]))
    np.testing.assert_array_equal(given["labels"], experiment.data.test.labels[:5])
    assert (given["batch_size"], given["mesh"]) == (16, experiment.mesh)
    np.testing.assert_array_equal(outcome, [True, False, False, True, False])


def test_each_device_of_the_pmap_mode_has_a_key_of_its_own():
    """Random starts of equal images on two devices differ in the pmap mode."""
    mesh = jax.sharding.Mesh(jax.devices()[:2], (devices.AXIS,))
    spread = {}

    def update(state, batch, key, *, average):
        noise = jax.random.uniform(key, ())
        return state, {"spread": average(noise) - noise}

    for mode in ("jit", "pmap"):
        step = devices.parallelize_update(update, mesh, mode)
        spread[mode] = float(step(jnp.zeros(()), (jnp.zeros(4), jnp.zeros(4)), jax.random.key(0))[1]["spread"])
    assert spread["jit"] == 0
    assert abs(spread["pmap"]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "600 of 1297 training images are held out for validation, which leaves 697:"
             " --config.data.validation_size=259 would leave 1038"),
        ({"data.validation_size": 259}, ""),
        ({"data.train_size": 100}, ""),  # asked for
    ],
)  # fmt: skip
def test_a_validation_split_that_leaves_little_to_train_on_is_remarked_on(changes, said):
    config = configure(**{"data.name": "digits", "data.validation_size": 600, "data.train_size": 0} | changes)
    assert remarks.held_out(config, experiments.load_data(config)) == said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_epochs": 60}, r"the learning rate stays 0.5: .* \(60.0, 90.0\) lie beyond 60 epochs; .*\(30,45\)"),
        ({"num_epochs": 61}, "^$"),
        ({"num_epochs": 60, "optimizer.schedule": "cosine"}, "^$"),
        ({"num_epochs": 60, "optimizer.milestones": ()}, "^$"),  # asked for
    ],
)
def test_a_learning_rate_that_would_not_fall_is_remarked_on(changes, said):
    assert re.search(said, remarks.schedule(configure(**{"optimizer.milestones": (60.0, 90.0)} | changes)))


class Reached(Exception):
    """What follows the check of the data."""


def test_images_that_changed_are_noticed(tmp_path, monkeypatch):
    """By training those to train on, by an evaluation those to test on; noted when they are first seen."""

    def reached(*_, **options):
        raise Reached

    monkeypatch.setattr(run, "create_training", reached)
    monkeypatch.setattr(experiments, "restore", reached)
    uses = {run.train: ("train", "validation"), run.evaluate_run: ("test",)}
    one = create_experiment(tmp_path)
    (tmp_path / "config.json").write_text(configs.to_json(one.config))  # of a run before there was a note
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    for use, splits in uses.items():
        for _ in range(2):
            with pytest.raises(Reached):
                use(one)
        for split in ("train", "validation", "test"):
            changed = getattr(one.data, split)
            changed = changed._replace(labels=np.roll(changed.labels, 1))
            other = one._replace(data=one.data._replace(**{split: changed}))
            noticed = pytest.raises(InvalidInput, match=r"images.* have changed since it last had them: restore")
            with noticed if split in splits else pytest.raises(Reached):
                use(other)
    pool = one._replace(extra=one.data.train)
    for changed in (False, True):
        other = pool._replace(extra=pool.extra._replace(images=255 - pool.extra.images)) if changed else pool
        noticed = pytest.raises(InvalidInput, match="the images of the second pool have changed since")
        with noticed if changed else pytest.raises(Reached):
            run.train(other)
    fewer = data.Split(*(array[:-1] for array in one.data.test))
    with pytest.raises(Reached):  # config.data.test_size may change
        run.evaluate_run(one._replace(data=one.data._replace(test=fewer)))
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"data\.json is not readable"):
        run.train(one)


def test_an_epsilon_of_unit_images_and_sorted_test_images_are_remarked_on():
    assert "is in 8-bit levels, 0.031/255" in remarks.budget(configure(**{"attack.epsilon": 0.031}))
    assert not remarks.budget(configure(**{"attack.epsilon": 8.0}))
    config = configure(**{"data.name": "digits", "data.validation_size": 200})
    config.eval.autoattack_examples, config.eval.num_examples = 100, 0
    dataset = experiments.load_data(config)
    assert not remarks.order(config, dataset)
    sorted_by_class = np.argsort(dataset.test.labels, kind="stable")
    dataset = dataset._replace(test=data.Split(*(array[sorted_by_class] for array in dataset.test)))
    assert "the first 100 test images, of which evaluations are, hold 3 of 10" in remarks.order(config, dataset)


def test_an_evaluation_takes_all_devices_whatever_batches_were_trained_on(tmp_path):
    config = configure(**{"data.name": "digits", "data.validation_size": 200, "batch_size": 12})
    assert experiments.create(config, tmp_path, to_train=False).mesh.size == 8
    with pytest.raises(InvalidInput, match=r"config.batch_size = 12: expected a multiple of the 8 devices"):
        experiments.create(config, tmp_path)
