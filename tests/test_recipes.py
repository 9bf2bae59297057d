"""EMA of the weights and adversarial weight perturbation, with any method: by hand, resumed, on several devices."""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import golden_attacks
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree
from small import tiny_model  # noqa: F401
from test_loop import in_directory, same, train_in_pieces
from test_step import create_experiment, distance, steps

from infofeat_jax import attacks, data, methods, models, run, weights
from infofeat_jax import experiment as experiments
from infofeat_jax.data import to_unit
from infofeat_jax.models.pytorch import names
from infofeat_jax.training import checkpoint, loop, optimizers
from infofeat_jax.training.awp import Awp, create_perturb
from infofeat_jax.training.state import initial_state
from infofeat_jax.training.step import Statistics, gradients, make_step

KEY = jax.random.key(0)
PGD = partial(attacks.pgd, epsilon=8 / 255, step_size=2 / 255, num_steps=2, random_start=False)
BOTH = {"ema": {"decay": 0.2}, "awp": {"gamma": 0.3, "warmup_epochs": 1.0}}


def configured(count: int = 1, mode: str = "jit", **changes) -> experiments.Experiment:
    """Madry's training of a tiny network without randomness: two steps an epoch, strong weight decay."""
    one = create_experiment("madry", count, mode)
    config = one.config.copy_and_resolve_references()
    config.data.crop_padding, config.data.flip, config.optimizer.weight_decay = 0, False, 0.05
    config.update(changes)
    optimizer, schedule = experiments.create_optimizer(config, one.epoch_steps)
    method = one.method._replace(attack=PGD)
    return one._replace(config=config, optimizer=optimizer, schedule=schedule, method=method)


def naive_awp(experiment: experiments.Experiment, gamma: float, warmup: int, count: int):
    """(loss, parameters, statistics) after `count` steps of SGD, with AWP from step `warmup` on."""
    state = experiments.create_state(experiment)
    images = to_unit(jnp.asarray(experiment.data.train.images[:16]))
    labels = jnp.asarray(experiment.data.train.labels[:16])
    w, stats = flatten_dict(jax.device_get(state.params)), state.batch_stats
    velocity = {name: 0 * value for name, value in w.items()}

    @jax.jit
    def differentiated(frozen, at, stats):
        def tree(flat):
            return {module: {k[1]: v for k, v in flat.items() if k[0] == module} for module in {k[0] for k in flat}}

        x = PGD(partial(experiment.module.apply, {"params": tree(frozen), "batch_stats": stats}), KEY, images, labels)

        def loss(flat):
            variables = {"params": tree(flat), "batch_stats": stats}
            outputs, moved = experiment.module.apply(variables, x, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(outputs.logits)[jnp.arange(16), labels].mean(), moved["batch_stats"]

        return jax.value_and_grad(loss, has_aux=True)(at)

    for step in range(count):
        _, g = jax.device_get(differentiated(w, w, stats))
        kernels = [name for name in w if name[-1] == "kernel" and step >= warmup]
        d = {name: np.sqrt((w[name] ** 2).sum() / (g[name] ** 2).sum()) * g[name] for name in kernels}
        at = {name: w[name] + gamma * d.get(name, 0) for name in w}
        (value, stats), g = jax.device_get(differentiated(w, at, stats))
        velocity = {name: 0.9 * velocity[name] + g[name] + 0.05 * at[name] for name in w}
        w = {name: w[name] - 0.1 * velocity[name] for name in w}
    return value, w, stats


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5])
def test_awp_is_the_naive_one(warmup_epochs):
    """Two steps; the attack and BatchNorm's statistics see the live weights' passes only."""
    experiment = configured(awp={"gamma": 0.3, "warmup_epochs": warmup_epochs})
    after, values = steps(experiment, 2)
    value, params, stats = naive_awp(experiment, 0.3, round(2 * warmup_epochs), 2)
    np.testing.assert_allclose(values["loss"], value, rtol=1e-4)
    assert distance(params, flatten_dict(after.params)) < 1e-4
    assert distance(stats, after.batch_stats) < 1e-4
    assert distance(naive_awp(experiment, 0.0, 0, 2)[1], params) > 1e-2  # it matters by more than what is let pass


@pytest.mark.parametrize("mode", ["pmap", "accumulated"])
def test_each_part_of_a_batch_perturbs_the_weights_on_its_own(mode):
    """Of two equal halves: what one half alone gives."""
    one = configured(awp={"gamma": 0.3}, batch_size=8)
    images, labels = (array[:8] for array in one.data.train)
    half = one._replace(data=one.data._replace(train=data.Split(images, labels)))
    if mode == "pmap":
        other, both = configured(2, "pmap", awp={"gamma": 0.3}), (np.concatenate([x, x]) for x in (images, labels))
        other = other._replace(config=other.config.copy_and_resolve_references())
        other.config.parallel = "pmap"
    else:
        other, both = configured(awp={"gamma": 0.3}, accumulate_steps=2), (x.repeat(2, 0) for x in (images, labels))
    double = other._replace(data=other.data._replace(train=data.Split(*both)))
    (single, _), (pair, _) = steps(half, 1), steps(double, 1)
    assert distance(single.params, pair.params) < 1e-4


def test_the_average_is_the_naive_one_and_the_live_weights_are_left_alone():
    """Decays 1/10, 2/11 and the configuration's 0.2; the third would be 3/12."""
    experiment = configured(ema={"decay": 0.2})
    expected = jax.device_get(experiments.create_state(experiment).params)
    for count, decay in enumerate((0.1, 2 / 11, 0.2), start=1):
        live, _ = steps(configured(), count)
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, live.params)
    found, _ = steps(experiment, 3)
    assert distance(expected, found.average) < 1e-5
    assert distance(live.params, found.params) < 1e-5
    assert distance(found.params, found.average) > 1e-3
    assert found.evaluated == {"params": found.average, "batch_stats": found.batch_stats}
    assert found.variables == {"params": found.params, "batch_stats": found.batch_stats}
    assert live.average == ()


def test_eight_devices_compute_what_one_does():
    (one, one_values), (eight, eight_values) = (steps(configured(count, **BOTH)) for count in (1, 8))
    assert distance(one, eight) < 2e-3
    np.testing.assert_allclose(one_values["loss"], eight_values["loss"], rtol=1e-3)


def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """With an average, and within and after AWP's warm-up."""
    whole = jax.device_get(loop.train(in_directory(tmp_path / "whole", **BOTH)))
    assert distance(whole.params, whole.average) > 1e-4
    training = in_directory(tmp_path / "stopped", **BOTH)
    state, stops = train_in_pieces(training, monkeypatch)
    assert 4 <= stops < 9
    assert same(whole, state)
    assert same(whole, checkpoint.restore(training.workdir, "latest", training.like))


class EarlierState(NamedTuple):
    """A state as it was saved before there was an average."""

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree


def test_checkpoints_without_the_field_are_restored(tmp_path, monkeypatch):
    """As those of earlier versions; and earlier versions restore that of a run without an average."""
    training = in_directory(tmp_path)
    state = training.initial()
    earlier = EarlierState(*state[:4])
    monkeypatch.setattr(checkpoint, "_stored", lambda state: state)  # as it was then
    with checkpoint.opened(tmp_path) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(2, earlier, 0.5))
    monkeypatch.undo()
    assert same(jax.device_get(state), checkpoint.restore(tmp_path, "best", training.like))
    with checkpoint.opened(tmp_path) as checkpoints:
        assert same(jax.device_get(state), checkpoint.restore_newest(checkpoints, training.like))
        checkpoint.save(checkpoints, checkpoint.Snapshot(4, state, 0.6))
        checkpoint.finish(checkpoints)
        there = checkpoints.epochs.restore(4, args=ocp.args.StandardRestore(earlier))
    assert same(jax.device_get(state), there)


@pytest.mark.usefixtures("tiny_model")
@pytest.mark.parametrize("changes", [{"ema": {"decay": 0.9}}, {"swa": {"start_epoch": 0.5}}], ids=["ema", "swa"])
def test_validation_evaluation_and_conversion_take_the_average(tmp_path, changes):
    experiment = configured(num_epochs=2, **changes)
    experiment.config.model.name, experiment.config.eval.validation_attack = "tiny", "fgsm"
    experiment = experiment._replace(workdir=tmp_path)
    state = run.train(experiment)
    for found in (weights.load(tmp_path)[1], experiments.restore(experiment, "best").evaluated):
        statistics = state.average_stats or state.batch_stats
        assert same(jax.device_get({"params": state.average, "batch_stats": statistics}), found)
    images, labels = experiment.data.validation
    classes = np.arange(5) == labels[:, None]
    moved = state._replace(params=jax.tree.map(jnp.zeros_like, state.params))  # live weights that know nothing
    (validated,) = run.create_validations(experiment)["clean"](moved)
    logits = experiment.module.apply(state.evaluated, to_unit(jnp.asarray(images))).logits
    np.testing.assert_array_equal(validated[0][validated[1]], classes[np.arange(len(labels)), logits.argmax(-1)])


@pytest.mark.usefixtures("tiny_model")
def test_the_live_weights_have_the_outcomes_of_the_same_run_without_an_average(tmp_path):
    """An average changes nothing in training, so one run measures what two would."""
    outcomes, results = {}, {}
    for name, decay in (("averaged", 0.99), ("plain", 0.0)):
        experiment = configured(num_epochs=2, ema={"decay": decay})._replace(workdir=tmp_path / name)
        config = experiment.config
        config.model.name, config.eval.attacks, config.eval.checkpoint = "tiny", ("clean", "fgsm"), "latest"
        config.eval.live_weights, config.eval.probe_examples, config.eval.cam_images = decay > 0, 0, 0
        with run.own_directory(experiment.workdir):
            run.train(experiment)
            results[name] = run.evaluate_run(experiment)
        for path in experiment.workdir.glob("outcomes*.npz"):
            with np.load(path, allow_pickle=False) as arrays:
                outcomes[name, path.stem] = {key: arrays[key] for key in ("clean", "fgsm", "setting")}
    averaged, live, plain = (outcomes[key] for key in sorted(outcomes))
    assert same(live, plain)
    assert averaged["setting"] != plain["setting"]  # a digest of the weights is part of it
    for attack in ("clean", "fgsm"):
        assert results["averaged"]["live"][attack] == results["plain"][attack]


# Against recorded steps of the authors' code.


@pytest.fixture(scope="module")
def recorded():
    """golden/awp.npz of the whole golden set, where INFOFEAT_GOLDEN names its folder."""
    if not (folder := os.environ.get("INFOFEAT_GOLDEN")):
        pytest.skip("INFOFEAT_GOLDEN is not set")
    with np.load(Path(folder) / "awp.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("name", "method", "gamma"), [("at", "madry", 0.01), ("trades", "trades", 0.005)])
def test_awp_takes_the_steps_of_the_authors_code(recorded, name, method, gamma):
    """Two updates. TRADES' statistics differ on purpose: its passes are in the order of its own code, x first.

    What weight decay acts on is a difference of 1e-7 here, below the tolerance: the naive one above shows it.
    """
    module = models.create("resnet10", num_classes=10, width=16, mean=0.0, std=1.0)
    noise, given, labels = (jnp.asarray(recorded[name]) for name in ("noise", "images_u8", "labels"))
    variables = golden_attacks.network().args[0]
    method = methods.create(method, methods.Options(10, {}))
    method = method._replace(attack=lambda forward, key, images, labels: jnp.clip(images + noise, 0, 1))
    optimizer = optimizers.sgd(lambda step: 0.1, 0.9, 5e-4)
    state = initial_state(module, optimizer, jax.random.key(0), (32, 32, 3), variables)
    step = jax.jit(make_step(module, method, optimizer, awp=Awp(gamma)))
    shift = jax.jit(lambda state: gradients(
        module, method, state.params, state.variables, Statistics(state.batch_stats), KEY, to_unit(given), labels,
        perturb=create_perturb(Awp(gamma), state.step),
    ).shift)  # fmt: skip
    for number, tolerances in ((1, (1e-5, 2e-5)), (2, (1e-4, 1e-4))):
        part = f"{name}/step{number}"
        check_shift(recorded, part, recorded[f"{name}/diff_keys"], shift(state), gamma)
        state, values = step(state, (given, labels), jax.random.key(0))
        np.testing.assert_allclose(values["loss"], recorded[f"{part}/loss"], rtol=tolerances[0])
        found = in_torch(state.variables)
        for key in of(recorded, f"{part}/after/"):
            if name == "at" or "running" not in key:
                expected = recorded[f"{part}/after/{key}"]
                np.testing.assert_allclose(found[key], expected, atol=tolerances[1], rtol=0, err_msg=key)


def check_shift(recorded, part: str, keys, shift: PyTree, gamma: float) -> None:
    """The norms of all perturbed tensors, and the entries of four of them."""
    found = in_torch({"params": shift})
    assert {key for key, value in found.items() if np.any(value)} == set(keys)
    norms = [np.linalg.norm(found[key].astype(np.float64)) / gamma for key in keys]
    np.testing.assert_allclose(norms, recorded[f"{part}/diff_norms"], rtol=1e-4)
    for key in of(recorded, f"{part}/diff/"):
        expected = recorded[f"{part}/diff/{key}"]
        np.testing.assert_allclose(found[key] / gamma, expected, atol=1e-4 * abs(expected).max(), rtol=0, err_msg=key)


def in_torch(variables) -> dict[str, np.ndarray]:
    return names.to_state_dict({"batch_stats": {}, **variables})


def of(recorded, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in recorded if key.startswith(prefix)]
