"""The stages of AutoAttack's versions (Croce & Hein, 2020), and plans of stages that share their programs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from infofeat_jax.attacks import survivors
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.fab import fab_search
from infofeat_jax.attacks.inputs import as_forward, at_draw
from infofeat_jax.attacks.search import Search
from infofeat_jax.attacks.square import square_search
from infofeat_jax.attacks.survivors import Stage
from infofeat_jax.objectives import misclassified
from infofeat_jax.threat import Threat
from infofeat_jax.types import Forward, Images, InvalidInput, Labels, PRNGKey, check_choice

VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),  # for randomised models
    "quick": ("apgd-ce", "apgd-t"),  # not official: for development
}

# (threat, number of classes, (height, width), options of the search) -> Search. The number in a name counts restarts.
STAGES: dict[str, Callable[..., Search]] = {
    "apgd-ce": lambda threat, k, size, **options: apgd_search(threat, k, loss="ce", **options),
    "apgd-ce-5": lambda threat, k, size, **options: apgd_search(threat, k, loss="ce", **{"restarts": 5, **options}),
    "apgd-dlr": lambda threat, k, size, **options: apgd_search(threat, k, loss="dlr", **options),
    "apgd-dlr-5": lambda threat, k, size, **options: apgd_search(threat, k, loss="dlr", **{"restarts": 5, **options}),
    "apgd-t": lambda threat, k, size, **options: apgd_search(threat, k, loss="dlr_targeted", **options),
    "fab": lambda threat, k, size, **options: fab_search(threat, k, targeted=False, **options),
    "fab-5": lambda threat, k, size, **options: fab_search(threat, k, targeted=False, **{"restarts": 5, **options}),
    "fab-t": lambda threat, k, size, **options: fab_search(threat, k, **options),
    "square": lambda threat, k, size, **options: square_search(threat, size, **options),
}


# What the versions change, also in l1, where the others have the options of IN_L1.
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "rand": {name: {"eot": 20, "restarts": 1} for name in VERSIONS["rand"]},
    "quick": {"apgd-ce": {"restarts": 1}, "apgd-t": {"num_targets": 4}},
}
IN_L1 = {"apgd-ce": {"restarts": 5}, "apgd-t": {"num_targets": 5}}


class Plan(NamedTuple):
    """The stages in order, and what they share. Holds compiled programs, but no weights."""

    stages: tuple[Stage, ...]
    predict: Callable  # (forward, key, images, labels) -> (logits, misclassified), compiled


def plan(
    threat: Threat, num_classes: int, image_size: tuple[int, int], *, version: str = "standard",
    attacks: Sequence[str] | None = None, options: Mapping[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """Builds the stages of `version`, or those named in `attacks`, with `options` (such as num_steps) for each.

    Raises InvalidInput for unknown names.
    """
    check_choice("AutoAttack version", version, VERSIONS)
    if np.ndim(threat.epsilon):
        shape = list(np.shape(threat.epsilon))
        raise InvalidInput(f"epsilon is of shape {shape}: AutoAttack takes one number; attack each budget by itself")
    names = VERSIONS[version] if attacks is None else attacks
    for name in names:
        check_choice("AutoAttack stage", name, STAGES)
    if len(set(names)) < len(names):
        raise InvalidInput(f"attacks {', '.join(names)}: expected each at most once")
    changes = (IN_L1 if threat.norm == "l1" else {}, CHANGES.get(version, {}), {name: options or {} for name in names})
    own = {
        name: {option: value for change in changes for option, value in change.get(name, {}).items()} for name in names
    }
    return plan_of({name: STAGES[name](threat, num_classes, image_size, **own[name]) for name in names})


def plan_of(searches: Mapping[str, Search]) -> Plan:
    """A plan from any searches, in order."""
    stages = tuple(survivors.stage(name, search) for name, search in searches.items())
    # Partial: each plan gets its own jit, so that its compiled programs are freed with it.
    return Plan(stages, jax.jit(Partial(_predict)))


def _predict(forward: Forward, key: PRNGKey, images: Images, labels: Labels):
    logits = as_forward(at_draw(forward, key))(images).logits
    return logits, misclassified(logits, labels)
