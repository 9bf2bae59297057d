"""The training step against a plain one written out, and what must hold for every method."""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax.traverse_util import flatten_dict

from infofeat_jax import attacks, data, methods, models
from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax.data import augment
from infofeat_jax.runtime import devices
from infofeat_jax.training import optimizers
from infofeat_jax.training.state import initial_state
from infofeat_jax.training.step import Gradients, Statistics, accumulated_gradients, gradients, make_step

METHODS = ("standard", "infofeature", "feature_scatter", "trades")


@cache
def create_experiment(method: str, count: int = 1, mode: str = "jit") -> experiments.Experiment:
    """An experiment on random images and the first `count` devices."""
    config = configs.default()
    config.method.name = method
    config.attack.num_steps = 2
    config.data.crop_padding = 1
    config.batch_size, config.eval.batch_size = 16, 32
    config.optimizer.milestones = (1.0, 2.0)
    config.parallel = mode
    images, labels = (np.asarray(part) for part in small.batch(32))
    split = data.Split((255 * images).astype(np.uint8), labels.astype(np.int32))
    dataset = data.Dataset(split, split, split, 5, "noise")
    experiment = experiments.create(configs.resolve(config), Path("."), dataset)
    mesh = jax.sharding.Mesh(jax.devices()[:count], (devices.AXIS,))
    return experiment._replace(module=small.TinyNet(), mesh=mesh)


def steps(experiment: experiments.Experiment, num_steps: int = 3):
    """(final state, metrics of the last step) after a few steps on the same batch."""
    step = experiments.compile_step(experiment)
    train = experiment.data.train
    batch = devices.shard(experiment.mesh, (train.images[:16], train.labels[:16]))
    state = experiments.create_state(experiment)
    for _ in range(num_steps):
        state, values = step(state, batch, jax.random.key(0))
    return jax.device_get(state), jax.device_get(values)


def distance(a, b) -> float:
    """The largest difference of two states, relative to the first one's largest entry per leaf."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(x - y).max() / (np.abs(x).max() + 1e-3)) for x, y in leaves)


@pytest.mark.parametrize(("method", "weight"), [("madry", 0.0), ("infofeature", 0.1)])
def test_a_step_is_the_plain_one(method, weight):
    """Augmentation, the attack with BatchNorm in evaluation mode, one SGD step with coupled decay: by hand."""
    experiment = create_experiment(method)
    state = jax.device_get(experiments.create_state(experiment))
    labels = jnp.asarray(experiment.data.train.labels[:16])
    images = jnp.asarray(experiment.data.train.images[:16], jnp.float32) / 255
    plain = jax.jit(partial(plain_step, experiment.module))
    value, params, moved = plain(state, images, labels, weight)
    after, values = steps(experiment, 1)
    np.testing.assert_allclose(values["loss"], value, rtol=1e-4)
    assert distance(jax.device_get(params), after.params) < 1e-3
    assert distance(jax.device_get(moved), after.batch_stats) < 1e-3
    assert after.step == 1
    other = plain(state, images, labels, 0.1 - weight)  # lambda matters by more than what is let pass
    assert distance(jax.device_get(other[1]), after.params) > 1e-2


def naive_cam(maps, kernel):
    """Eq. 6 term by term: [b, h, w, k]."""
    return jnp.maximum(maps[..., :, None] * kernel, 0).sum(-2)


def plain_step(module, state, images, labels, weight):
    """(loss, new parameters, new statistics), written out for the settings of create_experiment; weight: lambda."""
    augment_key, attack_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0))
    images = augment.crop_and_flip(augment_key, images, padding=1, flip=True)
    stats = state.batch_stats

    def cross_entropy(logits):
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels]

    def maps_and_logits(x):
        outputs = module.apply({"params": state.params, "batch_stats": stats}, x)
        return naive_cam(outputs.maps, state.params["linear"]["kernel"]), outputs.logits

    clean, _ = maps_and_logits(images)

    def attacked(x):
        cam, logits = maps_and_logits(x)
        return (cross_entropy(logits) + weight * jnp.sqrt(jnp.square(cam - clean).sum((1, 2, 3)))).sum()

    x = jnp.clip(images + jax.random.uniform(attack_key, images.shape, minval=-1, maxval=1) * 8 / 255, 0, 1)
    for _ in range(2):
        x = x + 2 / 255 * jnp.sign(jax.grad(attacked)(x))
        x = jnp.clip(x, images - 8 / 255, images + 8 / 255).clip(0, 1)

    def loss(params):
        variables = {"params": params, "batch_stats": stats}
        outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return cross_entropy(outputs.logits).mean(), moved["batch_stats"]

    (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    return value, jax.tree.map(lambda p, g: p - 0.1 * (g + 2e-4 * p), state.params, gradient), moved


def test_statistics_move_with_each_pass_of_the_loss():
    """TRADES without a perturbation: three passes over one batch."""
    module, (images, labels) = small.TinyNet(), small.batch(8)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    moved = {}
    for name in ("standard", "trades"):
        method = methods.create(name, methods.Options(5, {}))._replace(attack=None)
        given = variables["params"], variables, Statistics(variables["batch_stats"]), jax.random.key(0), images, labels
        found = jax.jit(partial(gradients, module, method))(*given).batch_stats.live["bn1"]
        moved[name] = found["mean"] - variables["batch_stats"]["bn1"]["mean"]
    np.testing.assert_allclose(moved["trades"], (1 + 0.9 + 0.81) * moved["standard"], rtol=1e-5, atol=1e-8)


def test_the_schedule_follows_the_states_own_counter():
    """A skipped batch advances state.step, and with it every later milestone."""
    schedule = optimizers.piecewise(1.0, (2.0,), 0.1, 2)
    optimizer = optimizers.sgd(schedule, momentum=0.0)
    module, (images, labels) = small.TinyNet(), small.batch(4)
    method = methods.create("standard", methods.Options(5, {}))
    state = initial_state(module, optimizer, jax.random.key(0), images.shape[1:])
    step = jax.jit(make_step(module, method, optimizer))
    batch = jnp.asarray(255 * images, jnp.uint8), labels
    moved = {}
    for start in (3, 4):  # the milestone's step is the fifth
        after, _ = step(state._replace(step=jnp.int32(start)), batch, jax.random.key(0))
        moved[start] = np.linalg.norm(after.params["linear"]["kernel"] - state.params["linear"]["kernel"])
        assert after.step == start + 1
    np.testing.assert_allclose(moved[4] / moved[3], 0.1, rtol=1e-4)


@pytest.mark.parametrize("reason", ["none", "gradient", "rate"])
def test_the_loss_is_nan_where_the_update_leaves_parameters_that_are_not_finite(reason):
    """The gradient of one example's logits is not a number, or the learning rate is infinite; the loss is finite."""

    @jax.custom_jvp
    def spoiled(logits):
        return logits

    @spoiled.defjvp
    def differentiate(primals, tangents):
        return primals[0], tangents[0].at[0].multiply(jnp.nan)

    def loss(train, batch):
        logits = train(batch.perturbed).logits
        logits = spoiled(logits) if reason == "gradient" else logits
        return optax.softmax_cross_entropy(logits, batch.targets), logits

    module, (images, labels) = small.TinyNet(), small.batch(4)
    method = methods.create("standard", methods.Options(5, {}))._replace(loss=loss)
    optimizer = optimizers.sgd(lambda step: jnp.inf if reason == "rate" else 0.1)
    state = initial_state(module, optimizer, jax.random.key(0), images.shape[1:])
    batch = jnp.asarray(255 * images, jnp.uint8), labels
    after, values = jax.jit(make_step(module, method, optimizer))(state, batch, jax.random.key(0))
    finite = [bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after.params)]
    assert all(finite) == (reason == "none")
    assert bool(jnp.isfinite(values["loss"])) == (reason == "none")


def test_milestones_that_fall_on_one_step_both_count():
    schedule = optimizers.piecewise(1.0, (1.0, 1.1), 0.1, 2)
    np.testing.assert_allclose([schedule(1), schedule(2)], [1.0, 0.01], rtol=1e-6)


def test_cosine_schedule_ends_at_zero():
    schedule = optimizers.create_schedule(
        "cosine", learning_rate=0.2, milestones=(), decay=0.1, steps_per_epoch=5, num_epochs=4
    )
    np.testing.assert_allclose([schedule(0), schedule(10), schedule(20)], [0.2, 0.1, 0.0], atol=1e-7)


def test_onecycle_is_pytorchs_and_cyclic_a_triangle():
    """Of 40 steps: cosine pieces from 1/25 up in 2.5 %, and down to 1/250,000; lines to half of them and back."""
    options = {"learning_rate": 0.2, "milestones": (), "decay": 0.1, "steps_per_epoch": 20, "num_epochs": 4}
    rates = [float(optimizers.create_schedule("onecycle", **options)(step)) for step in (0, 1, 2, 41, 80, 99)]
    down = (1 + np.cos(np.pi * 39 / 78)) / 2
    last = 1 / 25e4
    np.testing.assert_allclose(rates, 0.2 * np.array([0.04, 0.52, 1, last + (1 - last) * down, last, last]), rtol=1e-4)
    rates = [float(optimizers.create_schedule("cyclic", **options)(step)) for step in (0, 10, 40, 60, 80)]
    np.testing.assert_allclose(rates, 0.2 * np.array([0, 0.25, 1, 0.5, 0]), atol=1e-7)


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
@pytest.mark.parametrize("epochs", [0, 1])
def test_schedules_of_no_or_one_step_are_finite(name, epochs):
    options = {"learning_rate": 0.2, "milestones": (), "decay": 0.1, "steps_per_epoch": 1, "num_epochs": epochs}
    assert np.isfinite(optimizers.create_schedule(name, **options)(0))


# A step of rate 0.1 without a gradient, from a weight of 1 that decays by 0.5: Adam's is as long as any other.
DECAYED = {"sgd": -0.05, "adam": -0.1, "adamw": -0.05, "muon": -0.05}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_normalisation_can_be_left_out_of_the_decay(name):
    """Its scales and biases, not the biases of convolutions and linear layers."""
    variables = jax.device_get(small.network("preact_resnet18")[1]["params"])
    params = jax.tree.map(jnp.ones_like, {name: variables[name] for name in ("layer1_0", "linear")})
    zeros = jax.tree.map(jnp.zeros_like, params)
    for decay_norm in (False, True):
        optimizer = optimizers.create_optimizer(name, lambda _: 0.1, weight_decay=0.5, decay_norm=decay_norm)
        changes, _ = optimizer.update(zeros, optimizer.init(params), params)
        for path, change in flatten_dict(changes).items():
            decays = decay_norm or not path[-2].startswith("bn")
            np.testing.assert_allclose(change, DECAYED[name] if decays else 0.0, atol=1e-6, err_msg=str(path))


@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizers_by_name(nesterov):
    """One step from zero moments, by hand: SGD with momentum and decay, AdamW."""
    p, g = np.array([1.0, -2.0]), np.array([0.3, -0.1])
    options = {"momentum": 0.5, "weight_decay": 0.01, "nesterov": nesterov}
    found = {}
    for name in optimizers.OPTIMIZERS:
        optimizer = optimizers.create_optimizer(name, lambda step: 0.1, **options)
        changes, _ = optimizer.update(jnp.asarray(g), optimizer.init(jnp.asarray(p)), jnp.asarray(p))
        found[name] = p + np.asarray(changes)
    v = g + 0.01 * p
    np.testing.assert_allclose(found["sgd"], p - 0.1 * (v + 0.5 * v if nesterov else v), rtol=1e-5)
    if not nesterov:
        np.testing.assert_allclose(found["adamw"], p - 0.1 * (np.sign(g) + 0.01 * p), rtol=1e-4)
    with pytest.raises(methods.InvalidInput, match="unknown optimizer 'lion': choose one of adam, adamw, muon, sgd"):
        optimizers.create_optimizer("lion", lambda step: 0.1)
    with pytest.raises(methods.InvalidInput, match="choose one of cosine, cyclic, onecycle, piecewise"):
        optimizers.create_schedule("steps")


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizers_leave_weights_without_a_gradient_alone_unless_told_to_decay(name):
    weights = jnp.ones(3)
    for options, change in (({}, 0.0), ({"weight_decay": 0.5}, DECAYED[name])):
        optimizer = optimizers.create_optimizer(name, lambda step: 0.1, **options)
        update, _ = optimizer.update(jnp.zeros(3), optimizer.init(weights), weights)
        np.testing.assert_allclose(update, change, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_adamw_is_adam_with_decoupled_decay(nesterov):
    """Three steps by hand; with `nesterov` as NAdam (Dozat, 2016) without its schedule of momenta."""
    optimizer = optimizers.adamw(lambda step: 0.1, momentum=0.5, weight_decay=0.01, nesterov=nesterov)
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
    for t in (1, 2, 3):
        gradient = np.array([0.3, -0.1]) * (2 - t)
        m, v = 0.5 * m + 0.5 * gradient, 0.999 * v + 0.001 * gradient**2
        ahead = 0.5 * m / (1 - 0.5 ** (t + 1)) + 0.5 * gradient / (1 - 0.5**t)
        mean = ahead if nesterov else m / (1 - 0.5**t)
        p = p - 0.1 * (mean / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.01 * p)
        changes, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(params, p, rtol=1e-5)


def test_sgd_is_pytorchs():
    """v = m v + (g + wd p); p -= lr v, with the rate dropping at its milestones."""
    optimizer = optimizers.sgd(optimizers.piecewise(0.1, (1.0, 1.5), 0.1, 2), 0.9, 0.01)
    p, v = np.array([1.0, -2.0]), np.zeros(2)
    params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
    for step, rate in enumerate([0.1, 0.1, 0.01, 0.001]):
        gradient = np.array([0.3, 0.1]) * (step + 1)
        v = 0.9 * v + gradient + 0.01 * p
        p = p - rate * v
        changes, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(params, p, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_eight_devices_compute_what_one_does(method):
    """The default mode has the semantics of the whole batch: BatchNorm, coupled attacks, random numbers."""
    (one, one_values), (eight, eight_values) = (steps(create_experiment(method, n)) for n in (1, 8))
    assert distance(one, eight) < 2e-3  # three steps; a sign at a gradient near zero may differ
    np.testing.assert_allclose(one_values["loss"], eight_values["loss"], rtol=1e-3)


def test_pmap_mode_averages_over_devices():
    """On one device the same as jit up to the device's key; on several finite, and the state agrees everywhere."""
    after, values = steps(create_experiment("standard", 2, "pmap"))
    assert np.isfinite(values["loss"])
    # BatchNorm saw 8 images a device: close to, but not, the whole batch's result.
    whole, _ = steps(create_experiment("standard", 2))
    assert 1e-6 < distance(whole.batch_stats, after.batch_stats) < 0.5


def test_pmap_gradients_are_means_not_sums():
    """One step of standard training: the change of the linear layer's bias is of the same size in both modes."""
    bias = {}
    for mode in ("jit", "pmap"):
        after, _ = steps(create_experiment("standard", 8, mode), 1)
        bias[mode] = np.linalg.norm(after.params["linear"]["bias"])
    assert 0.7 < bias["pmap"] / bias["jit"] < 1.4


def without_randomness(experiment: experiments.Experiment, **changes) -> experiments.Experiment:
    """No augmentation, PGD without a random start: nothing depends on how keys are split."""
    config = experiment.config.copy_and_resolve_references()
    config.data.crop_padding, config.data.flip = 0, False
    config.update(changes)
    pgd = partial(attacks.pgd, epsilon=8 / 255, step_size=2 / 255, num_steps=2, random_start=False)
    return experiment._replace(config=config, method=experiment.method._replace(attack=pgd))


@pytest.mark.parametrize("count", [1, 8])
def test_accumulated_gradients_are_the_whole_batches(count):
    """Four parts in turn, on a network without BatchNorm: the same step to float tolerance."""
    plain = without_randomness(create_experiment("madry", count))
    plain = plain._replace(
        module=small.TinyNet(norm=False),
        data=plain.data._replace(train=data.Split(*(x.repeat(2, 0) for x in plain.data.train))),
    )
    parts = plain._replace(config=without_randomness(plain, accumulate_steps=4 if count == 1 else 2).config)
    (one, one_values), (four, four_values) = steps(plain), steps(parts)
    assert distance((one.params, one.opt_state), (four.params, four.opt_state)) < 1e-4
    np.testing.assert_allclose(one_values["loss"], four_values["loss"], rtol=1e-5)
    np.testing.assert_allclose(one_values["accuracy"], four_values["accuracy"])


def test_each_accumulated_part_has_a_key_and_every_fourth_example():
    def one_part(params, frozen, batch_stats, key, images, labels):
        noise = jax.random.uniform(key)
        moved = Statistics(batch_stats.live * 10 + labels[0] + labels[1] / 10)
        return Gradients(noise, moved, noise**2, images.sum() * noise)

    images, labels = jnp.ones((8, 2, 2, 3)), jnp.array([1, 2, 3, 4, 5, 6, 7, 8])
    found = accumulated_gradients(one_part, 4, {}, {}, Statistics(jnp.float32(0)), jax.random.key(0), images, labels)
    assert found.loss - found.params**2 > 1e-3  # the variance of what the parts draw
    np.testing.assert_allclose(found.accuracy, 24 * found.params, rtol=1e-5)
    np.testing.assert_allclose(found.batch_stats.live, 1234 + 567.8, rtol=1e-6)


def test_accumulated_gradients_are_summed_in_the_loop():
    """Not stacked: they take the memory of one part, and XLA can sum them over devices after the loop."""
    experiment = without_randomness(create_experiment("standard"), accumulate_steps=2)
    batch = tuple(array[:16] for array in experiment.data.train)
    step = experiments.compile_step(experiment)
    traced = jax.make_jaxpr(step)(experiments.create_state(experiment), batch, jax.random.key(0))
    (inside,) = (one.params["jaxpr"].jaxpr for one in traced.jaxpr.eqns if "jaxpr" in one.params)
    (loop,) = (one for one in inside.eqns if one.primitive.name == "scan")
    one_iterations = loop.params["jaxpr"].out_avals  # what is stacked has one axis more outside of the loop
    assert [one.aval.shape for one in loop.outvars] == [one.shape for one in one_iterations]


def test_accumulation_moves_the_statistics_with_each_part():
    """Of two equal halves: the gradient is the half's, and the running statistics move twice."""
    plain = without_randomness(create_experiment("madry"))
    images, labels = (array[:8] for array in plain.data.train)
    split = data.Split(images, labels)
    half = without_randomness(plain, batch_size=8)._replace(data=plain.data._replace(train=split))
    twice = data.Split(images.repeat(2, 0), labels.repeat(2, 0))  # parts take every other example
    double = without_randomness(plain, accumulate_steps=2)._replace(data=plain.data._replace(train=twice))
    (one, _), (two, _) = steps(half, 1), steps(double, 1)
    assert distance(one.params, two.params) < 1e-4
    start = jax.device_get(experiments.create_state(plain)).batch_stats["bn1"]["mean"]
    first, second = (after.batch_stats["bn1"]["mean"] for after in (one, two))
    np.testing.assert_allclose(second - first, 0.9 * (first - start), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"), [("wrn_10_1", {}), ("resnet18", {"blocks": (1, 1)}), ("preact_resnet18", {"blocks": (1, 1)})]
)
def test_rematerialised_blocks_compute_the_same(name, options):
    """The same parameters, gradients and statistics; what is kept for the backward pass is recomputed."""
    images, labels = small.batch(4)
    plain, remat = (models.create(name, num_classes=5, width=4, remat=remat, **options) for remat in (False, True))
    variables = jax.jit(plain.init)(jax.random.key(0), images)

    def loss(module, params):
        outputs, moved = module.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), moved

    results = []
    for module in (plain, remat):
        assert jax.tree.structure(jax.eval_shape(module.init, jax.random.key(0), images)) == jax.tree.structure(
            variables
        )
        gradient = jax.value_and_grad(partial(loss, module), has_aux=True)
        results.append(jax.device_get(jax.jit(gradient)(variables["params"])))
        assert ("remat" in str(jax.make_jaxpr(gradient)(variables["params"]))) == (module is remat)
        attack = jax.grad(lambda x, module=module: module.apply(variables, x).logits.sum())
        assert "remat" not in str(jax.make_jaxpr(attack)(images))  # it would recompute and save nothing
    assert distance(*results) < 1e-4


def test_the_schedule_steps_at_its_milestones():
    schedule = optimizers.piecewise(0.1, (60.0, 90.0), 0.1, 10)
    np.testing.assert_allclose([schedule(599), schedule(600), schedule(900)], [0.1, 0.01, 0.001], rtol=1e-5)


@pytest.mark.parametrize("milestones", [(90.0, 60.0), (0.0,), (float("nan"),), (float("inf"),)])
def test_milestones_are_checked(milestones):
    with pytest.raises(methods.InvalidInput, match="increasing epochs"):
        optimizers.piecewise(0.1, milestones, 0.1, 10)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_decay_is_checked(decay):
    with pytest.raises(methods.InvalidInput, match=r"optimizer\.decay = "):
        optimizers.piecewise(0.1, (60.0,), decay, 10)
