"""The public evaluation: any model, one call; the same code as a run's evaluation. And trained models in one line."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from infofeat_jax.adapters import calling
from infofeat_jax.adapters import given as givens
from infofeat_jax.attacks import inputs
from infofeat_jax.attacks.inputs import Randomised
from infofeat_jax.attacks.search import target_count
from infofeat_jax.data import Split, to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation import evaluate as measurements
from infofeat_jax.evaluation.attack_names import AttackSpec, Budget
from infofeat_jax.evaluation.measured import Measured, adversarial
from infofeat_jax.evaluation.subject import Subject, digest
from infofeat_jax.evaluator import arguments, batches, pixels, storage
from infofeat_jax.evaluator.loading import load
from infofeat_jax.evaluator.result import Result
from infofeat_jax.runtime import devices, processes
from infofeat_jax.types import InvalidInput, check_count

__all__ = ["Result", "evaluate", "load"]

NO_GRADIENT = "the model has no gradient: signs of masked gradients were not looked for"
STEP = 0.25  # of epsilon: the step size of attacks whose name gives none, as in configurations


class Model(NamedTuple):
    """A model that is ready to be attacked."""

    name: str
    forward: Partial | Randomised  # its weights, the leaves, are on all devices
    num_classes: int
    logits: np.ndarray  # of the first few images, to recognise it by
    notes: tuple[str, ...]
    has_gradient: bool


def evaluate(
    model: Any, images: Any, labels: Any, *, epsilon: float, norm: str = "linf",
    attacks: Sequence[str] = ("clean", "pgd20", "autoattack"), batch_size: int = 250,
    directory: str | pathlib.Path | None = None, progress: bool = True, seed: int = 0,
) -> Result:  # fmt: skip
    """Robust accuracy of any JAX model: `print` the result, or leave it at the end of a notebook's cell.

    Args:
      model: a function images -> logits (or Outputs, or a tuple, dictionary or object with them); a pair (Linen module,
        variables); an NNX model; an Equinox model, or a pair (model, state). NNX and Equinox models are evaluated in
        inference mode, and Linen modules with train=False or the like if their __call__ has such an argument. Models
        that take images channels first, one by one, in half precision or in 0 to 255 are recognised; `notes` say so.
        The weights of a function are compiled in as constants, except those of a functools.partial.
        A randomised model is a function (images, key) -> logits, with no default for the key: "clean" is its accuracy
        at one draw, and the attacks are "autoattack(version=rand)", or "apgd-ce(eot=20)" and the like.
      images: [n, h, w, c], or [n, c, h, w] if they can only be that; float32 (or half precision; float64
        is refused) in [0, 1], or uint8 in 0 to 255.
      labels: [n] integers.
      epsilon: the budget in [0, 1] pixel units; `norm` "linf", "l2" or "l1". Attacks step by a quarter of it.
      attacks: names as `config.eval.attacks` takes: "clean", "fgsm", "pgd20(restarts=5)", "autoattack", "square" ...,
        and "package.module:name" for attacks of one's own.
        All of them see all images. "autoattack(version=quick)" is for development, and not standard AutoAttack: where
        a flag is raised, that is run too. What `directory` holds of earlier calls is part of the result, too.
      batch_size: images at a time; halved until a batch fits the memory, as estimated, and whenever it runs out.
      directory: where measurements are stored, and from where an interrupted evaluation is taken up again; refused if
        it holds another evaluation. `infofeat_jax.report.write` makes it a page. By default a temporary directory.
      progress: whether to report on stderr.
      seed: of the random starts.

    Uses all devices. Of several processes (jax.distributed), each makes the same call, with a `directory` that they
    share, and gets the same result. Raises InvalidInput before anything expensive is computed. Host memory: a copy of
    the images for each attack.

    >>> model = lambda images: jnp.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], -1)  # light, dark
    >>> images, labels = jnp.linspace(0, 1, 40).reshape(10, 2, 2, 1), jnp.arange(10) < 5
    >>> result = evaluate(model, images, labels.astype(int), epsilon=0.2, attacks=("clean", "pgd20"), progress=False)
    >>> result.accuracy["clean"], result.accuracy["pgd20"]
    (1.0, 0.6)
    """
    directory, specs = arguments.read_directory(directory), arguments.read_attacks(attacks)
    batch_size, seed = check_count("batch_size", batch_size, 1), check_count("seed", seed)
    split, channels_first = pixels.read(images, labels)
    epsilon, mesh = arguments.read_epsilon(epsilon, norm, split.images.shape[1:]), devices.mesh()
    budget = Budget(norm, epsilon, STEP * epsilon)
    ready = prepare(givens.read(model), split, channels_first, budget, specs, mesh)
    fitting = batches.fit(ready.forward, split, batch_size, mesh.size) if ready.has_gradient else batch_size
    size = processes.agreed(min(fitting, len(split.labels)))
    notes = [*pixels.notes(split, channels_first), *ready.notes, *batches.notes(size, batch_size, len(split.labels))]
    setting = storage.Setting(ready.name, digest(ready.forward), digest(split), norm, epsilon, size, seed, tuple(notes))
    if not processes.all_have(f"{setting.text} {specs}"):
        raise InvalidInput("the processes have different weights, images or arguments: give each of them the same")
    with storage.opened(directory, setting, ready.logits) as workdir:
        if progress and processes.is_writer():
            print(*(f"note: {note}" for note in notes), sep="\n", end="\n" * bool(notes), file=sys.stderr)
        subject = Subject(
            ready.forward, split, ready.num_classes, mesh, budget, workdir, setting.text, source=_no_source, seed=seed,
            batch_size=size, cam_images=0, keep_adversarial=True,
        )  # fmt: skip
        subject = subject if ready.has_gradient else subject._replace(probe_examples=0)
        names = [spec.name for spec in specs]
        measured, results = measurements.measure_and_summarise(subject, names, progress=progress)
        setting = _noted(setting, measured)
        results = storage.complete(results, setting, budget.step_size, mesh)
        storage.write(workdir, results)
        processes.barrier("all is stored")
        found = {name: adversarial(subject, name) for name in measured.attacks}
    kept = {name: pixels.as_given(images, channels_first) for name, images in found.items() if images is not None}
    return Result.of(results, measured.attacks, kept)


def _noted(setting: storage.Setting, measured: Measured) -> storage.Setting:
    """The setting, with a note if memory ran out."""
    if not measured.batch_size:
        return setting
    note = f"batches were lowered to {measured.batch_size} images, as memory ran out with more"
    return setting._replace(notes=(*setting.notes, note))


def prepare(
    given: givens.Given, split: Split, channels_first: bool, budget: Budget, specs: Sequence[AttackSpec], mesh: Mesh
) -> Model:
    """Finds out how to call the model, and checks it and all else that can be checked. Raises InvalidInput."""
    shape, floats = split.images.shape[1:], to_unit(split.images)
    way = calling.find(given, shape, channels_first)
    forward = calling.in_way(given.call, way)
    inputs.check(forward, floats, split.labels, norm=budget.norm, epsilon=budget.epsilon, bounds=(0.0, 1.0))
    num_classes = inputs.num_classes(forward, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    target_count(1, num_classes)  # refuses a single class
    failure = calling.gradient_failure(given, way, shape)
    for spec in specs:
        if failure and spec.attack not in attack_names.GRADIENT_FREE:
            raise InvalidInput(f"attack {spec.name!r}: the model has no gradient ({failure}): choose square, or noise")
        attack_names.check(spec, budget, forward, shape)
    way, logits, seen = calling.look(given, way, floats, split.labels)
    forward = devices.place(mesh, calling.in_way(given.call, way))
    notes = (*given.notes, *way.notes, *seen, *([NO_GRADIENT] if failure else []))
    return Model(given.name, forward, num_classes, logits, notes, failure is None)


def _no_source(name: str):
    raise InvalidInput(f"attacks crafted on {name!r}: there are no other runs here")
