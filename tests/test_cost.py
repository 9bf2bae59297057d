"""What a training step costs, counted in the compiled program: no clock is read."""

import re
from functools import cache

import hlo
import hlo_cost
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from test_step import create_experiment

from infofeat_jax import experiment as experiments
from infofeat_jax import models, run
from infofeat_jax.runtime import devices
from infofeat_jax.training import loop
from infofeat_jax.training.state import state_shapes

SHAPE = (8, 16, 16, 3)
MODELS = {"resnet10": 8, "wrn_10_1": 16}  # name: width
# The suite's own choice, for those jaxlibs that have it: conftest.py.
AS_USERS_DO = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}


@cache
def lowered(method: str, model: str = "resnet10"):
    """One step of `method`, attack in a loop, on one device."""
    experiment = create_experiment(method)._replace(module=models.create(model, num_classes=5, width=MODELS[model]))
    images, labels = small.batch(SHAPE[0], SHAPE[1])
    batch = np.asarray(255 * images, np.uint8), np.asarray(labels)
    state = state_shapes(experiment.module, experiment.optimizer, SHAPE[1:])
    return experiments.compile_step(experiment).lower(state, batch, jax.random.key(0))


@cache
def compiled(method: str, model: str = "resnet10"):
    return lowered(method, model).compile()


def forward_flops(model: str) -> float:
    module, images = models.create(model, num_classes=5, width=MODELS[model]), jnp.zeros(SHAPE)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.jit(lambda v, x: module.apply(v, x).logits).lower(variables, images).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_computed_twice(model):
    """In forward passes (XLA counts a loop's body once): to learn takes 3, an attack's step 2, a clean map 1.

    The gradient of the parameters in the attack would be a third pass a step; the clean map in its loop, too.
    """
    forward = forward_flops(model)
    passes = [
        compiled(method, model).cost_analysis()["flops"] / forward for method in ("standard", "madry", "infofeature")
    ]
    np.testing.assert_allclose(passes[0], 3, atol=0.25)
    np.testing.assert_allclose(np.diff(passes), [2, 1], atol=0.1)


def test_convolutions_in_the_attack_are_the_fast_ones():
    """XLA:CPU is slow where a loop has kernels reversed or their channels exchanged (convolution/__init__.py)."""
    convolutions = in_loops(compiled("infofeature").as_text(), "convolution")
    assert len(convolutions) >= 2 * 8  # forward and to the input, of those above 2 x 2 pixels
    assert {re.search(r"dim_labels=([\w>-]+)", one.attributes)[1] for one in convolutions} == {"b01f_01io->b01f"}
    assert not any("rhs_reversal" in one.attributes for one in convolutions)


def test_activations_are_not_computed_again_where_they_are_transposed():
    """For the kernels' gradients; in one fusion with a transpose they would be, number by number."""
    parts = lowered("standard").compile(AS_USERS_DO).as_text().split("\n\n")
    transposing = [part for part in parts if re.search(r"\} (transpose|copy)\(.*(\n *ROOT .* bitcast.*)?\n}", part)]
    assert len(transposing) > 8  # a kernel each
    assert not [part for part in transposing if name(part).startswith("fused") and " maximum(" in part]


def test_nothing_is_reduced_between_devices_inside_the_attack():
    """All communication stays outside the attack's loop."""
    experiment = create_experiment("infofeature", 8)
    train, state = experiment.data.train, experiments.create_state(experiment)
    batch = devices.shard(experiment.mesh, (train.images[:16], train.labels[:16]))
    text = experiments.compile_step(experiment).lower(state, batch, jax.random.key(0)).compile().as_text()
    assert in_loops(text, "dot")  # the small network's convolution, of few inputs
    found = hlo_cost.cost(hlo.parse(text))
    assert found.collectives == 3  # BatchNorm's two sums, those of its gradient, and everything else's gradient
    assert found.looped_collectives == 0


def test_each_program_is_compiled_once(tmp_path):
    """In the first epoch; later ones, and a later validation, use the same programs."""
    experiment = create_experiment("madry")
    config = experiment.config.copy_and_resolve_references()
    config.num_epochs, config.eval.validation_attack, config.eval.batch_size = 3, "pgd2", 32
    epochs, compilations = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **more: compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
    finish = loop.finish_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "finish_epoch", lambda *args: (finish(*args), epochs.append(len(compilations))))
        loop.train(run.create_training(experiment._replace(config=config, workdir=tmp_path)))
    assert epochs[0] > 0
    assert epochs[0] == epochs[1] == epochs[2]


def in_loops(text: str, opcode: str) -> list[hlo.Instruction]:
    """The instructions of this kind that loops carry out."""
    program = hlo.parse(text)
    looped = (part for run in hlo.runs(program) if run.looped for part in hlo.inside(program, run))
    return [one for one, _ in looped if one.opcode == opcode]


def name(computation: str) -> str:
    match = re.match(r"\s*(?:ENTRY )?%([\w.-]+)", computation)
    return match[1] if match else ""
