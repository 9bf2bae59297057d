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

from infofeat_jax import parts
from infofeat_jax.adapters import calling
from infofeat_jax.adapters import given as givens
from infofeat_jax.attacks import inputs
from infofeat_jax.attacks.inputs import Randomised
from infofeat_jax.data import Split, to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation import evaluate as measurements
from infofeat_jax.evaluation.attack_names import AttackSpec, Budget
from infofeat_jax.evaluation.evaluate import Measured
from infofeat_jax.evaluation.subject import Subject, digest
from infofeat_jax.evaluator import batches, pixels, storage
from infofeat_jax.evaluator.loading import load
from infofeat_jax.evaluator.result import Result
from infofeat_jax.runtime import devices, processes
from infofeat_jax.types import InvalidInput, check_count

__all__ = ["Result", "evaluate", "load"]

STEP = 0.25  # of epsilon: the step size of attacks whose name gives none, as in configurations


class Model(NamedTuple):
    """A model that is ready to be attacked."""

    name: str
    forward: Partial | Randomised  # its weights, the leaves, are on all devices
    num_classes: int
    logits: np.ndarray  # of the first few images, to recognise it by
    notes: tuple[str, ...]


def evaluate(
    model: Any, images: Any, labels: Any, *, epsilon: float, norm: str = "linf",
    attacks: Sequence[str] = ("clean", "pgd20", "autoattack"), batch_size: int = 250,
    directory: str | pathlib.Path | None = None, progress: bool = True, seed: int = 0,
) -> Result:  # fmt: skip
    """Robust accuracy of any JAX model: `print` the result, or leave it at the end of a notebook's cell.

    Args:
      model: a function images -> logits (or Outputs, or a tuple or an object with them); a pair (Linen module,
        variables); an NNX model; an Equinox model, or a pair (model, state). NNX and Equinox models are evaluated in
        inference mode, and Linen modules with train=False or the like if their __call__ has such an argument. Models
        that take images channels first, one by one, in half precision or in 0 to 255 are recognised; `notes` say so.
        The weights of a function are compiled in as constants, except those of a functools.partial.
        A randomised model is a function (images, key) -> logits, with no default for the key: "clean" is its accuracy
        at one draw, and the attacks are "autoattack(version=rand)", or "apgd-ce(eot=20)" and the like.
      images: [n, h, w, c], or [n, c, h, w] if they can only be that; floats in [0, 1], or uint8 in 0 to 255.
      labels: [n] integers.
      epsilon: the budget in [0, 1] pixel units; `norm` "linf", "l2" or "l1". Attacks step by a quarter of it.
      attacks: names as `config.eval.attacks` takes: "clean", "fgsm", "pgd20(restarts=5)", "autoattack", "square" ...,
        and "package.module:name" for attacks of one's own.
        All of them see all images. "autoattack(version=quick)" is for development, and no certificate: where a flag is
        raised, the whole is run too. What `directory` holds of earlier calls is part of the result, too.
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
    _check_shared(directory)
    specs, mesh = _check_names(attacks), devices.mesh()
    batch_size, epsilon = check_count("batch_size", batch_size, 1), _check_epsilon(epsilon)
    split, channels_first = pixels.read(images, labels)
    budget = Budget(norm, epsilon, STEP * epsilon)
    ready = prepare(givens.read(model), split, budget, specs, mesh)
    size = processes.agreed(batches.fit(ready.forward, split, batch_size, mesh.size))
    notes = [*pixels.notes(split, channels_first), *ready.notes, *batches.notes(size, batch_size, len(split.labels))]
    setting = storage.Setting(ready.name, digest(ready.forward), digest(split), norm, epsilon, size, seed, tuple(notes))
    with storage.opened(directory, setting, ready.logits) as workdir:
        if progress and processes.is_writer():
            print(*(f"note: {note}" for note in notes), sep="\n", end="\n" * bool(notes), file=sys.stderr)
        subject = Subject(
            ready.forward, split, ready.num_classes, mesh, budget, workdir, setting.text, source=_no_source, seed=seed,
            batch_size=size, cam_images=0, keep_adversarial=True,
        )  # fmt: skip
        names = [spec.name for spec in specs]
        measured, results = measurements.measure_and_summarise(subject, names, progress=progress)
        setting = _noted(setting, measured)
        results = storage.complete(results, setting, mesh)
        storage.write(workdir, results)
        processes.barrier("all is stored")
        found = {name: measurements.adversarial(subject, name) for name in measured.attacks}
    adversarial = {
        name: pixels.as_given(images, channels_first) for name, images in found.items() if images is not None
    }
    return Result.of(results, measured.attacks, adversarial)


def _noted(setting: storage.Setting, measured: Measured) -> storage.Setting:
    """The setting, with a note if memory ran out."""
    if not measured.batch_size:
        return setting
    note = f"batches were lowered to {measured.batch_size} images, as memory ran out with more"
    return setting._replace(notes=(*setting.notes, note))


def prepare(given: givens.Given, split: Split, budget: Budget, specs: Sequence[AttackSpec], mesh: Mesh) -> Model:
    """Finds out how to call the model, and checks it and all else that can be checked. Raises InvalidInput."""
    shape, floats = split.images.shape[1:], to_unit(split.images)
    way = calling.find(given, shape)
    forward = calling.in_way(given.call, way)
    inputs.check(forward, floats, split.labels, norm=budget.norm, epsilon=budget.epsilon, bounds=(0.0, 1.0))
    for spec in specs:
        attack_names.check(spec, budget, forward, shape)
    way, logits = calling.look(given, way, floats, split.labels)
    forward = devices.place(mesh, calling.in_way(given.call, way))
    num_classes = inputs.num_classes(forward, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    return Model(given.name, forward, num_classes, logits, (*given.notes, *way.notes))


def _check_shared(directory: str | pathlib.Path | None) -> None:
    if directory is None and jax.process_count() > 1:
        raise InvalidInput(f"directory is missing: expected one that all {jax.process_count()} processes share")


def _check_names(names: Sequence[str]) -> list[AttackSpec]:
    names = [names] if isinstance(names, str) else list(names)
    specs = [attack_names.parse(name) for name in names]
    parts.trust(*parts.names_in(" ".join(names)))  # the caller wrote them
    if not specs:
        raise InvalidInput("attacks is empty: expected names such as ('clean', 'pgd20')")
    for spec in specs:
        if spec.source:
            raise InvalidInput(f"attack {spec.name!r}: attacks crafted on another run are for config.eval.attacks")
    return specs


def _check_epsilon(epsilon: Any) -> float:
    if np.ndim(epsilon):
        raise InvalidInput(f"epsilon is of shape {list(np.shape(epsilon))}: expected one number")
    return float(epsilon)


def _no_source(name: str):
    raise InvalidInput(f"attacks crafted on {name!r}: there are no other runs here")
