"""Robust accuracy of a trained model: per-image outcomes of each attack, and their summaries.

Per-image values are stored in outcomes.npz after each measurement; later evaluations in the same setting reuse them.
Adding a kind of measurement adds an entry to MEASURES (per-image values) or SUMMARIES (what is derived from them).
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from infofeat_jax import parts, streams
from infofeat_jax.attacks.inputs import Randomised, at_draw
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import (
    attack_names,
    autoattack,
    cam_images,
    distances,
    evaluators,
    heuristics,
    pace,
    probes,
    robustness,
)
from infofeat_jax.evaluation.subject import Subject, Tell
from infofeat_jax.runtime import console, files, processes
from infofeat_jax.types import InvalidInput

BUDGET = attack_names.Budget("linf", 8 / 255, 2 / 255)  # any: for checks of names
BUSY = 128  # images at once keep an accelerator busy
DISTANCE, EVALUATOR = OTHERS = "distance/", "evaluator/"  # prefixes that tell other names from those of attacks

Values = Shaped[np.ndarray, " n"]  # of the first n images


class Measured(NamedTuple):
    """Per-image values by name ("pgd20", "distance/cw5"), and the seconds that each measurement took."""

    values: dict[str, Values]
    seconds: dict[str, float]
    sources: dict[str, str]  # {name: digest of the weights that a transferred attack was crafted on}
    batch_size: int = 0  # the smallest that memory running out has forced; 0: it did not run out

    @property
    def attacks(self) -> dict[str, Values]:
        """{attack: which images remain correctly classified}."""
        return {name: value for name, value in self.values.items() if not name.startswith(OTHERS)}

    @property
    def distances(self) -> dict[str, Values]:
        """{attack: distance of its perturbation to PGD's}."""
        return self._of(DISTANCE)

    @property
    def evaluators(self) -> dict[str, Values]:
        """{evaluator of one's own: its values}."""
        return self._of(EVALUATOR)

    def _of(self, prefix: str) -> dict[str, Values]:
        found = self.values.items()
        return {name.removeprefix(prefix): value for name, value in found if name.startswith(prefix)}


def evaluate(
    subject: Subject, names: Iterable[str], distance_names: Iterable[str] = (), evaluator_names: Iterable[str] = ()
) -> dict[str, Any]:
    """The results of the attacks `names`, of the distances to PGD of `distance_names`, of evaluators of one's own.

    Raises Stopped.
    """
    asked = {"": names, DISTANCE: distance_names, EVALUATOR: evaluator_names}
    wanted = [prefix + attack_names.parse(name).name for prefix, group in asked.items() for name in group]
    return measure_and_summarise(subject, wanted)[1]


def measure_and_summarise(subject: Subject, names: list[str], *, progress: bool = True) -> tuple[Measured, dict]:
    """The measurements and what results.json says; flagged beside quick AutoAttack, the whole is measured too."""
    measured = measure(subject, names, progress=progress)
    results = summarise(subject, measured, progress=progress)
    lacking = heuristics.unconfirmed([name for name in measured.attacks if name in names])
    if not processes.agreed(bool(lacking) and heuristics.suspected(results["flags"])):
        return measured, results
    measured = measure(subject, [*names, *lacking.values()], progress=progress)
    return measured, summarise(subject, measured, progress=progress)


def summarise(subject: Subject, measured: Measured, *, progress: bool = True) -> dict[str, Any]:
    """What results.json says about the measurements: accuracies, and all SUMMARIES."""
    if measured.batch_size:
        subject = subject._replace(probe_examples=min(subject.probe_examples, measured.batch_size))
    results = {name: float(outcome.mean()) for name, outcome in measured.attacks.items()}
    active = progress and processes.is_writer()
    with console.progress(len(SUMMARIES), active=active, lasting=False) as show:  # the flags take gradients
        for index, (name, summarise) in enumerate(SUMMARIES.items()):
            show(index, f"summary: {name}")
            results[name] = summarise(subject, measured)
    return results


def check_names(
    names: Iterable[str], distance_names: Iterable[str] = (), validation: str = "clean",
    evaluator_names: Iterable[str] = (),
) -> None:  # fmt: skip
    """Raises InvalidInput for unknown names, before anything expensive starts."""
    if not names:
        raise InvalidInput("config.eval.attacks is empty: expected names such as ('clean', 'pgd20')")
    for spec in map(attack_names.parse, (*names, validation)):
        if parts.is_own(spec.attack):
            attack_names.check(spec, BUDGET)
        else:
            _check_known(spec._replace(source="").name)
    spec = attack_names.parse(validation)
    if spec.is_cascade or spec.source:
        raise InvalidInput(f"config.eval.validation_attack = {validation!r}: expected one such as pgd7")
    for name in distance_names:
        distances.check(name)
    for name in evaluator_names:
        evaluators.create(name)


@cache
def _check_known(name: str) -> None:
    """Checks an attack of ours: it is traced once, however many runs of a study have it."""
    attack_names.check(attack_names.parse(name), BUDGET)


def measure(subject: Subject, names: list[str], *, progress: bool = True) -> Measured:
    """Measures what has not been measured yet, and saves after each measurement."""
    measured, reports, names = load(subject), [], list(dict.fromkeys(names))
    before = {name for name in names if is_measured(subject, measured, name)}
    costs = {name: pace.cost(plain(name)) * expected_count(subject, name) for name in names if name not in before}
    with console.progress(len(names), active=progress and processes.is_writer()) as show:
        if subject.suffix:
            show(0, "", f"{subject.suffix.strip('_')} checkpoint:")
        if advice := advise(subject):
            show(0, "", advice)
        for index, name in enumerate(names):
            if name in before:
                show(index + 1, name, f"{describe(name, measured.values[name])}, measured before")
                continue
            start = time.perf_counter()

            def tell(text: str, share: float = 0.0, batch_size: int = 0, index=index, name=name, start=start) -> None:
                nonlocal subject, measured
                if batch_size:
                    subject = subject._replace(batch_size=min(batch_size, subject.batch_size))
                    measured = measured._replace(batch_size=subject.batch_size)
                    show(index, name, f"{name}: {text}")
                    return
                if share:
                    reports.append(pace.Report(name, share, time.perf_counter() - start))
                show(index + share, f"{name}: {text}", left=pace.left(reports, costs))

            tell("compiling")
            measured.values[name] = measure_one(subject, name, tell)
            measured.seconds[name] = round(time.perf_counter() - start, 2)
            measured.sources.update(source_digests(subject, [name]))
            save(subject, measured)
            line = f"{describe(name, measured.values[name])} ({measured.seconds[name]:.0f} s)"
            show(index + 1, name, line, left=pace.left(reports, costs))
    return measured


def is_measured(subject: Subject, measured: Measured, name: str) -> bool:
    """Whether a measurement covers all of its images, and the images that it found are there if they are to be kept."""
    complete = len(measured.values.get(name, ())) == expected_count(subject, name)
    return complete and (not subject.keep_adversarial or adversarial(subject, name) is not None)


def advise(subject: Subject) -> str | None:
    """A line for a batch size that leaves accelerators idle most of the time."""
    count, share = subject.mesh.size, subject.batch_size / subject.mesh.size
    of_cpu = subject.mesh.devices.flat[0].platform == "cpu"
    if of_cpu or share > BUSY / 4 or len(subject.split.labels) <= subject.batch_size:
        return None
    return (
        f"config.eval.batch_size = {subject.batch_size} gives each of {count} devices {share:.3g} images at once:"
        f" {BUSY} keep it busy, --config.eval.batch_size={BUSY * count}"
    )


def measure_one(subject: Subject, name: str, tell: Tell) -> Values:
    """One measurement: a value for each image."""
    return MEASURES[kind_of(name)](subject, plain(name), tell)


def plain(name: str) -> str:
    """A name without its prefix."""
    return name.removeprefix(DISTANCE).removeprefix(EVALUATOR)


def kind_of(name: str) -> str:
    """The entry of MEASURES that a name belongs to."""
    if name.startswith(OTHERS):
        return name.partition("/")[0]
    return "autoattack" if attack_names.parse(name).is_cascade else "attack"


def expected_count(subject: Subject, name: str) -> int:
    """The number of images that a measurement covers."""
    count = subject.autoattack_examples if kind_of(name) == "autoattack" else 0
    return len(subject.split.labels[: count or None])


def describe(name: str, values: Values) -> str:
    """One measurement in words."""
    if name.startswith(DISTANCE):
        return f"distance of {plain(name)} to PGD: {values.mean():.3f}"
    if name.startswith(EVALUATOR):
        return f"{plain(name)}: {values.mean():.4g} on average of {len(values)} images"
    remark = " (no certificate)" if attack_names.parse(name).whole else ""
    return f"{name}: {values.mean():.1%} of {len(values)} correct{remark}"


# What is stored between evaluations.


def load(subject: Subject) -> Measured:
    """What an earlier evaluation in the same setting has measured; transferred attacks only from the same source."""
    for path in (subject.file("outcomes"), subject.workdir / "outcomes.npz"):
        arrays = files.read_arrays(path, subject.setting) or {}
        try:
            seconds, sources = (dict(json.loads(str(arrays.pop(name, "{}")))) for name in ("seconds", "sources"))
        except (TypeError, ValueError):  # damaged
            continue
        arrays = {name: value for name, value in arrays.items() if is_usable(subject, name, value)}
        if arrays:
            current = source_digests(subject, arrays)
            values = {name: value for name, value in arrays.items() if sources.get(name) == current.get(name)}
            return Measured(values, seconds, {name: current[name] for name in values if name in current})
    return Measured({}, {}, {})


def is_usable(subject: Subject, name: str, value: np.ndarray) -> bool:
    """Whether an array holds values of a measurement that this version knows, and whose source is still there."""
    if value.ndim != 1 or value.dtype.kind not in "bf":
        return False
    try:
        source_digests(subject, [name])
    except InvalidInput:
        return False
    return True


def save(subject: Subject, measured: Measured) -> None:
    """Saves the measurements, with the setting that they belong to."""
    if processes.is_writer():
        about = {"setting": subject.setting, "seconds": measured.seconds, "sources": measured.sources}
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
        files.write_arrays_atomically(subject.file("outcomes"), measured.values | texts)


def source_digests(subject: Subject, names: Iterable[str]) -> dict[str, str]:
    """{name: digest of the source's weights} for the transferred attacks among `names`."""
    sources = {name: attack_names.parse(plain(name)).source for name in names}
    return {name: subject.source(source).digest for name, source in sources.items() if source}


def adversarial(subject: Subject, name: str) -> np.ndarray | None:
    """The images, float32, that a finished measurement with `keep_adversarial` has found; None if they are gone."""
    if name == "clean":
        return to_unit(subject.split.images)
    if kind_of(name) == "autoattack":
        state = autoattack.load(autoattack.where(subject, attack_names.parse(name)))
        return None if state is None else state.adversarial
    found = robustness.load(subject, name)
    return None if found is None else found[1]


# Summaries of the measurements.


def worst_case(outcomes: Mapping[str, Values]) -> float | None:
    """Accuracy under the worst case over the attacks within the threat model, on the images that all of them saw."""
    inside, count = within_budget(outcomes), common_count(outcomes)
    return float(np.all([values[:count] for values in inside.values()], axis=0).mean()) if count else None


def common(outcomes: Mapping[str, Values]) -> dict[str, Any]:
    """All accuracies on the images that every attack within the threat model saw; {} if each saw all images.

    The same fields as the results: {attack: accuracy}, "examples", "worst_case".
    """
    count = common_count(outcomes)
    if all(len(values) == count for values in within_budget(outcomes).values()):
        return {}
    seen = {name: values[:count] for name, values in outcomes.items() if len(values) >= count}
    accuracies = {name: float(values.mean()) for name, values in seen.items()}
    return accuracies | {"examples": dict.fromkeys(seen, count), "worst_case": worst_case(outcomes)}


def common_count(outcomes: Mapping[str, Values]) -> int:
    """The number of images that every attack within the threat model saw."""
    return min((len(values) for values in within_budget(outcomes).values()), default=0)


def within_budget(outcomes: Mapping[str, Values]) -> dict[str, Values]:
    """The outcomes of the attacks within the evaluation's threat model."""
    return {name: values for name, values in outcomes.items() if not attack_names.parse(name).has_own_epsilon}


def averages(values: Mapping[str, Values]) -> dict[str, float]:
    """{evaluator: its mean over the images}, of those whose values are finite."""
    return {name: float(value.mean()) for name, value in values.items() if np.isfinite(value).all()}


def find_flags(subject: Subject, measured: Measured) -> list[str]:
    """Sentences that say why the measured robustness may be overestimated; clean accuracy alone claims none."""
    attacked = any(name != "clean" for name in measured.attacks)
    probed = probe(subject) if subject.probe_examples and attacked else None
    stages = autoattack.after_stages(subject) if "autoattack" in measured.values else {}
    return heuristics.flags(probed, measured.attacks, stages)


def probe(subject: Subject) -> probes.Probes:
    """The cheap probes of the model on which the flags are based; of a randomised one, at a single draw."""
    images, labels = (jnp.asarray(array[: subject.probe_examples]) for array in subject.split)
    forward = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), subject.forward)
    key = streams.key(subject.seed, "probes")
    probed = probes.probe(at_draw(forward, key), key, to_unit(images), labels, **subject.budget._asdict())
    # The draws of a randomised model differ by image: that is no news.
    return probed._replace(noise=0 * probed.noise) if isinstance(forward, Randomised) else probed


def stage_accuracies(subject: Subject, measured: Measured) -> dict[str, float]:
    """{AutoAttack's stage: accuracy after it}."""
    stages = autoattack.after_stages(subject) if "autoattack" in measured.values else {}
    return {name: float(outcome.mean()) for name, outcome in stages.items()}


# (subject, name, tell) -> one value per image; stored in outcomes.npz.
MEASURES: dict[str, Callable[[Subject, str, Tell], Values]] = {
    "attack": robustness.measure,
    "autoattack": autoattack.measure,
    "distance": distances.measure,
    "evaluator": evaluators.measure,
}
# {field of results.json: (subject, measurements) -> its value}.
SUMMARIES: dict[str, Callable[[Subject, Measured], Any]] = {
    "worst_case": lambda subject, measured: worst_case(measured.attacks),
    "common": lambda subject, measured: common(measured.attacks),
    "examples": lambda subject, measured: {name: len(values) for name, values in measured.attacks.items()},
    "distances": lambda subject, measured: {name: float(v.mean()) for name, v in measured.distances.items()},
    "evaluators": lambda subject, measured: averages(measured.evaluators),
    "autoattack_stages": stage_accuracies,
    "flags": find_flags,
    "cam_images": lambda subject, measured: cam_images.keep(subject),
    "sources": lambda subject, measured: dict(measured.sources),
    "num_examples": lambda subject, measured: len(subject.split.labels),
    "seconds": lambda subject, measured: round(sum(measured.seconds.values()), 2),
    "seconds_per_attack": lambda subject, measured: dict(measured.seconds),
}
