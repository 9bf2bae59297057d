"""Batch-coupled one-step attacks: the perturbation of an image depends on the rest of the batch.

Under jit with sharded arrays the batch is the global one, on any number of devices. Arguments that are not
listed are those of `projected_ascent`. Both attacks are unsupervised: `labels` say what counts as success where `keep`
or `restarts` choose, no more.
"""

from infofeat_jax import sinkhorn
from infofeat_jax.attacks.projected import check_untargeted, projected_ascent
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    Objective,
    Outputs,
    PerExample,
    PRNGKey,
    check_choice,
)


def feature_scatter(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget | None = None, num_steps: int = 1, clip_start: bool = False, space: str = "logits",
    **options,
) -> Images:  # fmt: skip
    """Feature Scattering (Zhang & Wang, 2019): ascends the optimal transport cost from the clean to the attacked batch.

    One step of size epsilon (unless `step_size` is given) from a uniform random start that may leave the box, then
    projection. `space`: what is transported, "logits" as in the authors' code, which gave the published results, or
    "features" as in their paper, which `forward` must then return.
    """
    check_untargeted("feature_scatter", options)
    step_size = epsilon if step_size is None else step_size
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        objective=transport_cost(space), clip_start=clip_start, **options,
    )  # fmt: skip


def adversarial_interpolation(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget,
    step_size: Budget | None = None, num_steps: int = 1, clip_start: bool = False, **options,
) -> Images:  # fmt: skip
    """Adversarial Interpolation (Zhang & Xu, 2020): moves towards the features of the partner, image b - 1 - i.

    One step of size epsilon (unless `step_size` is given) from a uniform random start that may leave the box, then
    projection. In a batch of odd size the middle image is its own partner. `forward` must return features.
    """
    check_untargeted("adversarial_interpolation", options)
    step_size = epsilon if step_size is None else step_size
    return projected_ascent(
        forward, key, images, labels, epsilon=epsilon, step_size=step_size, num_steps=num_steps,
        objective=partner_similarity, clip_start=clip_start, **options,
    )  # fmt: skip


def transport_cost(space: str = "logits") -> Objective:
    """sum_i T_ij C_ij: each perturbed example's share of the transport cost, also differentiated through the plan T.

    `space`: "logits" or "features". Raises InvalidInput for another.
    """
    check_choice("space", space, ("logits", "features"))

    def objective(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
        del labels
        cost = sinkhorn.cosine_cost(_read(clean, space), _read(perturbed, space))
        return (sinkhorn.sinkhorn(cost).plan * cost).sum(0)

    return objective


def partner_similarity(perturbed: Outputs, clean: Outputs, labels: Labels) -> PerExample:
    """-max(0, 1 - cos(f(x_i), f(x_{b-1-i}))), with features f."""
    del labels
    return -sinkhorn.cosine_distance(_read(perturbed, "features"), _read(clean, "features")[::-1])


def _read(outputs: Outputs, name: str):
    values = getattr(outputs, name)
    if values is None:
        raise InvalidInput(
            f"the forward function returned no {name}: return types.Outputs with `{name}` set,"
            " or use an attack on logits such as pgd"
        )
    return values
