"""The figures of effort: accuracy against seconds and against bits, and the losses of refinements."""

from __future__ import annotations

import math
from collections import defaultdict

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from results.figures.data import FigureData, by, errors, numbers
from results.figures.style import (
    MUTED,
    Series,
    clipped,
    floor_of,
    label_beside,
    padded,
    panels,
    shortened,
)

_DASHES = ("-", "--", ":", "-.")


def pareto(data: FigureData) -> Figure:
    """Draw averages against seconds, one panel per merge, with the frontier as a line."""
    merges = by(data.points, "merge")
    figure, axes = panels(len(merges), 3.2, right=1.86, left=0.5)
    series = Series(data.places)
    for ax, (merge, points) in zip(axes, merges.items(), strict=True):
        low, high = floor_of(numbers(points, "average", 100)), max(numbers(points, "high", 100))
        ax.set_ylim(*padded(low, high, 0.06, 0.04))
        ax.set_xscale("log")
        ends = []
        for point in points:
            label = str(point["label"])
            look = {**series.line(label, str(point["role"])), "linestyle": "none"}
            (x,), (y,) = numbers([point], "seconds"), numbers([point], "average", 100)
            ax.errorbar([x], [y], yerr=errors([point], "average"), elinewidth=0.9, **look)
            clipped(ax, x, y, look["color"], "bottom")
            ends.append((y, label, look["color"]))
        frontier = [point for point in points if point["frontier"]]
        steps = numbers(frontier, "seconds"), numbers(frontier, "average", 100)
        ax.plot(*steps, drawstyle="steps-post", color=MUTED, linewidth=0.9, zorder=1)
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set(title=shortened(merge, 40), ylabel="average (%)", xlabel="seconds to make the model")
        label_beside(ax, ends)
    return figure


def frontier(data: FigureData) -> Figure:
    """Draw averages against bits per weight, one panel per merge, with the frontier as a line."""
    merges = by(data.points, "merge")
    figure, axes = panels(len(merges), 3.2, right=1.86, left=0.6)
    series = Series(data.places)
    bits = numbers(data.points, "bits_per_weight")
    for ax, (merge, points) in zip(axes, merges.items(), strict=True):
        low, high = floor_of(numbers(points, "average", 100)), max(numbers(points, "high", 100))
        ax.set_ylim(*padded(low, high, 0.08, 0.05))
        ax.set_xlim(min(bits) - 0.2, max(bits) + 0.2)
        ends: dict[str, tuple[float, str, str]] = {}
        for point in points:
            label = str(point["label"])
            look = {**series.line(label, "expert" if point["frontier"] else "merged"), "linestyle": "none"}
            (x,), (y,) = numbers([point], "bits_per_weight"), numbers([point], "average", 100)
            ax.errorbar([x], [y], yerr=errors([point], "average"), elinewidth=0.9, **look)
            clipped(ax, x, y, look["color"], "bottom", silent=True)
            ends[label] = y, label, look["color"]  # of several sizes the largest
        ahead = [point for point in points if point["frontier"]]
        steps = numbers(ahead, "bits_per_weight"), numbers(ahead, "average", 100)
        ax.plot(*steps, drawstyle="steps-post", color=MUTED, linewidth=0.9, zorder=1)
        ax.grid(axis="y")
        ax.set(title=shortened(merge, 40), ylabel="average (%)", xlabel="bits per weight")
        label_beside(ax, list(ends.values()))
    return figure


def curves(data: FigureData) -> Figure:
    """Draw held-out losses by step, one panel per merge; a mark where the state was kept."""
    merges = by(data.points, "merge")
    figure, axes = panels(len(merges), 3.2, right=1.86, left=0.58)
    series = Series(data.places)
    for ax, (merge, points) in zip(axes, merges.items(), strict=True):
        ends = []
        ranks: dict[str, int] = defaultdict(int)
        ax.set_yscale("log")
        for label, group in by(points, "label").items():
            look = series.line(str(group[0]["method"]), str(group[0]["role"]))
            style = _DASHES[ranks[look["color"]] % len(_DASHES)]
            ranks[look["color"]] += 1
            xs, ys = numbers(group, "step"), numbers(group, "held_out")
            kept = [bool(point["kept"]) for point in group]
            ax.plot(xs, ys, **{**look, "linestyle": style, "markevery": kept})
            ends.append((ys[-1], label, look["color"]))
        ax.grid(axis="y")
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 3, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set(title=shortened(merge, 40), ylabel="held-out loss", xlabel="step")
        label_beside(ax, ends, math.log10)
    return figure
