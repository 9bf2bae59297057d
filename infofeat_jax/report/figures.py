"""The report's figures. Each function draws one; the caller chooses colours and format."""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from infofeat_jax.report import estimate, tables
from infofeat_jax.report.cells import display, display_series
from infofeat_jax.report.runs import Row, Study

# Okabe and Ito's colours, which colour-blind readers tell apart; without black and yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8a6d3b", "#7f7f7f")
MARKERS = "osD^vPX*"
STYLE = {
    "axes.grid": True, "axes.prop_cycle": cycler(color=COLORS), "axes.spines.right": False,
    "axes.spines.top": False, "axes.titlesize": 11, "font.size": 10, "grid.linewidth": 0.6, "legend.frameon": False,
    "svg.hashsalt": "report",  # equal figures are equal files
    "text.parse_math": False,  # names from outside may hold a $
}  # fmt: skip
THEMES = {
    "light": ("#1f2328", "#d8dee4", "#ffffff"),
    "dark": ("#e6e9ed", "#3a414a", "#161a1f"),
    "any": ("#7d8590", "#7d8590", "none"),
}
NARROW = 4.2  # inches: about the width of a phone
Draw = Callable[[Study, bool], Figure | None]  # (study, whether narrow)


def theme(name: str) -> dict:
    """Colours for a "light" or "dark" page, or readable on "any"."""
    ink, lines, ground = THEMES[name]
    inked = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "axes.titlecolor")
    return (
        STYLE | dict.fromkeys(inked, ink) | {"grid.color": lines, "figure.facecolor": ground, "axes.facecolor": ground}
    )


def render(draw: Callable[[], Figure | None], kind: str, theme_name: str = "light", dpi: int = 150) -> bytes | None:
    """The figure as the bytes of a "png" or "svg" file; None if there is nothing to draw."""
    with matplotlib.rc_context(theme(theme_name)):
        figure, file = draw(), io.BytesIO()
        if figure is None:
            return None
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
    return file.getvalue()


def draw_epochs(study: Study, narrow: bool = False) -> Figure | None:
    """Figure 3: validation accuracy over epochs, the mean over a row's seeds, with the range of several."""
    fields = {"clean": "validation_clean_accuracy", "under attack": "validation_robust_accuracy"}
    figure = Figure((NARROW, 7.0) if narrow else (9.5, 3.8), layout="constrained")
    panels = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    for axes, (title, field) in zip(panels, fields.items(), strict=True):
        for index, row in enumerate(study.rows):
            label, epochs, values = validation(row, field)
            if not values.size:
                continue
            color = COLORS[index % len(COLORS)]
            dash = "-" if row.runs else ":"
            marker = MARKERS[index // len(COLORS) % len(MARKERS)]
            axes.plot(epochs, values.mean(0), dash, color=color, label=label, marker=marker, markersize=3)
            if len(values) > 1:
                axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
        axes.set(title=f"Validation accuracy, {title}", xlabel="epoch", ylabel="%")
        axes.xaxis.get_major_locator().set_params(integer=True)
    if not panels[0].lines:
        return None
    _legend(figure, panels[0], narrow)
    return figure


def validation(row: Row, field: str) -> tuple[str, list[int], np.ndarray]:
    """(label, epochs, accuracies in % [seeds, epochs]) of the epochs that all runs have, finished ones if there are."""
    runs = row.runs or [run for run in row.gaps if run.unfinished]
    curves = [
        {line["epoch"]: line[field] for line in run.epochs if isinstance(line.get(field), int | float)} for run in runs
    ]
    curves = [curve for curve in curves if curve]
    epochs = sorted(set.intersection(*map(set, curves))) if curves else []
    label = row.name + ("" if row.runs else " (unfinished)")
    return label, epochs, 100 * np.array([[curve[epoch] for epoch in epochs] for curve in curves])


def draw_steps(study: Study, narrow: bool = False) -> Figure | None:
    """Figure 4: accuracy against the number of steps, one panel for each attacked model."""
    series = {row.name: estimate.step_series(estimate.estimates(row)) for row in study.rows}
    series = {label: families for label, families in series.items() if families}
    # For two points the table is enough.
    series = {label: found for label, found in series.items() if max(map(len, found.values())) > 2}
    if not series:
        return None
    columns = min(len(series), 2 if narrow else 4)
    lines = -(-len(series) // columns)
    figure = Figure((NARROW if narrow else max(2.6 * columns, 4.5), 2.6 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    families = list(dict.fromkeys(family for found in series.values() for family in found))
    for axes, (label, found) in zip(panels.flat, series.items(), strict=False):
        for family, points in found.items():
            index = families.index(family)
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}
            _errorbar(axes, list(points), list(points.values()), label=display_series(family), **style)
        axes.set_title(label)
        axes.tick_params(labelbottom=True)
    panels[0, 0].set_ylim(bottom=0)  # after all are drawn: the panels share their scale
    for axes in panels.flat[len(series) :]:
        axes.remove()
    figure.supxlabel("steps", fontsize=10)
    figure.supylabel("accuracy, %", fontsize=10)
    handles = {
        label: handle
        for axes in panels.flat[: len(series)]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=_legend_columns(handles, narrow))
    return figure


def draw_overview(study: Study, narrow: bool = False) -> Figure | None:
    """Robust accuracy of every row, with its interval, under each of the table's attacks that the row has."""
    measured = {row.name: estimate.estimates(row) for row in study.rows if row.runs}
    attacks = [attack for attack in tables.main_attacks(measured.values()) if attack not in ("clean", "noise")]
    if not attacks:
        return None
    height = max(0.5, 0.11 * len(attacks) + 0.12) * len(measured) + 1.6
    figure = Figure((NARROW if narrow else 7.5, height), layout="constrained")
    axes = figure.subplots()
    for index, attack in enumerate(attacks):
        shift = 0.7 * ((index + 0.5) / len(attacks) - 0.5)
        rows = [(position + shift, row[attack]) for position, row in enumerate(measured.values()) if attack in row]
        _errorbar(axes, [position for position, _ in rows], [value for _, value in rows], across=True,
                  color=COLORS[index % len(COLORS)], marker=MARKERS[(index + index // len(COLORS)) % len(MARKERS)],
                  label=display(attack))  # fmt: skip
    axes.set(yticks=range(len(measured)), yticklabels=list(measured), xlabel="accuracy, % (with 95 % interval)")
    axes.set(xlim=(0, None), ylim=(len(measured) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    for position in range(1, len(measured)):
        axes.axhline(position - 0.5, color=matplotlib.rcParams["grid.color"], linewidth=0.6)
    _legend(figure, axes, narrow)
    return figure


def _errorbar(
    axes: Axes, positions: Sequence, values: Sequence[estimate.Estimate], *, across: bool = False, **style
) -> None:
    """Points with their 95 % intervals, clipped to 0 to 100 %: joined by a line, or `across` it and not joined."""
    means = 100 * np.array([value.mean for value in values])
    ends = 100 * np.clip([(value.low, value.high) for value in values], 0, 1)
    errors = np.maximum([means - ends[:, 0], ends[:, 1] - means], 0)  # rounding leaves -1e-15
    style |= {"capsize": 2, "elinewidth": 1, "markersize": 5, "linewidth": 1.2}
    if across:
        axes.errorbar(means, positions, xerr=errors, linestyle="", **style)
    else:
        axes.errorbar(positions, means, yerr=errors, **style)


def _legend(figure: Figure, axes: Axes, narrow: bool) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(labels, narrow))


def _legend_columns(labels: Collection[str], narrow: bool) -> int:
    """As many as the figure's width has room for."""
    longest = max(map(len, labels)) + 5  # with the sample of the line
    return max(1, min(len(labels), (55 if narrow else 90) // longest, 2 if narrow else 4))


# name: (what draws it, its caption).
FIGURES: dict[str, tuple[Draw, str]] = {
    "overview": (
        draw_overview,
        "Robust accuracy under every attack, with 95 % intervals: over seeds (t) where there are several, else over"
        " images (Wilson). An attack that a row lacks is left out there.",
    ),
    "epochs": (
        draw_epochs,
        "Validation accuracy over the epochs (the paper's Figure 3). Lines: mean over seeds; bands: their range.",
    ),
    "steps": (
        draw_steps,
        "Accuracy against the attack's number of steps (the paper's Figure 4), one panel for each attacked model.",
    ),
}


def all_figures(study: Study) -> Iterator[tuple[str, str, Callable[[bool], Figure | None]]]:
    """Yields (name, caption, function that draws it, narrow or not)."""
    for name, (draw, caption) in FIGURES.items():
        yield name, caption, partial(draw, study)
