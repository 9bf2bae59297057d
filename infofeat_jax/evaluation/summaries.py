"""What results.json says about the measurements: accuracies, the worst case over attacks, flags.

Adding a summary adds an entry to SUMMARIES.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from infofeat_jax import streams
from infofeat_jax.attacks.inputs import Randomised, at_draw
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names, autoattack, cam_images, heuristics, probes
from infofeat_jax.evaluation import measured as stored
from infofeat_jax.evaluation.measured import Measured, Values
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import console, devices, processes


def summarise(subject: Subject, measured: Measured) -> dict[str, Any]:
    """What results.json says about the measurements: accuracies, and all SUMMARIES."""
    results = {name: float(outcome.mean()) for name, outcome in measured.attacks.items()}
    return results | {name: summary(subject, measured) for name, summary in SUMMARIES.items()}


def look(subject: Subject, measured: Measured, *, progress: bool = True) -> Measured:
    """The measurements with the probes of the model, which take gradients."""
    if not are_probed(subject, measured.attacks):
        return measured
    if measured.batch_size:
        subject = subject._replace(batch_size=min(subject.batch_size, measured.batch_size))
    with console.progress(1, active=progress and processes.is_writer(), lasting=False) as show:
        show(0, "looking for signs of masked gradients")
        return measured._replace(probes=probe(subject))


def are_probed(subject: Subject, names: Iterable[str]) -> bool:
    """Whether the flags take probes; clean accuracy alone claims no robustness."""
    return bool(subject.probe_examples) and any(name != "clean" for name in names)


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
    """Sentences that say why the measured robustness may be overestimated."""
    return heuristics.flags(measured.probes, measured.attacks, autoattack.after_stages(subject, measured.attacks))


def probe(subject: Subject) -> probes.Probes:
    """The probes of the model on which the flags are based, on one device; of a randomised one, at a single draw.

    Stored, and read where an earlier evaluation in the same setting has stored them.
    """
    if known := stored.load_probes(subject):
        return known
    images, labels = (jnp.asarray(array[: subject.probe_examples]) for array in subject.split)
    forward, key = devices.local(subject.forward), streams.key(subject.seed, "probes")
    budget, size = subject.budget._asdict(), max(subject.batch_size // subject.mesh.size, 1)
    probed = probes.probe(at_draw(forward, key), key, to_unit(images), labels, **budget, batch_size=size)
    if isinstance(forward, Randomised):  # whose draws differ by image: that is no news
        probed = probed._replace(noise=0 * probed.noise)
    stored.save_probes(subject, probed)
    return probed


def stage_accuracies(subject: Subject, measured: Measured) -> dict[str, float]:
    """{AutoAttack's stage: accuracy after it}."""
    stages = autoattack.after_stages(subject, measured.attacks)
    return {name: float(outcome.mean()) for name, outcome in stages.items()}


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
