"""The rates of the evaluation: clean, PGD20, and the stages of AutoAttack, on synthetic images."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial
from train_step import random_split

from accelerator_parts.steps import Network
from infofeat_jax import models
from infofeat_jax.attacks.autoattack import steps
from infofeat_jax.attacks.stages import Plan, plan
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import robustness
from infofeat_jax.evaluation.attack_names import Budget, create, parse
from infofeat_jax.runtime import devices
from infofeat_jax.threat import threat

BUDGET = Budget("linf", 8 / 255, 2 / 255)
TOO_SMALL = 1e-7  # a budget within which nothing is broken, so that every image takes every iteration


def network_and_weights(network: Network, dtype: str) -> tuple:
    """(module, variables, mesh), with random weights."""
    mesh = devices.mesh()
    module = models.create(network.model, num_classes=10, width=network.width, dtype=dtype)
    variables = jax.jit(module.init)(jax.random.key(1), np.zeros((1, 32, 32, 3), np.float32))
    return module, devices.replicate(mesh, variables), mesh


def evaluation(network: Network, dtype: str, batch_size: int, batches: int = 8) -> dict[str, Any]:
    """{attack: images a second and compile seconds}, from uint8 images on the host to outcomes on the host."""
    module, variables, mesh = network_and_weights(network, dtype)
    forwards, key, found = (Partial(module.apply, variables),), jax.random.key(2), {}
    for name in ("clean", "pgd20"):
        one_batch = robustness.compile_attack(create(parse(name), BUDGET), mesh)

        def run(count: int, one_batch=one_batch) -> float:
            split, began = random_split(count), time.perf_counter()
            list(robustness.in_batches(one_batch, mesh, forwards, key, split, batch_size))
            return time.perf_counter() - began

        first, images = run(batch_size), batches * batch_size
        seconds = run(images)
        compiling = max(first - seconds / batches, 0.0)
        found[name] = {"images_per_second": round(images / seconds, 2), "compile_seconds": round(compiling, 2)}
    return {"batch_size": batch_size, "dtype": dtype, **found}


def stages(network: Network, dtype: str, batch_size: int, iterations: int) -> dict[str, Any]:
    """{stage of AutoAttack: seconds to compile, and on an image that survives all its iterations}.

    Measured on one batch with `iterations` of each attempt, within a budget too small to break anything.
    """
    module, variables, _ = network_and_weights(network, dtype)
    forward = Partial(module.apply, variables)
    split = random_split(batch_size)
    images = np.asarray(to_unit(split.images))
    labels = np.asarray(jax.jit(lambda f, x: f(x).logits.argmax(-1))(forward, images), np.int32)
    whole = plan(threat("linf", TOO_SMALL), 10, images.shape[1:3])
    found = {}
    for stage in whole.stages:
        options = {"num_queries" if stage.name == "square" else "num_steps": iterations}
        few = plan(threat("linf", TOO_SMALL), 10, images.shape[1:3], attacks=(stage.name,), options=options)
        run = partial(time_plan, few, forward, images, labels, batch_size)
        (first, _), (second, taken) = run(), run()
        done = stage.search.num_attempts * stage.search.num_steps
        found[stage.name] = {
            "compile_seconds": round(first - second, 2), "seconds_per_survivor": round(second / taken * done, 5)
        }  # fmt: skip
    total = sum(stage["seconds_per_survivor"] for stage in found.values())
    return {"batch_size": batch_size, "dtype": dtype, "stages": found, "seconds_per_survivor": round(total, 5)}


def time_plan(stage: Plan, forward: Partial, images, labels, batch_size: int) -> tuple[float, float]:
    """(seconds, iterations times images)."""
    began = time.perf_counter()
    *_, (progress, _) = steps(stage, forward, jax.random.key(3), images, labels, batch_size=batch_size)
    search = stage.stages[0].search
    return time.perf_counter() - began, search.num_attempts * search.num_steps * progress.survivors
