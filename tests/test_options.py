"""Options of every method: SWA, mixed images, the attack's ramp and statistics, optimizers; by hand, on devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_loop import in_directory, same, train_in_pieces
from test_recipes import KEY, PGD, configured
from test_step import distance, steps

from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax import methods
from infofeat_jax.data import mixing, to_unit
from infofeat_jax.methods import losses
from infofeat_jax.runtime import devices
from infofeat_jax.training import loop, optimizers
from infofeat_jax.training.step import PENALTY, Statistics, frozen_forward, gradients
from infofeat_jax.types import Outputs

IMAGES, LABELS = small.batch(8)


def states(experiment: experiments.Experiment, count: int) -> list:
    """The state before the first and after each of a few steps on the same batch, from one compiled program."""
    return [state for state, _ in stepped(experiment, count)]


def stepped(experiment: experiments.Experiment, count: int) -> list[tuple]:
    """The same with the metrics of each step; of the state before the first there are none."""
    step, state = experiments.compile_step(experiment), experiments.create_state(experiment)
    found = [(jax.device_get(state), {})]
    for _ in range(count):
        batch = devices.shard(experiment.mesh, tuple(part[:16] for part in experiment.data.train))
        state, metrics = step(state, batch, KEY)
        found.append(jax.device_get((state, metrics)))
    return found


def test_the_equal_average_and_its_statistics_are_the_naive_ones():
    """From the middle of the first epoch, of 2 steps, on: the weights after steps 1, 2 and 3 (from 0)."""
    experiment = configured(swa={"start_epoch": 0.5}, optimizer={"learning_rate": 1.0})
    found, live = states(experiment, 4), states(configured(optimizer={"learning_rate": 1.0}), 4)
    assert distance(live[4].params, found[4].params) < 1e-5  # training does not notice
    assert distance(live[1].params, found[1].average) < 1e-6  # before: a copy
    assert distance(live[1].batch_stats, found[1].average_stats) < 1e-6
    for count in (1, 2, 3):
        mean = jax.tree.map(lambda *w: sum(w) / len(w), *[state.params for state in live[2 : 2 + count]])
        assert distance(mean, found[1 + count].average) < 1e-5
    images, labels = to_unit(experiment.data.train.images[:16]), experiment.data.train.labels[:16]

    @jax.jit
    def passed(frozen, average, stats):
        x = PGD(partial(experiment.module.apply, frozen), KEY, jnp.asarray(images), jnp.asarray(labels))
        variables = {"params": average, "batch_stats": stats}
        return experiment.module.apply(variables, x, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    stats = live[2].batch_stats
    for before, after in ((2, 3), (3, 4)):
        stats = passed(live[before].variables, found[before].average, stats)
        assert distance(stats, found[after].average_stats) < 1e-4
    assert distance(live[4].batch_stats, stats) > 5e-4
    assert found[4].evaluated == {"params": found[4].average, "batch_stats": found[4].average_stats}


# Mixed images. Labels that number the images tell which two an image is made of.


@pytest.mark.parametrize("mix", [mixing.mixup, mixing.cutmix])
def test_images_are_mixed_as_their_labels_say(mix):
    numbers, shares = jnp.arange(8), []
    compiled = jax.jit(partial(mix, images=IMAGES, labels=numbers, alpha=1.0))
    for seed in range(40):
        images, mixed = compiled(jax.random.key(seed))
        share = float(mixed.share[0])
        assert sorted(mixed.labels.tolist()) == sorted(mixed.partners.tolist()) == list(range(8))
        assert (mixed.share == share).all()
        assert share >= 0.5
        larger, smaller = IMAGES[mixed.labels], IMAGES[mixed.partners]
        if mix is mixing.mixup:
            np.testing.assert_allclose(images, share * larger + (1 - share) * smaller, atol=1e-6)
        else:
            own, other = ((images == part).all(-1) for part in (larger, smaller))
            assert (own | other).all()
            differs = np.flatnonzero(mixed.labels != mixed.partners)
            np.testing.assert_allclose(own[differs].mean((1, 2)), share, atol=0.02)
        shares.append(share)
    if mix is mixing.mixup:
        assert 0.68 < np.mean(shares) < 0.82  # uniform in [0.5, 1]
    assert len(set(shares)) > 8


def test_a_cut_box_is_a_rectangle_of_the_area_asked_for():
    whole = [mixing.box(jax.random.key(seed), 16, 12, jnp.float32(0.25)) for seed in range(30)]
    for inside in map(np.asarray, whole):
        rows, columns = inside.any(1), inside.any(0)
        assert (inside == rows[:, None] & columns).all()
        assert np.ptp(np.flatnonzero(rows)) + 1 == rows.sum()
        assert rows.sum() <= 8
        assert columns.sum() <= 6
    assert max(int(inside.sum()) for inside in whole) == 8 * 6


def test_mixed_labels_reach_attack_loss_and_accuracy():
    """The attack takes the larger part's label, the loss both, smoothed."""
    module = small.TinyNet()
    variables = jax.jit(module.init)(KEY, IMAGES)
    method = methods.create("madry", methods.Options(5, {}, label_smoothing=0.2))._replace(attack=PGD)
    mixed = mixing.Mixed(LABELS, LABELS[::-1], jnp.full(8, 0.7))
    given = variables["params"], variables, Statistics(variables["batch_stats"]), KEY, IMAGES
    found = jax.jit(partial(gradients, module, method))(*given, mixed)
    x = jax.jit(lambda: PGD(partial(module.apply, variables), KEY, IMAGES, LABELS))()
    logits = module.apply(variables, x, train=True, mutable=["batch_stats"])[0].logits
    targets = np.full((8, 5), 0.05)
    for row, (label, partner) in enumerate(zip(LABELS, LABELS[::-1], strict=True)):
        targets[row, label] += 0.7 * 0.75
        targets[row, partner] += 0.3 * 0.75
    np.testing.assert_allclose(found.loss, -(targets * jax.nn.log_softmax(logits)).sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, (logits.argmax(1) == LABELS).mean())


# What the attack sees, and its ramp


def test_an_attack_on_batch_statistics_leaves_the_running_ones_alone():
    module = small.TinyNet()
    variables = jax.jit(module.init)(KEY, IMAGES)
    logits = frozen_forward(module, variables, "batch", KEY)(IMAGES).logits
    normalised = module.apply(variables, IMAGES, train=True, mutable=["batch_stats"])[0].logits
    np.testing.assert_allclose(logits, normalised, rtol=1e-5, atol=1e-6)
    assert distance(module.apply(variables, IMAGES).logits, logits) > 1e-2
    method, seen = methods.create("madry", methods.Options(5, {})), {}
    given = variables["params"], variables, Statistics(variables["batch_stats"]), KEY, IMAGES, LABELS
    for mode in ("running", "batch"):
        forward = frozen_forward(module, variables, mode, KEY)
        x = jax.jit(partial(PGD, forward))(KEY, IMAGES, LABELS)
        found = jax.jit(partial(gradients, module, method._replace(attack=PGD), batch_norm=mode))(*given)
        outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
        naive = -jax.nn.log_softmax(outputs.logits)[jnp.arange(8), LABELS].mean()
        np.testing.assert_allclose(found.loss, naive, rtol=1e-4)
        assert distance(moved["batch_stats"], found.batch_stats.live) < 1e-4
        seen[mode] = float(found.loss)
    assert abs(seen["batch"] - seen["running"]) > 1e-4


def test_the_budget_grows_over_the_first_epochs():
    """Two epochs of two steps: a quarter, a half, three quarters, all of it, and no more."""
    ramp = experiments.method_of_step(configured(attack={"ramp_epochs": 2.0, "num_steps": 3, "step_size": 8.0}))
    sizes = [
        float(jnp.abs(ramp(jnp.int32(step)).attack(small.forward(), KEY, IMAGES, LABELS) - IMAGES).max())
        for step in range(6)
    ]
    np.testing.assert_allclose(np.array(sizes) * 255, [2, 4, 6, 8, 8, 8], rtol=1e-4)
    assert isinstance(experiments.method_of_step(configured()), methods.Method)


# Single-step training


@pytest.mark.parametrize(
    ("method", "changes", "start", "size", "ball"),
    [
        ("madry", {"noise": 2.0}, 16, 8, np.inf), ("infofeature", {"noise": 2.0}, 16, 8, np.inf),
        ("madry", {"num_steps": 1, "step_size": 10.0}, 8, 10, 8), ("infofeature", {"noise": 0.5}, 4, 8, np.inf),
    ],
)  # fmt: skip
def test_a_single_step_from_noise_is_the_naive_one(method, changes, start, size, ball):
    """N-FGSM, with its k of 2 and another, and FGSM-RS; clipped to valid pixels before the step and after it."""
    config = configs.default()
    config.method.name = method
    config.attack.update(changes)
    config, forward = configs.resolve(config), small.forward()
    clean = forward(IMAGES)

    def objective(x):
        outputs = forward(x)
        entropy = -jax.nn.log_softmax(outputs.logits)[jnp.arange(8), LABELS].sum()
        apart = jnp.sqrt(jnp.square(outputs.cam - clean.cam).sum((1, 2, 3))).sum()
        return entropy + (0.1 * apart if method == "infofeature" else 0.0)

    noise = start / 255 * jax.random.uniform(KEY, IMAGES.shape, minval=-1.0)
    x = jnp.clip(IMAGES + noise, 0, 1)
    x = x + size / 255 * jnp.sign(jax.grad(objective)(x))
    naive = jnp.clip(x, IMAGES - ball / 255, IMAGES + ball / 255).clip(0, 1)
    found = experiments.create_method(config, 5).attack(forward, KEY, IMAGES, LABELS)
    np.testing.assert_allclose(found, naive, atol=1e-6)
    if start == 16:
        assert 20 / 255 < jnp.abs(found - IMAGES).max() <= 24.001 / 255


REPLAYS = {"attack": {"replays": 3, "num_steps": 1, "step_size": 6.0}, "ema": {"decay": 0.2}}


def test_free_training_is_the_naive_one():
    """Three updates in each of two steps: each moves the perturbation by the gradient that it has itself gone along."""
    experiment = configured(**REPLAYS)
    found, metrics = zip(*stepped(experiment, 2), strict=True)
    images, labels = jnp.asarray(to_unit(experiment.data.train.images[:16])), experiment.data.train.labels[:16]
    params, stats = found[0].params, found[0].batch_stats
    velocity, losses = jax.tree.map(jnp.zeros_like, params), []

    @jax.jit
    def differentiated(params, stats, x):
        def loss(params, x):
            outputs, moved = experiment.module.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return -jax.nn.log_softmax(outputs.logits)[jnp.arange(16), labels].mean(), moved["batch_stats"]

        (value, moved), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)
        return gradient, moved, value

    for step in range(2):
        attack_key = jax.random.split(jax.random.fold_in(KEY, step))[1]
        x = jnp.clip(images + 8 / 255 * jax.random.uniform(attack_key, images.shape, minval=-1.0), 0, 1)
        for _ in range(3):
            (g, to_images), stats, value = differentiated(params, stats, x)
            losses.append(value)
            velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 0.05 * p, velocity, g, params)
            params = jax.tree.map(lambda p, v: p - 0.1 * v, params, velocity)
            x = x + 6 / 255 * jnp.sign(to_images)
            x = jnp.clip(x, images - 8 / 255, images + 8 / 255).clip(0, 1)
    assert distance(params, found[2].params) < 1e-4
    assert distance(stats, found[2].batch_stats) < 1e-4
    np.testing.assert_allclose(metrics[1]["loss"], np.mean(losses[:3]), rtol=1e-4)
    average = found[0].params
    for state, decay in zip(found[1:], (0.1, 2 / 11), strict=True):  # moves once a step, after its updates
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
    assert distance(average, found[2].average) < 1e-5
    assert found[2].step == 2


def test_free_trades_ascends_the_loss_of_its_update():
    """Its images' gradient is that of all of the method's loss, by finite differences."""
    module, x = small.TinyNet(), IMAGES + 0.01
    variables = jax.jit(module.init)(KEY, IMAGES)
    method = methods.create("trades", methods.Options(5, {}))
    given = variables["params"], variables, Statistics(variables["batch_stats"]), KEY, IMAGES, LABELS

    @jax.jit
    def found(x):
        return gradients(module, method._replace(attack=lambda *_: x), *given, to_images=True)

    (slope,) = found(x).images
    ahead, behind = (found(x + h * jnp.sign(slope)).loss for h in (1e-2, -1e-2))
    np.testing.assert_allclose((ahead - behind) / 2e-2, jnp.abs(slope).sum(), rtol=0.01)


def test_grad_align_is_the_naive_penalty():
    """The loss; by finite differences along it, with the first gradient held, its gradient; statistics of one pass."""
    module = small.TinyNet()
    variables = jax.jit(module.init)(KEY, IMAGES)
    options = methods.Options(5, {"norm": "linf", "epsilon": 0.1}, grad_align=3.0)
    plain = methods.create("standard", options._replace(grad_align=None))
    given = variables["params"], variables, Statistics(variables["batch_stats"]), KEY, IMAGES, LABELS
    found, without = (
        jax.jit(partial(gradients, module, one))(*given) for one in (methods.create("standard", options), plain)
    )
    noisy = IMAGES + 0.1 * jax.random.uniform(jax.random.fold_in(KEY, PENALTY), IMAGES.shape, minval=-1.0)

    @jax.jit
    def by_image(params, x):
        def entropy(x):
            inputs = {"params": params, "batch_stats": variables["batch_stats"]}
            logits = module.apply(inputs, x, train=True, mutable=["batch_stats"])[0].logits
            return -jax.nn.log_softmax(logits)[jnp.arange(8), LABELS].sum()

        return jax.grad(entropy)(x).reshape(8, -1)

    def penalty(params, first):
        a, b = np.asarray(first, np.float64), np.asarray(by_image(params, noisy), np.float64)
        return 3 * np.mean(1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))

    params, first = variables["params"], by_image(variables["params"], IMAGES)
    assert penalty(params, first) > 0.01
    np.testing.assert_allclose(found.loss - without.loss, penalty(params, first), rtol=1e-3)
    assert distance(without.batch_stats, found.batch_stats) < 1e-6
    due = jax.tree.map(jnp.subtract, found.params, without.params)
    square = sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(due))
    ahead, behind = (jax.tree.map(lambda p, g, h=h: p + h * g, params, due) for h in (1e-2, -1e-2))
    np.testing.assert_allclose((penalty(ahead, first) - penalty(behind, first)) / 2e-2, square, rtol=0.05)


def test_grad_align_keeps_to_the_ball_beside_n_fgsm():
    """The attack of N-FGSM goes beyond epsilon; the noise of the penalty does not."""
    module, penalties = small.TinyNet(), []
    variables = jax.jit(module.init)(KEY, IMAGES)
    for noise in (0.0, 2.0):
        config = configs.for_method(configs.default(), "madry")
        config.attack.noise, config.method.grad_align = noise, 0.5
        method = experiments.create_method(configs.resolve(config), 5)
        penalties.append(method.penalty(partial(module.apply, variables), KEY, IMAGES, LABELS))
    np.testing.assert_array_equal(*penalties)
    assert penalties[0].any()


def test_grad_align_has_no_penalty_where_a_gradient_is_zero():
    penalty = losses.grad_align(1.0, "linf", 0.1)
    flat = lambda x: Outputs(0 * x.sum((1, 2, 3))[:, None] + jnp.arange(5.0))  # noqa: E731
    value, slope = jax.value_and_grad(lambda x: penalty(flat, KEY, x, LABELS).sum())(IMAGES)
    assert value == 0
    assert not slope.any()


# All together

TOGETHER = {
    "swa": {"start_epoch": 1.0}, "data": {"mixup": 1.0}, "optimizer": {"name": "muon", "nesterov": True},
    "awp": {"gamma": 0.1},
}  # fmt: skip
AGAIN = {
    "data": {"cutmix": 1.0},
    "method": {"grad_align": 0.2},
    "attack": {"batch_norm": "batch", "ramp_epochs": 1.5},
    "optimizer": {"name": "adam"},
}


@pytest.mark.parametrize("changes", [TOGETHER, AGAIN, REPLAYS], ids=["swa", "cutmix", "free"])
def test_eight_devices_compute_what_one_does(changes):
    one, eight = (steps(configured(count, **changes)) for count in (1, 8))
    assert distance(one[0].params, eight[0].params) < 2e-3
    assert distance(one[0].average_stats, eight[0].average_stats) < 2e-3 if one[0].average_stats else True
    np.testing.assert_allclose(one[1]["loss"], eight[1]["loss"], rtol=1e-3)


@pytest.mark.parametrize("changes", [TOGETHER, AGAIN], ids=["swa", "cutmix"])
def test_stopped_anywhere_it_goes_on_to_the_same_bits(tmp_path, monkeypatch, changes):
    whole = jax.device_get(loop.train(in_directory(tmp_path / "whole", trained="madry", **changes)))
    state, stops = train_in_pieces(in_directory(tmp_path / "stopped", trained="madry", **changes), monkeypatch)
    assert 4 <= stops < 9
    assert same(whole, state)


# Optimizers


def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adamw():
    """A step's singular vectors are the gradient's, and its singular values nearly equal."""
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": rng.normal(size=(3, 3, 2, 8))}, "linear": {"kernel": rng.normal(size=(4, 3))}}
    gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    optimizer = optimizers.muon(lambda step: 0.1)
    changes, _ = optimizer.update(gradient, optimizer.init(params), params)
    u, _, vt = np.linalg.svd(np.reshape(gradient["conv"]["kernel"], (18, 8)), full_matrices=False)
    along = u.T @ np.reshape(-changes["conv"]["kernel"] / 0.1, (18, 8)) @ vt.T
    assert (np.diag(along) > 0.6).all()
    assert (np.diag(along) < 1.3).all()
    np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=1e-3)
    other = optimizers.adamw(lambda step: 0.1)
    expected, _ = other.update(gradient, other.init(params), params)
    np.testing.assert_allclose(changes["linear"]["kernel"], expected["linear"]["kernel"], rtol=1e-5)


def test_muons_momentum_is_the_one_given():
    """Without it the second step knows nothing of the first gradient."""
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 3, 2, 8))}
    first, second = ({"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 8)))} for _ in range(2))
    along = []
    for momentum in (0.0, 0.9):
        optimizer = optimizers.muon(lambda step: 0.1, momentum=momentum)
        _, state = optimizer.update(first, optimizer.init(params), params)
        changes, _ = optimizer.update(second, state, params)
        u, _, vt = np.linalg.svd(np.reshape(second["kernel"], (18, 8)), full_matrices=False)
        turned = u.T @ np.reshape(-changes["kernel"] / 0.1, (18, 8)) @ vt.T
        along.append(np.abs(turned - np.diag(np.diag(turned))).max())
    assert along[0] < 1e-3
    assert along[1] > 0.1


@pytest.mark.parametrize(("mix", "most"), [(mixing.mixup, 0.75), (mixing.cutmix, 0.92)])
def test_alpha_shapes_the_shares(mix, most):
    """Beta(50, 50) is close to a half; of CutMix's box a part may lie outside."""
    images, y = jnp.zeros((2, 16, 16, 1)), jnp.arange(2)
    mix = jax.jit(partial(mix, alpha=50.0))
    shares = [float(mix(jax.random.key(seed), images, y)[1].share[0]) for seed in range(40)]
    assert max(shares) < most
    assert min(shares) >= 0.5


def test_adam_couples_its_decay_as_pytorchs():
    """Three steps by hand: the decay is part of the gradient, and so of both moments."""
    optimizer = optimizers.adam(lambda step: 0.1, momentum=0.5, weight_decay=0.1)
    p, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
    for t in (1, 2, 3):
        gradient = np.array([0.3, -0.1]) * (2 - t)
        g = gradient + 0.1 * p
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
        p = p - 0.1 * m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        changes, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = params + changes
    np.testing.assert_allclose(params, p, rtol=1e-5)
