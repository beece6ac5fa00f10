"""The figure of bars: every method on every task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.figures.data import FigureData, Point, by, number, numbers
from results.figures.style import INK, MUTED, WIDTH, Series, shortened

_COLUMNS = 2
_BAR, _HEADING = 0.142, 0.36  # inches
_LEFT, _RIGHT, _BETWEEN, _BELOW = 1.65, 0.12, 0.16, 0.3
_ORDER = ("merged", "expert", "control")


def tasks(data: FigureData) -> Figure:
    """Draw one small panel of bars per task, two beside each other; lines for its expert and the merge."""
    groups = by(data.points, "task")
    labels = [label for label in by(data.points, "label") if label not in ("experts", "merged")]
    order = {str(point["label"]): _ORDER.index(str(point["role"])) for point in data.points}
    labels.sort(key=order.__getitem__)
    rows = math.ceil(len(groups) / _COLUMNS)
    height = _HEADING + _BAR * len(labels)
    total = rows * height + _BELOW
    figure = Figure(figsize=(WIDTH, total))
    width = (WIDTH - _LEFT - _RIGHT - (_COLUMNS - 1) * _BETWEEN) / _COLUMNS
    for index, (task, points) in enumerate(groups.items()):
        row, column = divmod(index, _COLUMNS)
        left = _LEFT + column * (width + _BETWEEN)
        bottom = total - (row + 1) * height
        ax = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, _BAR * len(labels) / total))
        _panel(ax, points, labels, Series(data.places))
        ax.set_title(f"{shortened(task, 16)}", pad=3, fontsize=8.4)
        ax.annotate(f"n = {points[0]['n']}", (1, 1), (0, 3), xycoords="axes fraction",
                    textcoords="offset points", ha="right", color=MUTED, fontsize=7)  # fmt: skip
        names = [shortened(label, 24) for label in labels]
        ax.set_yticks(range(len(labels)), names if column == 0 else [""] * len(labels))
        below = index + _COLUMNS >= len(groups)
        ax.set_xticks([0, 50, 100], ["0", "50", "100 %"] if below else ["", "", ""])
    return figure


def _panel(ax: Axes, points: Sequence[Point], labels: Sequence[str], series: Series) -> None:
    ax.set_xlim(min(0.0, *numbers(points, "value", 100)), 124)
    ax.set_ylim(len(labels) - 0.45, -0.55)
    ax.tick_params(length=0)
    ax.spines["bottom"].set_visible(False)
    for point in points:
        label, value = str(point["label"]), number(point, "value", 100)
        if label in ("experts", "merged"):
            style = "-" if label == "experts" else (0, (2, 1.5))
            ax.axvline(value, color=INK, linewidth=0.9, linestyle=style, zorder=3)
            continue
        ax.barh(labels.index(label), value, height=0.7, **series.bar(label, str(point["role"])))
        ax.annotate(f"{value:.1f}", (123, labels.index(label)), ha="right", va="center", fontsize=7)
