"""One training step, a pure function of state, batch and key."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from infofeat_jax.data import to_unit
from infofeat_jax.data.mixing import Mixed
from infofeat_jax.methods import Batch, Method
from infofeat_jax.training import averaging as averages
from infofeat_jax.training import awp as perturbing
from infofeat_jax.training import free as freely
from infofeat_jax.training.averaging import Apart, Averaging, apart, move_average
from infofeat_jax.training.awp import Awp, Perturb, create_perturb, shifted
from infofeat_jax.training.free import Free, replay
from infofeat_jax.training.optimizers import at_step
from infofeat_jax.training.state import State
from infofeat_jax.types import Forward, Images, Labels, Outputs, PRNGKey, Probabilities

Augment = Callable[[PRNGKey, Images], Images]
Mix = Callable[[PRNGKey, Images, Labels], tuple[Images, Mixed]]
Average = Callable[[PyTree], PyTree]  # over devices, if each computes only its own part of a batch
Metrics = dict[str, Float[Array, ""]]


Step = Callable[..., tuple[State, Metrics]]  # (state, batch, key, *, average), pure; see `make_step`
# What the key of the augmentation is folded with for `mix`, and that of the attack for a penalty.
MIXING, PENALTY = 0x6D6978, 0x70656E


class Statistics(NamedTuple):
    """BatchNorm's running statistics: the live model's, and the average's if it has its own."""

    live: PyTree
    average: PyTree = ()


class Gradients(NamedTuple):
    """The gradient of a batch's mean loss at `params` + `shift`, and BatchNorm's statistics after it."""

    params: PyTree
    batch_stats: Statistics
    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    shift: PyTree = ()  # adversarial weight perturbation, if any
    images: tuple[Images, ...] = ()  # the gradient to the perturbed images, if it is asked for


def make_step(
    module: nn.Module,
    method: Method | Callable[[Int[Array, ""]], Method],
    optimizer: optax.GradientTransformation,
    *,
    augment: Augment = lambda key, images: images,
    mix: Mix | None = None,
    accumulate_steps: int = 1,
    awp: Awp = perturbing.WITHOUT,
    averaging: Averaging = averages.WITHOUT,
    batch_norm: str = "running",
    free: Free = freely.WITHOUT,
) -> Step:
    """Builds a training step: augment, attack the frozen model, update the parameters by the method's loss.

    Its `batch` is (images uint8 [b, h, w, c], labels [b]); its randomness is `key` folded with the step. Its metrics
    are the batch's mean loss and accuracy on the perturbed images before the update, at the perturbed weights if there
    is AWP; the loss is NaN if the first number of an array of parameters is non-finite after it. With
    `accumulate_steps`, that many parts of a batch are processed in turn, in the memory of one. With `averaging` the
    state has an average of the weights, which moves. `method` may be a function of the step; `batch_norm`: the
    statistics that the attack sees, as in `gradients`. With `free` a step is several updates, on the same images, and
    the metrics are their means: see `free.replay`.
    """

    def step(state: State, batch, key: PRNGKey, *, average: Average = lambda tree: tree) -> tuple[State, Metrics]:
        augment_key, attack_key = jax.random.split(jax.random.fold_in(key, state.step))
        images, labels = augment(augment_key, to_unit(batch[0])), batch[1]
        if mix is not None:
            images, labels = mix(jax.random.fold_in(augment_key, MIXING), images, labels)
        chosen = method if isinstance(method, Method) else method(state.step)

        def update(state: State, key: PRNGKey, perturbed: Images | None = None):
            given = chosen if perturbed is None else chosen._replace(attack=lambda *_: perturbed)
            one_part = partial(
                gradients, module, given, batch_norm=batch_norm, to_images=perturbed is not None,
                perturb=create_perturb(awp, state.step), averaged=apart(state.average, state.step, averaging),
            )  # fmt: skip
            whole = one_part if accumulate_steps == 1 else partial(accumulated_gradients, one_part, accumulate_steps)
            statistics = Statistics(state.batch_stats, state.average_stats)
            found = whole(state.params, state.variables, statistics, key, images, labels)
            return *updated(optimizer, state, average(found._replace(images=()))), *found.images

        if free.replays:
            state, metrics = replay(update, free, state, attack_key, images)
        else:
            state, metrics = update(state, attack_key)
        moved = move_average(state.average, state.params, state.step, averaging) if averaging.is_kept else state.average
        return state._replace(step=state.step + 1, average=moved), metrics

    return step


def updated(optimizer: optax.GradientTransformation, state: State, found: Gradients) -> tuple[State, Metrics]:
    """The state after an update, but for its step and the average of its weights."""
    opt_state = at_step(state.opt_state, state.step)
    # As in AWP's code, weight decay acts on the perturbed weights, and the update on the unperturbed ones.
    changes, opt_state = optimizer.update(found.params, opt_state, shifted(state.params, found.shift))
    params = optax.apply_updates(state.params, changes)
    metrics = {"loss": checked(found.loss, params), "accuracy": found.accuracy}
    live, of_average = found.batch_stats
    moved = {"params": params, "batch_stats": live, "opt_state": opt_state, "average_stats": of_average}
    return state._replace(**moved), metrics


def checked(loss: Float[Array, ""], params: PyTree) -> Float[Array, ""]:
    """The loss, or NaN if the first number of an array of parameters is non-finite.

    A non-finite gradient fills the arrays of all layers below the one where it arises, so that a norm, for which all
    parameters would have to be read again, is needed only before they are saved.
    """
    first = jnp.stack([leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(params)])
    return jnp.where(jnp.isfinite(first).all(), loss, jnp.nan)


def gradients(
    module: nn.Module,
    method: Method,
    params: PyTree,
    frozen: PyTree,
    batch_stats: Statistics,
    key: PRNGKey,
    images,
    labels,
    *,
    perturb: Perturb | None = None,
    averaged: Apart | None = None,
    batch_norm: str = "running",
    to_images: bool = False,
) -> Gradients:
    """Attacks the model with the `frozen` variables, and differentiates the method's loss at `params`.

    `images` float32 [b, h, w, c] in [0, 1], `labels` [b], or Mixed. With `perturb` at `params` plus what it returns,
    given the gradient at `params` of the same loss; the passes which that takes leave BatchNorm's statistics alone.
    With `averaged`, the average's statistics move by the same passes as the live model's.
    `batch_norm`: the attack sees the "running" statistics, or those of its "batch", without moving the running ones.
    `to_images`: with the gradient of the mean loss to the perturbed images, from the same backward pass.
    """
    forward = frozen_forward(module, frozen, batch_norm, key)
    mixed, labels = (labels, labels.labels) if isinstance(labels, Mixed) else (None, labels)
    perturbed = images if method.attack is None else method.attack(forward, key, images, labels)
    perturbed = jax.lax.stop_gradient(perturbed)
    goals = jax.lax.stop_gradient(targets(method, forward, images, labels, mixed))

    def loss(params, before=batch_stats.live, perturbed=perturbed):
        statistics = [before]  # before and after each forward pass, in order

        def train(x: Images) -> Outputs:
            variables = {"params": params, "batch_stats": statistics[-1]}
            rngs = {"dropout": jax.random.fold_in(key, len(statistics))}  # none of this package's models has any
            outputs, moved = module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)
            statistics.append(moved.get("batch_stats", {}))
            return outputs

        values, logits = method.loss(train, Batch(images, perturbed, labels, goals))
        if method.penalty is not None:
            still = frozen_forward(module, {"params": params, "batch_stats": before}, "batch", key)
            values = values + method.penalty(still, jax.random.fold_in(key, PENALTY), images, labels)
        return values.mean(), (logits, statistics[-1])

    shift = () if perturb is None else perturb(params, lambda: jax.grad(loss, has_aux=True)(params)[0])
    differentiated = jax.value_and_grad(loss, (0, 2) if to_images else (0,), has_aux=True)
    (value, (logits, live)), found = differentiated(shifted(params, shift), batch_stats.live, perturbed)
    average = batch_stats.average
    if averaged is not None:
        average = jax.lax.cond(averaged.begun, lambda: loss(averaged.params, batch_stats.average)[1][1], lambda: live)
    accuracy = (logits.argmax(-1) == labels).mean()
    return Gradients(found[0], Statistics(live, average), value, accuracy, shift, found[1:])


def frozen_forward(module: nn.Module, variables: PyTree, batch_norm: str, key: PRNGKey) -> Forward:
    """The model that is attacked: on the running statistics, or on those of the batch (Wang et al., 2023)."""
    if batch_norm == "running":
        return partial(module.apply, variables)
    rngs = {"dropout": jax.random.fold_in(key, 0)}
    return lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]


def targets(method: Method, forward: Forward, images: Images, labels: Labels, mixed: Mixed | None) -> Probabilities:
    """The method's targets; for mixed images those of both labels, in proportion to their shares."""
    found = method.targets(forward, images, labels)
    if mixed is None:
        return found
    share = mixed.share[:, None]
    return share * found + (1 - share) * method.targets(forward, images, mixed.partners)


def accumulated_gradients(
    one_part: Callable[..., Gradients],
    parts: int,
    params: PyTree,
    frozen: PyTree,
    batch_stats: Statistics,
    key: PRNGKey,
    images,
    labels,
) -> Gradients:
    """The mean of `one_part` (`gradients` with module and method bound) over `parts` parts of the batch.

    All parts attack the same frozen model, each with its own key. BatchNorm's batch statistics, batch-coupled methods
    and the perturbation of the weights see one part; the running statistics are updated by each. Of b
    examples, part i has i, i + parts, ..., so that every part is spread over all devices.
    """
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), (images, labels))

    def one(batch_stats, index, part):
        return one_part(params, frozen, batch_stats, jax.random.fold_in(key, index), *part)

    def add(total: Gradients, indexed):
        found = one(total.batch_stats, *indexed)
        return jax.tree.map(jnp.add, total, found)._replace(batch_stats=found.batch_stats), None

    shapes = jax.eval_shape(one, batch_stats, 0, jax.tree.map(lambda x: x[0], split))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)._replace(batch_stats=batch_stats)
    total, _ = jax.lax.scan(add, nothing, (jnp.arange(parts), split))
    return jax.tree.map(lambda x: x / parts, total)._replace(batch_stats=total.batch_stats)
