"""The figures of docs/reproduction.md: InfoFeature against Madry setting by setting, and robust overfitting."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from infofeat_jax.report import figures

Line = tuple[str, list[tuple[float, float, str]]]  # (setting, [(difference in points, half of its interval, attack)])
ORDER = ("PGD20", "AutoAttack, quick", "AutoAttack")
LABELS = {"madry": "Madry", "lambda0.1": "InfoFeature, lambda 0.1", "lambda0.5": "InfoFeature, lambda 0.5"}
DECAYS = {"overfitting": (30, 45), "overfitting_thousand": (50, 75)}  # epochs of the studies


def draw(directory: pathlib.Path, lines: Sequence[Line], curves: Mapping[str, Mapping[str, list[np.ndarray]]]) -> None:
    """Writes them as files that are readable on light and dark pages."""
    with matplotlib.rc_context(figures.theme("any") | {"grid.alpha": 0.35}):
        drawn = {"differences": forest(lines)}
        drawn |= {study: overfitting(found, DECAYS[study]) for study, found in curves.items()}
        for name, figure in drawn.items():
            path = directory / f"reproduction-{name.replace('_', '-')}.png"
            figure.savefig(path, dpi=150, metadata={"Software": None})


def forest(lines: Sequence[Line]) -> Figure:
    """One line for each setting, one mark for each attack."""
    figure = Figure((8.0, 0.5 * len(lines) + 1.3), layout="constrained")
    axes = figure.subplots()
    for index, attack in enumerate(ORDER):
        found = [
            (position + 0.16 * (index - 1), mean, half)
            for position, (_, values) in enumerate(lines)
            for mean, half, name in values
            if name == attack
        ]
        positions, means, halves = zip(*found, strict=True)
        style = {"color": figures.COLORS[index], "marker": figures.MARKERS[index], "linestyle": "", "capsize": 3}
        axes.errorbar(means, positions, xerr=halves, label=attack, **style)
    axes.axvline(0, color=matplotlib.rcParams["axes.edgecolor"], linewidth=1)
    axes.set(yticks=range(len(lines)), yticklabels=[title for title, _ in lines], ylim=(len(lines) - 0.5, -0.5))
    figure.supxlabel("InfoFeature (lambda 0.1) - Madry, points of accuracy under attack", fontsize=10)
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside upper center", ncols=len(ORDER))
    return figure


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
