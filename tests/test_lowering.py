"""Memory that runs out while an evaluation runs: it goes on in smaller batches, and nothing measured is lost."""

import pathlib

import jax
import jax.numpy as jnp
import linear_model
import numpy as np
import pytest
from jax.tree_util import Partial

import infofeat_jax
from infofeat_jax import threat as threats
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.autoattack import steps
from infofeat_jax.attacks.stages import plan_of
from infofeat_jax.data import Split
from infofeat_jax.evaluation import robustness, summaries
from infofeat_jax.evaluation.attack_names import Budget
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import devices, memory

FORWARD, IMAGES, LABELS, _ = linear_model.problem()
X, Y = np.asarray(IMAGES), np.asarray(LABELS)
EPSILON = 0.01


class Limited:
    """A forward that runs out of memory while it runs, with more than `most` images."""

    def __init__(self, most: int):
        self.most = most
        self.sizes = []

    def __call__(self, images):
        def allocate(images):
            self.sizes.append(len(images))
            if len(images) > self.most:
                raise MemoryError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")
            return np.float32(0)

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return FORWARD(images) + jax.pure_callback(allocate, shape, jax.lax.stop_gradient(images))


@pytest.fixture(autouse=True)
def one_device_without_probes(monkeypatch):
    """With several, an error in the callback of one leaves the others waiting."""
    mesh = devices.mesh(1)
    monkeypatch.setattr(devices, "mesh", lambda: mesh)
    monkeypatch.setattr(summaries, "probe", lambda subject: None)


def test_autoattack_goes_on_in_smaller_batches_where_it_was():
    """Memory shrinks in the second stage: the first is not attacked again, and the outcome is that with enough."""
    threat = threats.threat("linf", EPSILON)
    plan = plan_of({name: apgd_search(threat, 6, loss=name, num_steps=12) for name in ("ce", "dlr")})
    key = jax.random.key(0)
    *_, (_, whole) = steps(plan, FORWARD, key, X, Y)
    model, said, seen = Limited(24), [], []
    for progress, after in steps(plan, Partial(model), key, X, Y, say=lambda *line: said.append(line)):
        state = after
        seen.append((progress.stage, progress.survivors))
        if progress.stage == "dlr":
            model.most = 6
    assert max(model.sizes) == 24
    line = "memory ran out with batches of {} images: {} at a time from here on"
    assert said == [(line.format(24, 12), 12), (line.format(12, 6), 6)]
    stages = [stage for stage, _ in seen]
    assert stages == sorted(stages, key=["clean", "ce", "dlr"].index)
    assert [left for _, left in seen] == sorted((left for _, left in seen), reverse=True)
    np.testing.assert_array_equal(state.broken_by, whole.broken_by)
    np.testing.assert_allclose(state.adversarial, whole.adversarial, atol=1e-6)
    assert 0 < (state.broken_by == -1).sum() < len(Y)


def test_evaluate_lowers_its_batches_once_says_so_and_keeps_what_it_has(capsys, monkeypatch, tmp_path):
    measured = []
    in_batches = robustness.in_batches
    monkeypatch.setattr(
        robustness, "in_batches", lambda *a, done=0: measured.append((a[5], done)) or in_batches(*a, done=done)
    )
    model = Limited(72)
    images, labels = np.concatenate([X, X, X]), np.concatenate([Y, Y, Y])
    options = {"epsilon": EPSILON, "batch_size": 72, "directory": tmp_path}
    infofeat_jax.evaluate(model, images, labels, attacks=("clean",), **options)
    model.most = 32
    names = ("pgd3", "fgsm", "apgd-ce(num_steps=3)")
    found = infofeat_jax.evaluate(model, images, labels, attacks=names, **options)
    assert measured == [(72, 0), (72, 0), (36, 0), (18, 0), (18, 0)]
    plain = infofeat_jax.evaluate(FORWARD, images, labels, attacks=names, epsilon=EPSILON, progress=False)
    for name, outcome in plain.outcomes.items():
        assert np.abs(found.outcomes[name] ^ outcome).sum() <= (1 if name == "pgd3" else 0)  # from other starts
    assert found.notes == ("batches were lowered to 18 images, as memory ran out with more",)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "memory" in line] == [
        "pgd3: memory ran out with batches of 72 images: 36 at a time from here on",
        "pgd3: memory ran out with batches of 36 images: 18 at a time from here on",
    ]


@pytest.mark.parametrize(
    "message",
    ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: Error dispatching computation: Out of memory allocating 9 bytes."],
    ids=["accelerator", "CPU"],
)
def test_batches_that_are_done_are_not_computed_again(message):
    """Memory runs out in the third batch of four: the rest is done in halves, and each image once."""
    images = np.arange(14, dtype=np.uint8)[:, None, None, None]
    split, said = Split(images, np.zeros(14, np.int32)), []
    subject = Subject(
        Partial(len), split, 3, devices.mesh(), Budget("linf", 0.1, 0.1), pathlib.Path(), "", None, batch_size=4
    )

    def one_batch(forwards, key, batch):
        if batch[0].max() > 7 and len(batch[0]) > 2:
            raise jax.errors.JaxRuntimeError(message)
        return batch[0].ravel()

    tell = lambda line, batch_size: said.append(batch_size)  # noqa: E731
    parts = robustness.in_fitting_batches(one_batch, subject, (), jax.random.key(0), tell)
    # The second was handed over, but not fetched when the third failed.
    assert [part.tolist() for part in parts] == [[0, 1, 2, 3], *([row, row + 1] for row in range(4, 14, 2))]
    assert said == [2]


@pytest.mark.parametrize(("message", "size"), [("INVALID_ARGUMENT: no", 8), ("RESOURCE_EXHAUSTED: Out of memory", 1)])
def test_other_errors_and_single_images_that_do_not_fit_are_raised(message, size):
    def run(size):
        yield size
        raise jax.errors.JaxRuntimeError(message)

    with pytest.raises(jax.errors.JaxRuntimeError, match=message[:10]):
        list(memory.lowering(run, size, 1, lambda *line: None))
