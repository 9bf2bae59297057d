"""AutoAttack (Croce & Hein, "Reliable evaluation of adversarial robustness ...", 2020).

Each stage attacks the examples that survived the earlier ones. `autoattack` does it all in one call. An evaluator that
has to resume after an interruption builds a `plan` and iterates over `steps`, which yields a `ResumeState` every few
iterations: save it, and pass it back to resume. Random numbers belong to an example, so that its outcome depends,
but for rounding, neither on the batch size nor on devices, processes or interruptions.

A plan compiles at most two programs with the network for each stage, one for each batch size, and one for the
predictions: nine for the standard version. An accelerator's compiler may take minutes for each, so that their number
counts; a batch refilled from those who wait stays full without further sizes (see `survivors`). If `forward` closes
over its weights, they are compiled in as constants. As `jax.tree_util.Partial(module.apply, variables)` they are
arguments: new weights need no recompilation.

Device memory for each example of a batch, besides the weights: that of the network's input gradient plus 10 to 40 %,
and twice the state (APGD's: 6 copies of the image). XLA's own account on the CPU, for 32x32 images in batches of 64,
without the state: 0.6 MB (ResNet-10 of width 16), 4.3 MB (ResNet-18), 13 MB (WRN-28-10, APGD alone). Host memory: two
copies of all images.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from infofeat_jax.attacks import survivors
from infofeat_jax.attacks.inputs import Randomised, check_channels_last, num_classes, of_kind, prepare
from infofeat_jax.attacks.search import Search
from infofeat_jax.attacks.stages import VERSIONS, Plan, plan
from infofeat_jax.attacks.survivors import Data, Stage, Turn
from infofeat_jax.runtime import devices, memory
from infofeat_jax.types import Budget, Forward, Images, InvalidInput, Labels, PRNGKey, check_choice, check_count

ROBUST = -1  # in ResumeState.broken_by
BACKWARD = 2  # cost of differentiating a forward pass, in forward passes


class ResumeState(NamedTuple):
    """The progress of an evaluation, as plain numbers and NumPy arrays: all that is needed to resume it.

    Attempts under way are not part of it: they begin anew. `steps` changes the arrays in place.
    """

    stage: int  # 0: the clean predictions; i: the plan's i-th stage; one more than there are: done
    attempts: np.ndarray  # [n] int: attempts that have ended in this stage
    broken_by: np.ndarray  # [n] int: the stage that broke the example; 0: misclassified when clean; ROBUST: unbroken
    adversarial: np.ndarray  # [n, h, w, c] unchanged where nothing was found
    queries: int  # forward passes so far, summed over examples
    cost: int  # the same with those of gradients, in forward passes


class Progress(NamedTuple):
    """A progress report, every few iterations."""

    stage: str  # "clean" or the stage's name
    survivors: int
    examples: int
    queries: int
    done: float  # fraction of the cost in [0, 1], assuming that no further example is broken
    compiling: bool = False  # what comes next takes longer


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
      version: "standard"; "plus" (restarts, untargeted FAB and DLR too); or for randomised models, given as
        `forward(images, key)`, "rand": APGD-CE and APGD-DLR on the average over 20 draws (EOT). Or, for development
        only, "quick": APGD-CE and APGD-T with 4 targets, 13 % of the cost of "standard" for a robust image.
      attacks: names from `stages.STAGES`, in order, in place of a version's.
      batch_size: maximum number of examples attacked at once; see the module's docstring for the memory it takes.
      on_progress: called every few iterations.

    Returns misclassified images where they were found; the others are returned unchanged, as are those that are
    already misclassified. A NaN among the logits counts as misclassified. There are at most as many targets as wrong
    classes; with fewer than four classes DLR falls back as described in `objectives`. Raises InvalidInput.

    >>> import jax.numpy as jnp
    >>> model = lambda images: jnp.stack([images.mean((1, 2, 3)), 0.6 - images.mean((1, 2, 3))], -1)  # light, dark
    >>> images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.array([0])
    >>> found = autoattack(model, jax.random.key(0), images, labels, epsilon=0.25, attacks=("apgd-ce",))
    >>> bool(jnp.abs(found - images).max() <= 0.25), model(found).argmax(-1)
    (True, Array([1], dtype=int32))
    """
    if any(isinstance(value, jax.core.Tracer) for value in (key, images, labels, epsilon)):
        raise InvalidInput("autoattack's loop runs on the host: call it outside of jit, vmap, scan and the like")
    check_choice("AutoAttack version", version, VERSIONS)
    forward = of_kind(forward, version == "rand")
    _, images, labels, threat = prepare(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    if not images.size:  # not every model takes an empty batch
        return images
    check_channels_last(images)
    count = num_classes(forward, images[:1])
    the_plan = plan(threat, count, images.shape[1:3], version=version, attacks=attacks)
    inputs = np.asarray(images), np.asarray(labels)
    for progress, state in steps(the_plan, forward, key, *inputs, batch_size=batch_size):
        adversarial = state.adversarial
        if on_progress is not None:
            on_progress(progress)
    return jnp.asarray(adversarial)


def steps(
    plan: Plan, forward: Forward, key: PRNGKey, images: np.ndarray, labels: np.ndarray, *,
    batch_size: int = 250, state: ResumeState | None = None, mesh: Mesh | None = None,
    say: Callable[[str, int], None] = lambda line, size: warnings.warn(line, stacklevel=2),
) -> Iterator[tuple[Progress, ResumeState]]:  # fmt: skip
    """Yields progress and resume state every few iterations, starting from `state`.

    When the devices' memory runs out, it goes on from the last state with smaller batches; `say` gets a line about that
    and the new batch size.

    Images are not checked; see `autoattack`. Batches are split over `mesh` (`batch_size` is rounded up to a multiple of
    its devices), on which the weights are to be. If it spans several processes, all of them call this with the same
    arguments, and get the same.
    """
    batch_size = check_count("batch_size", batch_size, 1)
    images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    forward = forward if isinstance(forward, Partial | Randomised) else Partial(forward)
    num_devices = mesh.size if mesh else 1

    def run(size: int) -> Iterator[tuple[Progress, ResumeState]]:
        nonlocal state
        data = Data(forward, images, labels, np.empty(0), size, mesh)
        for progress, reached in _steps(plan, key, data, state):
            state = reached
            yield progress, state

    largest = survivors.batch_sizes(batch_size, len(labels), num_devices)[0]
    yield from memory.lowering(run, largest, num_devices, say)


def _steps(
    plan: Plan, key: PRNGKey, data: Data, state: ResumeState | None
) -> Iterator[tuple[Progress, ResumeState]]:  # fmt: skip
    images, labels = data.images, data.labels
    if state is None or state.stage == 0:  # the clean predictions begin anew
        nothing = np.zeros(len(labels), np.int32)
        state = ResumeState(0, nothing, nothing + ROBUST, np.array(images), 0, 0)
    if state.stage > len(plan.stages):
        return
    logits = []
    looks = jax.random.fold_in(key, 0)  # the stages have the numbers from 1 on
    for rows, some_logits, wrong in _predictions(plan, looks, data, images, np.arange(len(labels))):
        logits.append(some_logits)
        if state.stage == 0:
            state.broken_by[rows[wrong]] = 0
            state = _spend(state, len(rows), len(rows))
            yield _progress(plan, state, "clean"), state
    data = data._replace(logits=np.concatenate(logits))
    for index, stage in enumerate(plan.stages, 1):
        if index >= state.stage:
            for turn in _run_stage(stage, jax.random.fold_in(key, index), data, state := state._replace(stage=index)):
                state = _settle(stage.search, state, turn)
                yield _progress(plan, state, stage.name, turn), state
            state = _confirm(plan, jax.random.fold_in(looks, index), data, state)
            yield _progress(plan, state, stage.name), state


def _run_stage(stage: Stage, key: PRNGKey, data: Data, state: ResumeState) -> Iterator[Turn]:
    """The turns of a stage on all examples that are left, or what is left of it."""
    left = (state.broken_by == ROBUST) & (state.attempts < stage.search.num_attempts)
    rows = np.flatnonzero(left).astype(np.int32)
    return survivors.attack(stage, key, data, rows, state.attempts[rows])


def _settle(search: Search, state: ResumeState, turn: Turn) -> ResumeState:
    """Notes what a turn has ended."""
    state.attempts[turn.rows] += 1
    if turn.adversarial is not None:
        found = turn.rows[turn.broken]
        state.broken_by[found] = state.stage
        state.adversarial[found] = turn.adversarial[turn.broken]
    iterations = int(turn.t.sum())
    return _spend(state, iterations * search.queries, iterations * _cost(search))


def _confirm(plan: Plan, key: PRNGKey, data: Data, state: ResumeState) -> ResumeState:
    """Ends a stage: only what a separate forward pass misclassifies too counts as broken."""
    broken = np.flatnonzero(state.broken_by == state.stage)
    for rows, _, wrong in _predictions(plan, key, data, state.adversarial, broken):
        refuted = rows[~wrong]
        state.broken_by[refuted] = ROBUST
        state.adversarial[refuted] = data.images[refuted]
    state.attempts[:] = 0
    return _spend(state, len(broken), len(broken))._replace(stage=state.stage + 1)


def _spend(state: ResumeState, queries: int, cost: int) -> ResumeState:
    return state._replace(queries=state.queries + queries, cost=state.cost + cost)


def _cost(search: Search) -> int:
    """Of an iteration, in forward passes."""
    return search.queries + BACKWARD * search.gradients


def _progress(plan: Plan, state: ResumeState, name: str, turn: Turn | None = None) -> Progress:
    unfinished, compiling = (turn.unfinished, turn.compiling) if turn else (0, False)
    alive, search = state.broken_by == ROBUST, None
    ahead = len(alive) - state.cost if state.stage == 0 else 0
    queries, spent = state.queries, state.cost
    for index, search in enumerate((stage.search for stage in plan.stages), 1):
        attempts = search.num_attempts - (state.attempts if index == state.stage else 0)
        iterations = int((alive * attempts).sum()) * search.num_steps
        if index == state.stage:
            iterations -= unfinished
            queries, spent = queries + unfinished * search.queries, spent + unfinished * _cost(search)
        if index >= state.stage:
            ahead += iterations * _cost(search)
    return Progress(name, int(alive.sum()), len(alive), queries, spent / (spent + ahead), compiling)


def _predictions(
    plan: Plan, key: PRNGKey, data: Data, images: np.ndarray, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (rows, their logits, whether misclassified) of images[rows], in batches of the larger size."""
    size, _ = survivors.batch_sizes(data.batch_size, len(data.labels), data.num_devices)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        inputs = (survivors.place(data.mesh, array[np.resize(some, size)]) for array in (images, data.labels))
        logits, wrong = devices.fetch(plan.predict(data.forward, jax.random.fold_in(key, start), *inputs))
        yield some, logits[: len(some)], wrong[: len(some)]
