"""Two runs compared image by image: which test images one is right about under an attack, and the other is not."""

import base64
import json

import numpy as np
import scipy
from jaxtyping import Bool

from infofeat_jax.report import estimate, finding
from infofeat_jax.report.cells import NONE, Cell, display
from infofeat_jax.report.lines import Line
from infofeat_jax.report.runs import RunRecord, Study, read_arrays
from infofeat_jax.report.tables import Table

Outcome = Bool[np.ndarray, " n"]  # which images remain correctly classified


def outcomes(study: Study) -> tuple[str, dict[str, Outcome]]:
    """(attack, {run: outcome}) under the attack of the finding; ("", {}) unless two runs have kept it."""
    measured = finding.comparable({row.label: estimate.complete(row) for row in study.rows if row.runs})
    attack = finding.strongest(measured) if measured else None
    if attack is None:
        return "", {}
    found = {run.name: outcome(study, run, attack) for run in study.runs}
    kept = {name: values for name, values in found.items() if values is not None}
    longest = max((len(values) for values in kept.values()), default=0)
    kept = {name: values for name, values in kept.items() if len(values) == longest}  # the same images
    return (attack, kept) if len(kept) > 1 else ("", {})


def outcome(study: Study, run: RunRecord, attack: str) -> Outcome | None:
    """What the outcomes' file says, if it is what results.json is about."""
    files = ["outcomes.npz"]  # best and latest may be one
    if run.results.get("checkpoint") == "latest":
        files.insert(0, "outcomes_latest.npz")
    found = (read_arrays(study.directory / run.name / file).get(attack) for file in files)
    values = next((values for values in found if values is not None), np.empty(()))
    accuracy, count = estimate.own_accuracies(run).get(attack, (0.0, 0))
    if values.dtype != bool or values.shape != (count,) or not count or abs(values.mean() - accuracy) > 0.5 / count:
        return None
    return values


def tables(study: Study) -> list[Table]:
    """For each two rows: on how many images the first seed of one is right and that of the other wrong."""
    attack, found = outcomes(study)
    firsts = ((row.name, next((run.name for run in row.runs if run.name in found), None)) for row in study.rows)
    rows = {label: found[name] for label, name in firsts if name is not None}
    if len(rows) < 2:
        return []
    lines = [Line(label, [cell(own, other) for other in rows.values()]) for label, own in rows.items()]
    count = len(next(iter(rows.values())))
    title = f"Of {count:,} test images: right under {display(attack)} in the line's run, wrong in the column's"
    remarks = [
        "One run of each row, of the lowest seed. p: McNemar's exact test, two-sided, of whether two runs are right"
        " equally often; it is about these runs, not their methods; of many comparisons some are below 0.05 by chance."
    ]
    return [Table("images", title, list(rows), lines, remarks)]


def cell(own: Outcome, other: Outcome) -> Cell:
    """The number of images that only `own` has right, with McNemar's p."""
    if own is other:
        return Cell(NONE)
    p = mcnemar(own, other)
    return Cell(f"{(own & ~other).sum()}", "(p < 0.001)" if p < 0.001 else f"(p {p:.3f})")


def mcnemar(one: Outcome, other: Outcome) -> float:
    """The p value of McNemar's (1947) test in its exact form: of the images that differ, half favour either."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    if only_one + only_other == 0:
        return 1.0
    return float(scipy.stats.binomtest(only_one, only_one + only_other).pvalue)


def to_json(study: Study) -> str:
    """The outcomes for the page's script, {"attack", "count", "runs": {name: bits, base64}}; to stand in a page."""
    attack, found = outcomes(study)
    runs = {name: base64.b64encode(np.packbits(values).tobytes()).decode() for name, values in found.items()}
    count = max(map(len, found.values()), default=0)
    text = json.dumps({"attack": display(attack) if attack else "", "count": count, "runs": runs})
    return text.replace("<", "\\u003c")  # no name ends the script
