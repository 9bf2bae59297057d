"""Cheap probes of a model, for `heuristics` to judge: its gradients, repeated passes, more effort, a large budget."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks.inputs import as_forward, prepare
from infofeat_jax.attacks.search import Scalar
from infofeat_jax.objectives import misclassified
from infofeat_jax.threat import Threat
from infofeat_jax.types import Forward, Images, Labels, Outputs, PerExample, PRNGKey, check_count, check_number

STEPS, MORE_STEPS, LARGE_STEPS, RESTARTS = 20, 100, 50, 4
SATURATED = 2.0**-24  # cross-entropy's gradient relative to the margin's once float32 rounds p_label to 1

Outcome = Bool[np.ndarray, " n"]


class Probes(NamedTuple):
    """The observations of `probe`, per example."""

    zero: Outcome  # correctly classified, but the margin's gradient is zero or non-finite
    saturated: Outcome  # the margin has a gradient, but the cross-entropy's is lost to rounding
    noise: Float[np.ndarray, " n"]  # how much the logits differ between two passes, relative to their size
    normalised: Outcome  # the outputs are probabilities
    correct: Mapping[str, Outcome]  # under "clean", "one step", "steps", "more steps", "restarts", "large budget"


def probe(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: float, step_size: float,
    norm: str = "linf", bounds: tuple[float, float] = (0.0, 1.0), batch_size: int = 32,
) -> Probes:  # fmt: skip
    """Probes a model on a handful of images: at most 240 gradients of each. Not for `jax.jit`.

    Args: as for `attacks.pgd`. The large budget is half the width of `bounds`, with which any image can turn grey.
      batch_size: images at a time, at most. A batch whose images are all fooled goes no further.

    Raises InvalidInput for invalid arguments.
    """
    _, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    step_size = check_number("step_size", step_size, unit=threats.UNIT)
    batch_size = check_count("batch_size", batch_size, 1)
    forward = forward if isinstance(forward, Partial) else Partial(forward)
    programs = jax.jit(_look), jax.jit(partial(_start, threat)), jax.jit(partial(_step, norm, bounds))
    images, labels, count = np.asarray(images), np.asarray(labels), len(labels)
    size = -(-count // -(-count // batch_size))  # of all batches, so that each program is compiled once
    found = []
    for start in range(0, count, size):
        rows = np.resize(np.arange(start, min(start + size, count)), size)
        some, classes = jax.device_put((images[rows], labels[rows]))
        found.append(_probe_batch(programs, forward, key, start, some, classes, threat, step_size))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *found)


def large_budget(threat: Threat, shape: tuple[int, ...]) -> float:
    """The distance of a black or white image [h, w, c] to grey, in the threat model's norm."""
    low, high = threat.bounds
    return (high - low) / 2 * math.prod(shape) ** {"linf": 0.0, "l2": 0.5, "l1": 1.0}[threat.norm]


def _probe_batch(
    programs: tuple[Callable, ...], forward: Partial, key: PRNGKey, index: int, images: Images, labels: Labels,
    threat: Threat, step_size: float,
) -> Probes:  # fmt: skip
    """`probe` of one batch, that from the image `index` on, by the compiled `_look`, `_start` and `_step`."""
    look, start, step = programs
    half = large_budget(threat, images.shape[1:])

    def run(epsilon: float, step_size: float, num_steps: int, x: Images, fooled: Outcome) -> tuple[Images, Outcome]:
        """(the last iterate, fooled before or by any iterate), by a loop on the host: it ends where all are fooled."""
        for done in range(num_steps + 1):
            if fooled.all():
                break
            moved, now = step(forward, images, labels, x, epsilon, step_size)
            x, fooled = moved if done < num_steps else x, fooled | np.asarray(now)
        return x, fooled

    wrong, zero, saturated, noise, normalised = map(np.asarray, look(forward, images, labels))
    _, one = run(threat.epsilon, threat.epsilon, 1, images, wrong)
    x, some = run(threat.epsilon, step_size, STEPS, start(key, index, 0, images), wrong)
    _, more = run(threat.epsilon, step_size, MORE_STEPS - STEPS, x, some)
    again = some
    for restart in range(RESTARTS):
        _, again = run(threat.epsilon, step_size, STEPS, start(key, index, 1 + restart, images), again)
    _, large = run(half, half / 10, LARGE_STEPS, images, wrong)
    fooled = {"clean": wrong, "one step": one, "steps": some, "more steps": more, "restarts": again}
    fooled["large budget"] = large
    return Probes(zero, saturated, noise, normalised, {name: ~values for name, values in fooled.items()})


def _look(forward: Forward, images: Images, labels: Labels) -> tuple[Array, ...]:
    """(misclassified, zero, saturated, noise, normalised), each [n]."""
    forward = as_forward(forward)
    logits, pull = jax.vjp(lambda x: forward(x).logits, images)

    def gradient_size(objective: Callable[[Float[Array, "b k"]], PerExample]) -> PerExample:
        (gradient,) = pull(jax.grad(lambda z: objective(z).sum())(logits))
        return jnp.abs(gradient).max((1, 2, 3))

    margin = gradient_size(lambda z: objectives.logit_margin(z, labels))
    entropy = gradient_size(lambda z: objectives.cross_entropy(Outputs(z), Outputs(z), labels))
    blind = ~(jnp.isfinite(margin) & (margin > 0))
    # Another position in the batch, and other neighbours: noise that the whole batch shares is detected too.
    rows = jnp.arange(len(labels)) // 2
    apart = jnp.abs(forward(images[rows]).logits - logits[rows]).max(1) / jnp.maximum(jnp.abs(logits).max(), 1e-6)
    normalised = (logits >= 0).all(1) & (jnp.abs(logits.sum(1) - 1) < 1e-3)
    wrong = misclassified(logits, labels)
    return wrong, blind & ~wrong, ~blind & (entropy <= SATURATED * margin) & ~wrong, apart, normalised


def _start(threat: Threat, key: PRNGKey, index: Scalar, run: Scalar, images: Images) -> Images:
    """A random start of a batch, in each of its runs another."""
    return threats.random_start(threat, jax.random.fold_in(jax.random.fold_in(key, index), run), images)


def _step(
    norm: str, bounds: tuple[float, float], forward: Forward, images: Images, labels: Labels, x: Images,
    epsilon: Float[Array, ""], step_size: Float[Array, ""],
) -> tuple[Images, Bool[Array, " b"]]:  # fmt: skip
    """(x after a step of PGD on cross-entropy, fooled by x). Compiled once for all budgets."""

    def total(x: Images):
        outputs = as_forward(forward)(x)
        return objectives.cross_entropy(outputs, outputs, labels).sum(), misclassified(outputs.logits, labels)

    gradient, fooled = jax.grad(total, has_aux=True)(x)
    return threats.ascend(threats.threat(norm, epsilon, bounds), images, x, gradient, step_size), fooled
