"""Evaluators of one's own, package.module:name: a value for each test image, beside the attacks."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from infofeat_jax import parts, streams
from infofeat_jax.attacks.inputs import as_forward
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.robustness import in_fitting_batches
from infofeat_jax.evaluation.subject import Subject, Tell
from infofeat_jax.runtime import devices
from infofeat_jax.types import Forward, Images, InvalidInput, Labels, PRNGKey, summary

FIELD = "config.eval.evaluators"
Evaluator = Callable[[Forward, PRNGKey, Images, Labels], Float[jax.Array, " b"]]


def parse(name: str) -> attack_names.AttackSpec:
    """Parses package.module:name(OPTION=VALUE, ...); nothing is imported. Raises InvalidInput."""
    with suppress(InvalidInput):  # which speaks of attacks
        spec = attack_names.parse(name)
        if parts.is_own(spec.attack) and not spec.source:
            return spec
    raise InvalidInput(f"{FIELD}: {name!r}: expected package.module:name, or package.module:name(OPTION=VALUE)")


def create(name: str) -> Evaluator:
    """The function of that name, with its options; booleans become 1 and 0. Raises InvalidInput."""
    spec = parse(name)
    options = attack_names.in_images_units(spec)
    function = parts.find(FIELD, spec.attack)
    parts.check_call(FIELD, spec.attack, function, None, None, None, None, **options)

    def evaluator(forward, key, images, labels):
        values = function(as_forward(forward), key, images, labels, **options)
        if getattr(values, "shape", None) != labels.shape:
            shape = getattr(values, "shape", type(values).__name__)
            raise InvalidInput(f"it returned {shape}: expected a value for each image, {labels.shape}")
        return values.astype(jnp.float32)

    return evaluator


def check(name: str, forward: Forward, shape: tuple[int, ...]) -> None:
    """Raises InvalidInput if the evaluator fails on this model: it is traced for two images [h, w, c], not computed."""
    evaluator, key = create(name), jax.random.key(0)
    try:
        jax.eval_shape(partial(evaluator, forward), key, jnp.zeros((2, *shape)), jnp.zeros(2, jnp.int32))
    except Exception as error:  # a user's code raises anything
        text = str(error) if isinstance(error, InvalidInput) else summary(error)
        raise InvalidInput(f"{FIELD}: {name!r} failed: {text}") from error


def measure(subject: Subject, name: str, tell: Tell) -> Float[np.ndarray, " n"]:
    """The values of the evaluator `name`."""
    evaluator = create(name)

    def one_batch(forward, key, batch):
        return evaluator(forward, key, to_unit(batch[0]), batch[1])

    one_batch, key = devices.parallelize_batch(one_batch, subject.mesh), streams.key(subject.seed, "evaluation")
    return np.concatenate(list(in_fitting_batches(one_batch, subject, subject.forward, key, tell)))
