"""Fast adaptive boundary attack (Croce & Hein, "Minimally distorted adversarial examples ...", 2020).

It searches for the nearest adversarial example by repeated projection onto the linearised decision boundary, and
succeeds where that is within epsilon. Constants and order are those of the authors' implementation.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks import hyperplane
from infofeat_jax.attacks import search as searches
from infofeat_jax.attacks.inputs import as_forward
from infofeat_jax.attacks.search import Counts, Keys, Logits, Search, select
from infofeat_jax.threat import Threat
from infofeat_jax.types import Budget, Forward, Images, Labels, PerExample, PRNGKey, check_count

MAX_ANCHOR = 0.1  # largest weight of the clean image's projection (alpha_max in the paper)
OVERSHOOT = 1.05
PULL_BACK = 0.9  # fraction of the perturbation kept after a success


class FabState(NamedTuple):
    """The iterate and the size of the smallest adversarial perturbation so far."""

    images: Images
    labels: Labels
    targets: Labels
    x: Images
    size: PerExample  # infinite before the first success
    adversarial: Images  # the clean image until one within epsilon is found
    success: Bool[Array, " b"]


def fab(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget, norm: str = "linf",
    targeted: bool = True, num_steps: int = 100, restarts: int = 1, num_targets: int = 9,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Images:  # fmt: skip
    """FAB towards the most likely wrong classes or, with `targeted=False`, the nearest one (Croce & Hein, 2020).

    Args:
      forward: a frozen model, images -> Outputs (or bare logits).
      images, labels: [b, h, w, c] float32 within `bounds`; [b] classes.
      epsilon: budget in the images' units; `norm` "linf", "l2" or "l1".
      targeted: one run for each of the `num_targets` most likely wrong classes (all of them if the model has
        fewer), on the examples not yet broken. Untargeted, each step costs a gradient for every class.
      restarts: runs for each target: the first starts at the clean image, the others at random points nearby.

    Returns a misclassified image within epsilon where one was found, else the image unchanged.
    Raises InvalidInput for invalid arguments.
    """
    options = {"targeted": targeted, "num_steps": num_steps, "restarts": restarts, "num_targets": num_targets}
    build = partial(fab_search, **options)
    return searches.attack(build, forward, key, images, labels, epsilon=epsilon, norm=norm, bounds=bounds)


def fab_search(
    threat: Threat, num_classes: int, *, targeted: bool = True, num_steps: int = 100, restarts: int = 1,
    num_targets: int = 9,
) -> Search:  # fmt: skip
    """FAB as a search; arguments as in `fab`."""
    num_steps, restarts = check_count("num_steps", num_steps), check_count("restarts", restarts, 1)
    num_targets = searches.target_count(num_targets, num_classes)
    num_attempts = restarts * (num_targets if targeted else 1)
    plane = targeted_plane if targeted else _nearest_plane(threat.norm)

    def start(keys: Keys, images: Images, labels: Labels, logits: Logits, attempt: Counts) -> FabState:
        targets = searches.ranked_class(logits, 2 + attempt // restarts) if targeted else labels
        radius = jnp.where(attempt % restarts > 0, threat.epsilon / 2, 0.0)
        return initial_state(images, labels, targets, _random_start(threat, keys, images, radius))

    def step(forward: Forward, keys: Keys, t: Counts, state: FabState) -> FabState:
        del keys, t
        forward = as_forward(forward)
        gap, normal = plane(forward, state)
        x = approach(threat, state.images, state.x, gap, normal)
        return _record(threat, state, x, objectives.misclassified(forward(x).logits, state.labels))

    gradients = 1 if targeted else num_classes
    return Search(start, step, num_steps, num_attempts, queries=2, gradients=gradients)


def initial_state(images: Images, labels: Labels, targets: Labels, start: Images) -> FabState:
    """The state before the first iteration, at the point `start`."""
    nothing = jnp.full(labels.shape, jnp.inf, images.dtype)
    return FabState(images, labels, targets, start, nothing, images, jnp.zeros(labels.shape, bool))


def approach(threat: Threat, images: Images, x: Images, gap: PerExample, normal: Images) -> Images:
    """Overshoots the mean of the projections of x and of the images onto the plane normal.(z - x) = gap."""
    flat = lambda a: a.reshape(a.shape[0], -1)  # noqa: E731
    normal = jnp.where(jnp.isfinite(normal), normal, 0.0)
    gap_clean = gap + (normal * (x - images)).sum((1, 2, 3))
    project = lambda z, g: hyperplane.displacement(  # noqa: E731
        threat.norm, flat(z), flat(normal), g, threat.bounds
    ).reshape(x.shape)
    from_x, from_clean = project(x, gap), project(images, gap_clean)
    near, far = (jnp.maximum(threats.size(threat.norm, d), 1e-8) for d in (from_x, from_clean))
    weight = threats.per_example(jnp.minimum(near / (near + far), MAX_ANCHOR), x)
    mean = (x + OVERSHOOT * from_x) * (1 - weight) + (images + OVERSHOOT * from_clean) * weight
    return jnp.clip(mean, *threat.bounds)


def targeted_plane(forward: Forward, state: FabState) -> tuple[PerExample, Images]:
    """(gap, normal) of z_target - z_label = 0, linearised at the iterate: normal.(z - x) = gap."""

    def difference(x: Images):
        logits = forward(x).logits
        values = objectives.label_logit(logits, state.targets) - objectives.label_logit(logits, state.labels)
        return values.sum(), values

    normal, values = jax.grad(difference, has_aux=True)(state.x)
    return -values, normal


def _nearest_plane(norm: str) -> Callable[[Forward, FabState], tuple[PerExample, Images]]:
    """As `targeted_plane`, for the class whose linearised boundary is nearest; one gradient per class."""
    dual = partial(threats.size, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm])

    def plane(forward: Forward, state: FabState) -> tuple[PerExample, Images]:
        logits, pull = jax.vjp(lambda x: forward(x).logits, state.x)
        one_hot = lambda classes: jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype)  # noqa: E731

        def visit(nearest, wrong_class):
            wrong = jnp.full(state.labels.shape, wrong_class)  # of its own dtype: 8-bit labels hold no class 300
            (normal,) = pull(one_hot(wrong) - one_hot(state.labels))
            gap = objectives.label_logit(logits, state.labels) - objectives.label_logit(logits, wrong)
            distance = jnp.where(wrong == state.labels, jnp.inf, jnp.abs(gap) / (dual(normal) + 1e-12))
            closer = distance < nearest[0]
            found = (distance, gap, normal)
            return tuple(select(closer, new, old) for new, old in zip(found, nearest, strict=True)), None

        nothing = (jnp.full_like(state.size, jnp.inf), jnp.zeros_like(state.size), jnp.zeros_like(state.x))
        (_, gap, normal), _ = jax.lax.scan(visit, nothing, jnp.arange(logits.shape[-1]))
        return gap, normal

    return plane


def _random_start(threat: Threat, keys: Keys, images: Images, radius: PerExample) -> Images:
    uniform = partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    noise = searches.draw(uniform if threat.norm == "linf" else jax.random.normal, keys, images.shape[1:])
    radius, length = (threats.per_example(r, noise) for r in (radius, threats.size(threat.norm, noise) + 1e-12))
    return jnp.clip(images + radius * noise / length, *threat.bounds)


def _record(threat: Threat, state: FabState, x: Images, fooled: Bool[Array, " b"]) -> FabState:
    size = threats.size(threat.norm, x - state.images)
    smaller = fooled & (size < state.size)
    within = smaller & (size <= threat.epsilon)
    return state._replace(
        x=select(fooled, state.images + PULL_BACK * (x - state.images), x),
        size=jnp.where(smaller, size, state.size),
        adversarial=select(within, threats.project(threat, state.images, x), state.adversarial),
        success=state.success | within,
    )
