"""AutoAttack (Croce & Hein, "Reliable evaluation of adversarial robustness ...", 2020).

Each stage attacks the examples that survived the earlier ones. `autoattack` does it all in one call. An evaluator that
has to resume after an interruption builds a `plan` and iterates over `steps`, which yields a `ResumeState` after every
batch: save it, and pass it back to resume. A resumed run equals an uninterrupted one.

A plan compiles one program with the network's gradient for each stage and bucket size that occurs (see
`survivors`). If `forward` closes over its weights, they are compiled in as constants. As
`jax.tree_util.Partial(module.apply, variables)` they are arguments: new weights need no recompilation.

Device memory for each example of a batch, besides the weights: that of the network's input gradient plus 10 to 40 %,
and twice the state (APGD's: 6 copies of the image). XLA's own account on the CPU, for 32x32 images in batches of 64,
without the state: 0.6 MB (ResNet-10 of width 16), 4.3 MB (ResNet-18), 13 MB (WRN-28-10, APGD alone). Host memory: two
copies of all images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from infofeat_jax.attacks import survivors
from infofeat_jax.attacks.apgd import apgd_search
from infofeat_jax.attacks.fab import fab_search
from infofeat_jax.attacks.inputs import as_forward, num_classes, prepare
from infofeat_jax.attacks.search import Search
from infofeat_jax.attacks.square import square_search
from infofeat_jax.attacks.survivors import Batch, Found, Stage
from infofeat_jax.objectives import misclassified
from infofeat_jax.threat import Threat
from infofeat_jax.types import Budget, Forward, Images, InvalidInput, Labels, PRNGKey, check_choice, check_count

ROBUST = -1  # in ResumeState.broken_by

# No "rand": the official one averages over a randomised model; a forward here is a pure function of the images.
VERSIONS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce-5", "apgd-dlr-5", "fab-5", "square", "apgd-t", "fab-t"),
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


# What the official versions change in l1.
IN_L1 = {"apgd-ce": {"restarts": 5}, "apgd-t": {"num_targets": 5}}


class Plan(NamedTuple):
    """The stages in order, and what they share. Holds compiled programs, but no weights."""

    stages: tuple[Stage, ...]
    predict: Callable  # (forward, images, labels) -> (logits, misclassified), compiled


class ResumeState(NamedTuple):
    """The progress of an evaluation, as plain numbers and NumPy arrays: all that is needed to resume it."""

    stage: int  # 0: the clean predictions; i: the plan's i-th stage
    cursor: int  # the examples before it are done in this stage
    broken_by: np.ndarray  # [n] int: the stage that broke the example; 0: misclassified when clean; ROBUST: unbroken
    adversarial: np.ndarray  # [n, h, w, c] unchanged where nothing was found
    queries: int  # forward passes so far, summed over examples


class Progress(NamedTuple):
    """A progress report, after each batch of each stage."""

    stage: str  # "clean" or the stage's name
    survivors: int
    examples: int
    queries: int
    done: float  # fraction of all queries in [0, 1], assuming that no further example is broken


def autoattack(
    forward: Forward, key: PRNGKey, images: Images, labels: Labels, *, epsilon: Budget, norm: str = "linf",
    version: str = "standard", attacks: Sequence[str] | None = None, batch_size: int = 250,
    bounds: tuple[float, float] = (0.0, 1.0), on_progress: Callable[[Progress], None] | None = None,
) -> Images:  # fmt: skip
    """AutoAttack on any number of images (Croce & Hein, 2020). The loop runs on the host: not for `jax.jit`.

    Args:
      forward: a frozen model, images -> Outputs (or bare logits).
      key: PRNG key; the result depends on it, the data and the settings alone.
      images, labels: [n, h, w, c] float32 within `bounds`; [n] classes.
      epsilon: budget in the images' units; `norm` "linf", "l2" or "l1".
      version: "standard", or "plus" (restarts, untargeted FAB and DLR too).
      attacks: names from `STAGES`, in order, in place of a version's.
      batch_size: maximum number of examples attacked at once; see the module's docstring for the memory it takes.
      on_progress: called after each batch of each stage.

    Returns misclassified images where they were found; the others are returned unchanged, as are those that are
    already misclassified. A NaN among the logits counts as misclassified. There are at most as many targets as wrong
    classes; with fewer than four classes DLR falls back as described in `objectives`. Raises InvalidInput.
    """
    if any(isinstance(value, jax.core.Tracer) for value in (key, images, labels, epsilon)):
        raise InvalidInput("autoattack's loop runs on the host: call it outside of jit, vmap, scan and the like")
    _, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    if not images.size:  # not every model takes an empty batch
        return images
    count = num_classes(forward, images[:1])
    the_plan = plan(threat, count, images.shape[1:3], version=version, attacks=attacks)
    inputs = np.asarray(images), np.asarray(labels)
    for progress, state in steps(the_plan, forward, key, *inputs, batch_size=batch_size):
        adversarial = state.adversarial
        if on_progress is not None:
            on_progress(progress)
    return jnp.asarray(adversarial)


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
    own = IN_L1 if threat.norm == "l1" else {}
    return plan_of(
        {
            name: STAGES[name](threat, num_classes, image_size, **own.get(name, {}) | dict(options or {}))
            for name in names
        }
    )


def plan_of(searches: Mapping[str, Search]) -> Plan:
    """A plan from any searches, in order."""
    stages = tuple(survivors.stage(name, search) for name, search in searches.items())
    # Partial: each plan gets its own jit, so that its compiled programs are freed with it.
    return Plan(stages, jax.jit(Partial(_predict)))


def steps(
    plan: Plan, forward: Forward, key: PRNGKey, images: np.ndarray, labels: np.ndarray, *,
    batch_size: int = 250, state: ResumeState | None = None, place: Callable = jnp.asarray,
) -> Iterator[tuple[Progress, ResumeState]]:  # fmt: skip
    """Yields progress and resume state after each batch of each stage, starting from `state`.

    Images are not checked; see `autoattack`. `place` turns a host array [b, ...] into a device array, for example a
    sharded one. The sizes b are multiples of 8, except for `batch_size` itself.
    """
    batch_size = check_count("batch_size", batch_size, 1)
    if state is None:
        state = ResumeState(0, 0, np.full(len(labels), ROBUST, np.int32), np.array(images, np.float32), 0)
    forward = forward if isinstance(forward, Partial) else Partial(forward)
    for index in range(state.stage, len(plan.stages) + 1):
        while (rows := _pending(state)[:batch_size]).size:
            inputs = np.asarray(images[rows], np.float32), np.asarray(labels[rows], np.int32)
            sizes = survivors.bucket_sizes(batch_size, len(rows))
            batch = Batch(forward, *inputs, np.empty(0), sizes, place)
            batch_key = jax.random.fold_in(jax.random.fold_in(key, index), int(rows[0]))
            state = _settle(state, rows, _attack(plan, index, batch_key, batch))
            yield _progress(plan, state), state
        state = state._replace(stage=index + 1, cursor=0)


def _pending(state: ResumeState) -> np.ndarray:
    rows = np.flatnonzero(state.broken_by == ROBUST)
    return rows[rows >= state.cursor]


def _attack(plan: Plan, index: int, key: PRNGKey, batch: Batch) -> Found:
    """Runs one stage on one batch. Whatever it reports as broken is confirmed by a separate forward pass."""
    count = len(batch.labels)
    logits, wrong = _predictions(plan, batch, batch.images)
    if index == 0:
        return Found(batch.images, wrong, count)
    found = survivors.attack(plan.stages[index - 1], key, batch._replace(logits=logits))
    _, confirmed = _predictions(plan, batch, found.adversarial)
    return found._replace(broken=found.broken & confirmed, queries=found.queries + 2 * count)


def _settle(state: ResumeState, rows: np.ndarray, found: Found) -> ResumeState:
    broken_by, adversarial = state.broken_by.copy(), state.adversarial.copy()
    broken_by[rows[found.broken]] = state.stage
    adversarial[rows[found.broken]] = found.adversarial[found.broken]
    queries = state.queries + found.queries
    return ResumeState(state.stage, int(rows[-1]) + 1, broken_by, adversarial, queries)


def _progress(plan: Plan, state: ResumeState) -> Progress:
    parts = [stage.search for stage in plan.stages]
    costs = [1, *(p.num_attempts * p.num_steps * p.queries + 2 for p in parts)]
    alive = int((state.broken_by == ROBUST).sum())
    ahead = len(_pending(state)) * costs[state.stage] + alive * sum(costs[state.stage + 1 :])
    name = ("clean", *(stage.name for stage in plan.stages))[state.stage]
    done = state.queries / (state.queries + ahead)
    return Progress(name, alive, len(state.broken_by), state.queries, done)


def _predictions(plan: Plan, batch: Batch, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = survivors.pad(np.arange(len(images)), batch.sizes)
    found = plan.predict(batch.forward, *(batch.place(a[rows]) for a in (images, batch.labels)))
    return tuple(np.asarray(a)[: len(images)] for a in found)


def _predict(forward: Forward, images: Images, labels: Labels):
    logits = as_forward(forward)(images).logits
    return logits, misclassified(logits, labels)
