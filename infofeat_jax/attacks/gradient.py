"""The paper's gradient-based attacks: functions `(forward, key, images, labels, *, epsilon, ...)` -> perturbed images.

Arguments that are not listed are those of `projected_ascent`: norm, random_start, start, clip_start,
restarts, keep, targeted (not of `kl`), bounds. Compile once by
`jax.jit(functools.partial(pgd, forward, epsilon=8 / 255))`.
"""

import jax

from infofeat_jax import objectives
from infofeat_jax import threat as threats
from infofeat_jax.attacks.projected import Start, check_untargeted, projected_ascent
from infofeat_jax.types import Budget, Forward, Images, InvalidInput, Labels, Objective, PRNGKey


def gaussian_start(key: PRNGKey, images: Images) -> Images:
    """Each image plus noise 0.001 * N(0, 1): the starting point of TRADES and MART."""
    return images + 0.001 * jax.random.normal(key, images.shape, images.dtype)


def uniform_start(key: PRNGKey, images: Images, *, norm: str, radius: Budget) -> Images:
    """Each image plus uniform noise in the ball of `radius`, which may be larger than an attack's epsilon."""
    return images + threats.per_example(radius, images) * threats.NORMS[norm].sample(key, images)


def fgsm(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    random_start: bool = False, step_size: Budget | None = None, targeted: bool = False, **options,
) -> Images:  # fmt: skip
    """Fast gradient sign method (Goodfellow et al., 2015): one step on cross-entropy.

    `step_size` is epsilon unless given (Wong et al., 2020, use 1.25 epsilon with a random start).

    >>> import jax.numpy as jnp
    >>> model = lambda images: jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], -1)  # light, dark
    >>> images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> fgsm(model, jax.random.key(0), images, labels, epsilon=0.25).ravel().round(2)
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    step_size = epsilon if step_size is None else step_size
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=1, targeted=targeted,
        random_start=random_start, objective=_directed(objectives.cross_entropy, targeted), **options,
    )  # fmt: skip


def pgd(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget = 2 / 255, num_steps: int = 20, targeted: bool = False, **options,
) -> Images:  # fmt: skip
    """Projected gradient descent (Madry et al., 2018): steps on cross-entropy from a random start.

    >>> import jax.numpy as jnp
    >>> model = lambda images: jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], -1)  # light, dark
    >>> images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> pgd(model, jax.random.key(0), images, labels, epsilon=0.25, step_size=0.1).ravel().round(2)
    Array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        targeted=targeted, objective=_directed(objectives.cross_entropy, targeted), **options,
    )  # fmt: skip


def cw(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget = 2 / 255, num_steps: int = 20, confidence: float = 50.0, targeted: bool = False,
    **options,
) -> Images:  # fmt: skip
    """PGD on Carlini & Wagner's (2017) margin loss: what the paper and related work report as "CW20".

    The loss saturates once a wrong class (`targeted`: the target) leads by `confidence`.
    """
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        targeted=targeted, objective=objectives.margin(confidence, targeted=targeted), **options,
    )  # fmt: skip


def kl(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget = 2 / 255, num_steps: int = 10, start: Start | None = gaussian_start,
    random_start: bool = True, clip_start: bool = False, **options,
) -> Images:  # fmt: skip
    """The inner maximisation of TRADES (Zhang et al., 2019): ascends KL(p_clean || p_perturbed).

    Starts at the image plus 0.001 * N(0, 1), unclipped, as the authors' code: at the image the gradient is zero, so
    that `random_start=False` is refused. `labels` say what counts as success where `keep` or `restarts` choose.
    """
    check_untargeted("kl", options)
    if not random_start:
        raise InvalidInput(
            "kl has no gradient at the image itself: leave `random_start` out; `start` says where it begins"
        )
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        objective=objectives.kl_divergence, start=start, clip_start=clip_start, **options,
    )  # fmt: skip


def infofeature(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget = 2 / 255, num_steps: int = 7, weight: float = 0.1, distance: str = "l2",
    classes: str = "all", targeted: bool = False, **options,
) -> Images:  # fmt: skip
    """InfoFeature (Yan & Yeung, Eq. 6 and 7): PGD on cross-entropy + weight * CAM distance.

    `distance` is "l2", "l1" or "cosine"; `classes` says whose maps are compared: "all" or the "label"'s.
    `forward` must return Outputs with `cam`.
    """
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        targeted=targeted, objective=objectives.infofeature(weight, distance, classes, targeted=targeted),
        **options,
    )  # fmt: skip


def _directed(objective: Objective, targeted: bool) -> Objective:
    return objectives.weighted_sum((-1.0, objective)) if targeted else objective
