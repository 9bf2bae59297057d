"""What the runs show, in a few words: the most robust row, if it can be told from the others."""

from collections import Counter
from collections.abc import Mapping

from infofeat_jax.evaluation import attack_names
from infofeat_jax.evaluation.heuristics import suspected
from infofeat_jax.report import estimate, notes, paper
from infofeat_jax.report.cells import cell, display
from infofeat_jax.report.estimate import Estimate
from infofeat_jax.report.runs import Row, RunRecord, Study
from infofeat_jax.types import InvalidInput

Gain = tuple[float, float, float] | None  # of the best row over another, within seeds: mean, low, high
NO_ATTACK = "No two rows have an attack in common, so their robustness cannot be compared."
MOST_NAMES = 6


def finding(study: Study) -> str:
    """One or two sentences: the robustness under the strongest attack that the rows have, and what limits it."""
    rows = {row.name: row for row in study.rows if row.runs}
    measured = {name: estimate.complete(row) for name, row in rows.items()}
    if not rows:
        return "There is no finished run yet."
    compared = comparable(measured)
    attack = strongest(compared)
    if attack is None:
        return NO_ATTACK if len(rows) > 1 else "No attack has been measured."
    found = {name: values[attack] for name, values in compared.items()}
    best = max(found, key=lambda name: found[name].mean)
    gains = {name: estimate.gain(rows[best], rows[name], attack) for name in found if name != best}
    tied = [name for name in found if name == best or not is_apart(gains[name], found[best], found[name])]
    lacking = [name for name in measured if name not in compared]
    reason = why({name: gains[name] for name in tied if name != best}, best)
    conclusion = conclude(display(attack), found, best, tied, "these" if lacking else "all", reason)
    left_out = [f"Not compared, as they have other attacks: {listing(lacking)}."] if lacking else []
    return " ".join([conclusion, *left_out, *limits(study, [rows[name] for name in tied], found)])


def is_apart(gain: Gain, best: Estimate, other: Estimate) -> bool:
    """Whether the best row is above another: the gain within seeds if there is one, else the rows' intervals."""
    return bool(other.high < best.low if gain is None else gain[1] > 0)


def why(gains: Mapping[str, Gain], best: str) -> str:
    """Why rows with these gains over them cannot be told from the best."""
    if any(gain is not None and gain[2] < 0 for gain in gains.values()):
        return f"{best} has the highest mean, but not on the seeds that it shares with each of the others"
    if None not in gains.values():
        return f"the 95 % intervals of the differences to {best}, seed by seed, contain zero"
    overlap = f"the 95 % intervals overlap with that of {best}"
    if any(gain is not None for gain in gains.values()):
        return f"{overlap}, or, where both have several seeds, that of the difference contains zero"
    return overlap


def comparable(measured: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Mapping[str, Estimate]]:
    """All rows, if they share an attack; else two or more that have AutoAttack, or the attack that most have."""
    counts = Counter(name for values in measured.values() for name in values if is_attack(name))
    if not counts or max(counts.values()) == len(measured):
        return dict(measured)
    attack = max(counts, key=lambda name: (counts[name] > 1 and name == "autoattack", counts[name]))
    if counts[attack] == 1:
        return dict(measured)
    return {row: values for row, values in measured.items() if attack in values}


def strongest(measured: Mapping[str, Mapping[str, Estimate]]) -> str | None:
    """The strongest attack that all rows have: AutoAttack, else the one that leaves the lowest mean accuracy."""
    shared = [name for name in next(iter(measured.values())) if all(name in values for values in measured.values())]
    shared = [name for name in shared if is_attack(name)]
    if "autoattack" in shared or not shared:
        return "autoattack" if shared else None
    return min(shared, key=lambda name: sum(values[name].mean for values in measured.values()))


def is_attack(name: str) -> bool:
    """Whether a name is an attack on the model itself, within the evaluation's threat model."""
    try:
        spec = attack_names.parse(name)
    except InvalidInput:
        return False
    return spec.attack not in ("clean", "noise") and not spec.source and not spec.has_own_epsilon


def conclude(attack: str, found: Mapping[str, Estimate], best: str, tied: list[str], who: str, reason: str) -> str:
    """The comparison in words: the best row, or those that for a `reason` are not told apart from it."""
    images = f"{found[best].examples:,} test images"
    if len(found) == 1:
        return f"{best} classifies {accuracy(found[best])} of {images} correctly under {attack}."
    of_all = f"{attack}, the strongest attack that {who} have"
    others = sorted((name for name in found if name not in tied), key=lambda name: -found[name].mean)
    if len(tied) == 1:
        second = f"next is {others[0]} with {accuracy(found[others[0]])}"
        return f"{best} is the most robust under {of_all}: {accuracy(found[best])} of {images}; {second}."
    listed = [f"{name} ({accuracy(found[name])})" for name in sorted(tied, key=lambda name: -found[name].mean)]
    if len(listed) > MOST_NAMES:
        listed = [f"the best {len(listed)} of {len(found)}, from {listed[0]} to {listed[-1]},"]
    worse = f" Less robust: {listing(others)}." if others else ""
    return f"Under {of_all}, {listing(listed)} cannot be told apart on {images}: {reason}.{worse}"


def limits(study: Study, rows: list[Row], found: Mapping[str, Estimate]) -> list[str]:
    """What the comparison does not cover: reduced scale, the randomness of training, flagged rows among the best."""
    few = min(value.examples for value in found.values()) < notes.FEW_IMAGES and bool(notes.few_images(study))
    published = paper.TABLES.get(study.paper)
    reduced = published and any(
        paper.kind(notes.deviations_of(study, row, published)) == "reduced setting" for row in study.rows if row.runs
    )
    reasons = [*(["few test images"] if few else []), *(["less than the paper's setting"] if reduced else [])]
    sentences = [f"Reduced scale: {' and '.join(reasons)}."] if reasons else []
    if len(found) > 1 and all(value.runs == 1 for value in found.values()):
        sentences.append("One run each: the randomness of training is not covered.")
    flagged = [row.name for row in rows if any(suspected(_flags(run)) for run in row.runs)]
    if len(flagged) > MOST_NAMES:
        flagged = [f"{len(flagged)} of these {len(rows)}"]
    return sentences + ([f"Flagged (see there): {listing(flagged)}."] if flagged else [])


def _flags(run: RunRecord) -> list[str]:
    return [str(flag) for flag in run.results.get("flags") or ()]  # of another version's file anything


def accuracy(value: Estimate) -> str:
    """The accuracy in % with its interval: "65.0 % [55.3, 73.6]", "70.1 % ±3.0" over seeds."""
    shown = cell(value)
    return f"{shown.value} % {shown.detail}"


def listing(names: list[str]) -> str:
    """The names in words: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
