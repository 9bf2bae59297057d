"""What was measured: per-image values by name, stored in outcomes.npz after each measurement.

Later evaluations in the same setting reuse them.
"""

import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names, autoattack, robustness
from infofeat_jax.evaluation.probes import Probes
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import files, processes
from infofeat_jax.types import InvalidInput

DISTANCE, EVALUATOR = OTHERS = "distance/", "evaluator/"  # prefixes that tell other names from those of attacks
CORRECT = "correct/"  # prefix of the probes' outcomes

Values = Shaped[np.ndarray, " n"]  # of the first n images


class Measured(NamedTuple):
    """Per-image values by name ("pgd20", "distance/cw5"), and the seconds that each measurement took."""

    values: dict[str, Values]
    seconds: dict[str, float]
    sources: dict[str, str]  # {name: digest of the weights that a transfer attack was crafted on}
    batch_size: int = 0  # the smallest that memory running out has forced; 0: it did not run out
    probes: Probes | None = None  # of the model, for the flags; in a file of their own

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


def is_measured(subject: Subject, measured: Measured, name: str) -> bool:
    """Whether a measurement covers all of its images, and the images that it found are there if they are to be kept."""
    complete = len(measured.values.get(name, ())) == expected_count(subject, name)
    return complete and (not subject.keep_adversarial or adversarial(subject, name) is not None)


def load(subject: Subject) -> Measured:
    """What an earlier evaluation in the same setting has measured; transfer attacks only from the same source."""
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
            seconds = {name: seconds[name] for name in values if name in seconds}
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


def load_probes(subject: Subject) -> Probes | None:
    """The probes of an earlier evaluation in the same setting, of as many images."""
    arrays = files.read_arrays(subject.file("probes"), subject.setting) or {}
    correct = {name.removeprefix(CORRECT): value for name, value in arrays.items() if name.startswith(CORRECT)}
    seen = {field: arrays.get(field, np.empty(0)) for field in Probes._fields if field != "correct"}
    count = min(subject.probe_examples, len(subject.split.labels))
    complete = correct and all(len(values) == count for values in (*seen.values(), *correct.values()))
    return Probes(**seen, correct=correct) if complete else None


def save_probes(subject: Subject, probes: Probes) -> None:
    """Saves the probes, with the setting that they belong to."""
    if processes.is_writer():
        correct = {CORRECT + name: values for name, values in probes.correct.items()}
        arrays = probes._asdict() | correct | {"setting": subject.setting}
        del arrays["correct"]
        files.write_arrays_atomically(subject.file("probes"), arrays)


def source_digests(subject: Subject, names: Iterable[str]) -> dict[str, str]:
    """{name: digest of the source's weights} for the transfer attacks among `names`."""
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
