"""The result of an evaluation, as values, as a table of text and as HTML."""

import html
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infofeat_jax.evaluation import attack_names, intervals


class Result(NamedTuple):
    """What `evaluate` returns. Dictionaries are by attack; accuracies are in [0, 1]."""

    accuracy: dict[str, float]
    intervals: dict[str, tuple[float, float]]  # 95 %, Wilson: over the choice of images
    worst_case: float | None  # the share of images that withstand all attacks within epsilon
    outcomes: dict[str, Bool[np.ndarray, " n"]]  # which images remain correctly classified
    adversarial: dict[str, Float[np.ndarray, "n ..."]]  # in [0, 1] and the layout of the given images
    flags: tuple[str, ...]  # why robustness may be overestimated
    notes: tuple[str, ...]  # how the model was called, where that is not plain
    seconds: dict[str, float]
    stages: dict[str, float]  # accuracy after each of AutoAttack's stages
    title: str

    @classmethod
    def of(cls, results: Mapping[str, Any], outcomes: Mapping, adversarial: Mapping) -> "Result":
        """From the fields of results.json and the per-image values."""
        accuracy, given = {name: results[name] for name in outcomes}, results["given"]
        between = {name: intervals.wilson(value, len(outcomes[name])) for name, value in accuracy.items()}
        title = (
            f"{given['model']}: accuracy in % on {results['num_examples']:,} images,"
            f" {given['norm']} epsilon {given['epsilon']:.4g}"
        )
        title += f" ({255 * given['epsilon']:.3g}/255)" if given["norm"] == "linf" else ""
        return cls(
            accuracy, between, results["worst_case"], dict(outcomes), dict(adversarial), tuple(results["flags"]),
            tuple(given["notes"]), dict(results["seconds_per_attack"]), dict(results["autoattack_stages"]), title,
        )  # fmt: skip

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table: what, accuracy, interval, seconds."""
        rows = []
        for name, value in self.accuracy.items():
            low, high = self.intervals[name]
            seconds = f"{self.seconds[name]:.1f}" if name in self.seconds else ""
            label = f"{name}, not standard" if attack_names.parse(name).whole else name
            rows.append((label, f"{100 * value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]", seconds))
            if name == "autoattack":
                rows += [(f"  after {stage}", f"{100 * left:.1f}", "", "") for stage, left in self.stages.items()]
        if self.worst_case is not None:
            count = len(next(iter(self.outcomes.values())))
            low, high = intervals.wilson(self.worst_case, count)
            ends = f"[{100 * low:.1f}, {100 * high:.1f}]"
            beyond = any(attack_names.parse(name).has_own_epsilon for name in self.accuracy)
            label = "worst case over those of that epsilon" if beyond else "worst case over these"
            rows.append((label, f"{100 * self.worst_case:.1f}", ends, ""))
        return rows

    @property
    def remarks(self) -> list[str]:
        """The flags as warnings, and the notes."""
        return [*(f"warning: {flag}" for flag in self.flags), *(f"note: {note}" for note in self.notes)]

    def __str__(self) -> str:
        rows = [HEADINGS, *self.rows]
        first, *others = (max(len(row[index]) for row in rows) for index in range(len(HEADINGS)))
        lines = [
            "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
            for row in rows
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines), *self.remarks])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in HEADINGS)
        body = "".join(f"<tr>{''.join(f'<td>{_html(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in self.remarks)
        table = f"<table><caption>{html.escape(self.title)}</caption><tr>{head}</tr>{body}</table>"
        return table + (f"<ul>{remarks}</ul>" if remarks else "")


HEADINGS = ("attack", "accuracy", "95 % interval", "seconds")


def _html(cell: str) -> str:
    return "&nbsp;" * (len(cell) - len(cell.lstrip())) + html.escape(cell.lstrip())
