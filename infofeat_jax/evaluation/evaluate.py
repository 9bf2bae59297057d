"""Robust accuracy of a trained model: per-image outcomes of each attack, and their summaries.

Adding a kind of measurement adds an entry to MEASURES (per-image values) or, in `summaries`, to SUMMARIES (what is
derived from them).
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from infofeat_jax import parts
from infofeat_jax.evaluation import (
    attack_names,
    autoattack,
    distances,
    evaluators,
    heuristics,
    pace,
    robustness,
    summaries,
)
from infofeat_jax.evaluation import measured as stored
from infofeat_jax.evaluation.measured import DISTANCE, EVALUATOR, Measured, Values, expected_count, kind_of, plain
from infofeat_jax.evaluation.subject import Subject, Tell
from infofeat_jax.runtime import console, processes
from infofeat_jax.types import InvalidInput

BUDGET = attack_names.Budget("linf", 8 / 255, 2 / 255)  # any: for checks of names
BUSY = 128  # images at once keep an accelerator busy


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
    measured = summaries.look(subject, measure(subject, names, progress=progress), progress=progress)
    results = summaries.summarise(subject, measured)
    lacking = heuristics.unconfirmed([name for name in measured.attacks if name in names])
    if not processes.agreed(bool(lacking) and heuristics.suspected(results["flags"])):
        return measured, results
    whole = subject._replace(probe_examples=0, batch_size=measured.batch_size or subject.batch_size)
    wholes = measure(whole, [*names, *lacking.values()], measured, progress=progress)
    return wholes, summaries.summarise(subject, wholes)


def check_names(
    names: Iterable[str], distance_names: Iterable[str] = (), validation: str = "clean",
    evaluator_names: Iterable[str] = (),
) -> None:  # fmt: skip
    """Raises InvalidInput for unknown names, before anything expensive starts."""
    if not names:
        raise InvalidInput("config.eval.attacks is empty: expected names such as ('clean', 'pgd20')")
    for spec in map(attack_names.parse, (*names, validation)):
        if parts.is_own(spec.attack):
            attack_names.create(spec, BUDGET)  # traced once the images are known
        else:
            _check_known(spec._replace(source="").name)
    spec = attack_names.parse(validation)
    if spec.is_cascade or spec.source:
        raise InvalidInput(f"config.eval.validation_attack = {validation!r}: expected one such as pgd7")
    for name in distance_names:
        distances.check(name)
        _check_known(attack_names.parse(name).name)
    for name in evaluator_names:
        evaluators.create(name)


@cache
def _check_known(name: str) -> None:
    """Checks an attack of ours: it is traced once, however many runs of a study have it."""
    attack_names.check(attack_names.parse(name), BUDGET)


def measure(subject: Subject, names: list[str], known: Measured | None = None, *, progress: bool = True) -> Measured:
    """Measures what has not been measured yet, and saves after each measurement.

    `known`: what has been, where this process knows it; read from disk by default.
    """
    measured, reports, names = known or stored.load(subject), [], list(dict.fromkeys(names))
    before = {name for name in names if stored.is_measured(subject, measured, name)}
    costs = {name: pace.cost(plain(name)) * expected_count(subject, name) for name in names if name not in before}
    if summaries.are_probed(subject, names) and not stored.load_probes(subject):
        costs["probes"] = pace.PROBING * min(subject.probe_examples, len(subject.split.labels))
    with console.progress(len(names), active=progress and processes.is_writer()) as show:
        if subject.suffix:
            show(0, "", f"{subject.suffix.replace('_', ' ').strip()} weights:")
        if advice := advise(subject):
            show(0, "", advice)
        for index, name in enumerate(names):
            if name in before:
                show(index + 1, name, f"{describe(name, measured.values[name])}, measured before")
                continue
            start, before_start = time.perf_counter(), 0.0

            def tell(
                text: str, share: float = 0.0, batch_size: int = 0, seconds_before: float = 0.0,
                index=index, name=name, start=start,
            ) -> None:  # fmt: skip
                nonlocal subject, measured, before_start
                before_start += seconds_before
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
            measured.seconds[name] = round(before_start + time.perf_counter() - start, 2)
            measured.sources.update(stored.source_digests(subject, [name]))
            stored.save(subject, measured)
            line = f"{describe(name, measured.values[name])} ({measured.seconds[name]:.0f} s)"
            show(index + 1, name, line, left=pace.left(reports, costs))
    return measured


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


def describe(name: str, values: Values) -> str:
    """One measurement in words."""
    if name.startswith(DISTANCE):
        return f"distance of {plain(name)} to PGD: {values.mean():.3f}"
    if name.startswith(EVALUATOR):
        return f"{plain(name)}: {values.mean():.4g} on average of {len(values)} images"
    remark = " (not standard AutoAttack)" if attack_names.parse(name).whole else ""
    return f"{name}: {values.mean():.1%} of {len(values)} correct{remark}"


# (subject, name, tell) -> one value per image; stored in outcomes.npz.
MEASURES: dict[str, Callable[[Subject, str, Tell], Values]] = {
    "attack": robustness.measure,
    "autoattack": autoattack.measure,
    "distance": distances.measure,
    "evaluator": evaluators.measure,
}
