"""The figures of docs/reproduction.md and docs/how-to/recipes.md: differences between rows, and robust overfitting."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infofeat_jax.report import figures

Line = tuple[str, list[tuple[float, float, str]]]  # (label, [(difference in points, half of its interval, attack)])
ORDER = ("PGD20", "AutoAttack, quick", "AutoAttack")
LABELS = {"madry": "Madry", "lambda0.1": "InfoFeature, lambda 0.1", "lambda0.5": "InfoFeature, lambda 0.5"}
DECAYS = {"overfitting": (30, 45), "overfitting_thousand": (50, 75)}  # epochs of the studies


def draw(
    directory: pathlib.Path, settings: Sequence[Line], curves: Mapping[str, Mapping[str, list[np.ndarray]]],
    ingredients: Mapping[str, Sequence[Line]],
) -> None:  # fmt: skip
    """Writes them as files that are readable on light and dark pages."""
    with matplotlib.rc_context(figures.theme("any") | {"grid.alpha": 0.35}):
        against_madry = "InfoFeature (lambda 0.1) - Madry, points of accuracy under attack"
        against_plain = "with - without (N-FGSM: - Madry), points of accuracy under attack"
        drawn = {
            "differences": forest({"": settings}, against_madry),
            "ingredients": forest(ingredients, against_plain),
        }
        drawn |= {study: overfitting(found, DECAYS[study]) for study, found in curves.items()}
        for name, figure in drawn.items():
            path = directory / f"reproduction-{name.replace('_', '-')}.png"
            figure.savefig(path, dpi=150, metadata={"Software": None})


def forest(panels: Mapping[str, Sequence[Line]], label: str) -> Figure:
    """Differences with their intervals; the panels, by title, have the same lines."""
    count = max(map(len, panels.values()))
    figure = Figure((8.0, 0.5 * count + 1.3), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, lines) in zip(grid[0], panels.items(), strict=True):
        mark(axes, lines)
        axes.set_title(title, fontsize=10)
    figure.supxlabel(label, fontsize=10)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def mark(axes: Axes, lines: Sequence[Line]) -> None:
    """One line for each label, one mark for each attack."""
    for index, attack in enumerate(ORDER):
        found = [
            (position + 0.16 * (index - 1), mean, half)
            for position, (_, values) in enumerate(lines)
            for mean, half, name in values
            if name == attack
        ]
        if found:
            positions, means, halves = zip(*found, strict=True)
            style = {"color": figures.COLORS[index], "marker": figures.MARKERS[index], "linestyle": "", "capsize": 3}
            axes.errorbar(means, positions, xerr=halves, label=attack, **style)
    axes.axvline(0, color=matplotlib.rcParams["axes.edgecolor"], linewidth=1)
    axes.set(yticks=range(len(lines)), yticklabels=[title for title, _ in lines], ylim=(len(lines) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)


def overfitting(curves: Mapping[str, list[np.ndarray]], decays: Sequence[int]) -> Figure:
    """Robust validation accuracy over epochs, the mean and the range of the seeds; a panel for each smoothing."""
    figure = Figure((8.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, smoothing in zip(panels, ("0.0", "0.5"), strict=True):
        for index, (row, label) in enumerate(LABELS.items()):
            found, color = np.stack(curves[f"{row}-smoothing{smoothing}"]), figures.COLORS[index]
            epochs, values = found[0, :, 0], found[..., 1]
            axes.plot(epochs, values.mean(0), color=color, label=label, linewidth=1.5)
            axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
        for decay in decays:
            axes.axvline(decay, color=matplotlib.rcParams["grid.color"], linestyle=":")
        axes.set(title=f"smoothing {float(smoothing):g}", xlabel="epoch")
    panels[0].set_ylabel("validation accuracy under PGD7, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
