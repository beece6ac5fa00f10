"""The figures of lines: deviations by layer, and what the strength of the anchor does."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from results.figures.data import FigureData, Point, by, errors, numbers
from results.figures.style import MUTED, Series, clipped, filled_by, label_beside, panels, shortened

_DASHES: Final = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_SIDES = {"quantisation": "quantisation deviation", "expert_relative": "expert-relative deviation"}


def deviations(data: FigureData) -> Figure:
    """Draw both deviations by layer as multiples of the merging deviation, one above the other."""
    groups = by(data.points, "label")
    figure, axes = panels(len(_SIDES), 2.75, right=1.85, left=0.58)
    series = Series(data.places)
    for ax, (field, title) in zip(axes, _SIDES.items(), strict=True):
        ends = []
        ax.set_yscale("log")
        ax.set_ylim(*_limits(numbers(data.points, field)))
        for label, points in groups.items():
            ys = [value if value > 0 else math.nan for value in numbers(points, field)]
            look = {**series.line(label, str(points[0]["role"])), "markersize": 2.5, "linewidth": 1.0}
            ax.plot(numbers(points, "index"), ys, **look)
            shown = [value for value in ys if value > 0] or [1.0]
            for x, y in zip(numbers(points, "index"), ys, strict=True):
                clipped(ax, x, y, look["color"], "top", silent=y < max(shown))
            ends.append((shown[-1], label, look["color"]))
        ax.axhline(1, color=MUTED, linewidth=0.9, zorder=1)
        ax.grid(axis="y")
        ax.yaxis.set_major_locator(LogLocator(10))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        ax.set(title=title, xlabel="layer, in the order of the model")
        label_beside(ax, ends, math.log10)
    return figure


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis: what is above 300 medians lies beyond the upper one."""
    positive = [value for value in values if value > 0] or [1.0]
    usable = [value for value in positive if value <= 300 * statistics.median(positive)]
    return min(*usable, 1.0) / 1.4, max(*usable, 1.0) * 1.4


def anchor(data: FigureData) -> Figure:
    """Draw the average by anchor strength, one panel per merge, with intervals."""
    return _by_strength(data, "average", "average (%)", 100)


def search(data: FigureData) -> Figure:
    """Draw the distance to the experts' features by anchor strength, one panel per merge."""
    return _by_strength(data, "distance", "mean squared distance", 1)


def _by_strength(data: FigureData, field: str, unit: str, scale: float) -> Figure:
    merges = by(data.points, "merge")
    figure, axes = panels(len(merges), 2.6, right=1.85, left=0.58)
    series = Series(data.places)
    strengths = sorted(set(numbers(data.points, "anchor")))
    for ax, (merge, points) in zip(axes, merges.items(), strict=True):
        _strength_panel(ax, points, field, scale, strengths, series)
        ax.set(title=shortened(merge, 40), xlabel="anchor strength", ylabel=unit)
    return figure


def _strength_panel(
    ax: Axes,
    points: Sequence[Point],
    field: str,
    scale: float,
    strengths: Sequence[float],
    series: Series,
) -> None:
    ends = []
    ranks: dict[str, int] = defaultdict(int)  # of the lines of one look, by bits or another setting
    for label, group in by(points, "label").items():
        group.sort(key=lambda point: numbers([point], "anchor"))
        look = series.line(label, str(group[0]["role"]))
        rank = ranks[look["color"]]
        ranks[look["color"]] += 1
        look |= {**filled_by(rank, look["color"]), "linestyle": _DASHES[rank % len(_DASHES)]}
        ys = numbers(group, field, scale)
        bars = errors(group, field, scale) if "low" in group[0] else None
        xs = [strengths.index(value) for value in numbers(group, "anchor")]
        ax.errorbar(xs, ys, yerr=bars, elinewidth=0.9, **look)
        ends.append((ys[-1], label, look["color"]))
    ax.grid(axis="y")
    ax.set_xticks(range(len(strengths)), [f"{value:g}" for value in strengths])
    ax.margins(x=0.06, y=0.1)
    label_beside(ax, ends)
