"""The two figures of averages: accuracy against bits, and recovery of the merge-to-expert gap."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from results.figures.data import BOUNDS, FigureData, Point, bit_widths, by, errors, number, numbers
from results.figures.style import (
    INK,
    MUTED,
    Series,
    clipped,
    filled_by,
    floor_of,
    label_beside,
    padded,
    panels,
    shortened,
)

_BESIDE_FULL = 1.05  # of the axis, for the names of the bounds
_LINE = 0.04  # of the height, for a line of text


def accuracy(data: FigureData) -> Figure:
    """Draw the average by bits, full precision at the left, one panel per merge."""
    merges = by([point for point in data.points if point["merge"] is not None], "merge")
    figure, axes = panels(len(merges), 3.2, right=1.86, left=0.5)
    bits = [None, *(bit for bit in bit_widths(data.points) if bit is not None)]
    series = Series(data.places)
    for ax, merge in zip(axes, merges, strict=True):
        points = [point for point in data.points if point["merge"] in (merge, None)]
        _accuracy_panel(ax, points, bits, series)
        ax.set(title=shortened(merge, 40), ylabel="average (%)", xlabel="bits")
    return figure


def _accuracy_panel(ax: Axes, points: Sequence[Point], bits: Sequence[int | None], series: Series) -> None:
    bounds = [point for point in points if point["label"] in BOUNDS and point["bits"] is None]
    ceilings = [point for point in points if point["bits"] is None and point not in bounds]
    groups = by([point for point in points if point["bits"] is not None], "label")
    shown = [number(point, "average", 100) for group in groups.values() for point in group]
    low = min([floor_of(shown), *numbers([*bounds, *ceilings], "average", 100)])
    high = max(numbers(points, "average", 100))
    ax.set_ylim(*padded(low, high, 0.06, 0.07))
    ax.set_xlim(-_BESIDE_FULL, _place(bits[-1], bits) + 0.3)
    ax.set_xticks([_place(bit, bits) for bit in bits], [str(bit or "full") for bit in bits])
    ax.grid(axis="y")
    _bounds(ax, bounds)
    _ceilings(ax, ceilings, series)
    ends = []
    for index, (label, group) in enumerate(groups.items()):
        shift = 0.34 * (index / max(len(groups) - 1, 1) - 0.5)
        ends.append(_line(ax, label, group, bits, shift, series))
    label_beside(ax, ends)


def _place(bits: object, widths: Sequence[int | None]) -> float:
    """Where a number of bits stands on the axis: full precision has room for names beside it."""
    index = widths.index(bits)
    return index + 0.6 if index else 0


def _bounds(ax: Axes, points: Sequence[Point]) -> None:
    for point in points:
        value = number(point, "average", 100)
        ax.axhline(value, color=INK, linewidth=0.7, zorder=1)
        words = f"{point['label']} {value:.1f}"
        ax.annotate(
            words, (-_BESIDE_FULL, value), (2, 1.5), textcoords="offset points", color=INK, fontsize=7
        )


def _ceilings(ax: Axes, points: Sequence[Point], series: Series) -> None:
    """Draw what is in full precision, names beside it, one above the other where they would overlap."""
    low, high = ax.get_ylim()
    free = low
    for point in sorted(points, key=lambda point: number(point, "average")):
        label, value = str(point["label"]), number(point, "average", 100)
        look = series.line(label, str(point["role"]))
        ax.errorbar([0], [value], yerr=errors([point], "average"), elinewidth=0.9, **look)
        height = max(value, free)
        words, colour = shortened(label, 28), look["color"]
        ax.annotate(words, (0, height), (4, 2), textcoords="offset points", color=colour, fontsize=6.6)
        free = height + _LINE * (high - low)


def _line(
    ax: Axes,
    label: str,
    points: Sequence[Point],
    bits: Sequence[int | None],
    shift: float,
    series: Series,
) -> tuple[float, str, str]:
    """Draw one series; return the height, text and colour of its label."""
    points = sorted(points, key=lambda point: _place(point["bits"], bits))
    xs = [_place(point["bits"], bits) + shift for point in points]
    ys = numbers(points, "average", 100)
    look = series.line(label, str(points[0]["role"]))
    ax.errorbar(xs, ys, yerr=errors(points, "average"), elinewidth=0.9, **look)
    for x, y in zip(xs, ys, strict=True):
        clipped(ax, x, y, look["color"], "bottom")
    return ys[-1], label, look["color"]


def recovery(data: FigureData) -> Figure:
    """Draw the recovery of every method with its interval, one panel per merge, bits by the filling."""
    merges = by(data.points, "merge")
    most = max(len(by(points, "label")) for points in merges.values())
    figure, axes = panels(len(merges), 0.9 + 0.3 * most, left=1.8, right=0.2)
    bits = bit_widths(data.points)
    series = Series(data.places)
    low = min(0.0, floor_of(numbers(data.points, "recovery", 100)))
    high = max(numbers(data.points, "high", 100))
    for ax, (merge, points) in zip(axes, merges.items(), strict=True):
        ax.set_xlim(*padded(low, high, 0.12, 0.05))
        _recovery_panel(ax, points, bits, series)
        ax.set(title=shortened(merge, 40), xlabel="recovery (%)")
    _legend(figure, bits)
    return figure


def _recovery_panel(ax: Axes, points: Sequence[Point], bits: Sequence[int | None], series: Series) -> None:
    groups = by(points, "label")
    labels = sorted(groups, key=lambda label: -max(numbers(groups[label], "recovery")))
    ax.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.axvline(0, color=MUTED, linewidth=0.9, zorder=1)
    for point in points:
        label, rank = str(point["label"]), bits.index(point["bits"])
        own = bit_widths(groups[label])
        y = labels.index(label) + 0.4 * (own.index(bits[rank]) - (len(own) - 1) / 2) / max(len(own) - 1, 1)
        look = {**series.line(label, "expert"), **filled_by(rank, series.colour(label)), "linestyle": "none"}
        look["markersize"] = 5.5
        x = number(point, "recovery", 100)
        ax.errorbar([x], [y], xerr=errors([point], "recovery"), elinewidth=1.1, **look)
        clipped(ax, x, y, look["color"], "left")


def _legend(figure: Figure, bits: Sequence[int | None]) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            **filled_by(rank, MUTED),
            label=f"{bit}-bit" if bit else "full",
        )
        for rank, bit in enumerate(bits)
    ]
    figure.legend(
        handles=handles,
        loc="upper left",
        ncols=len(bits),
        frameon=False,
        handletextpad=0,
        columnspacing=0.6,
        borderaxespad=0.3,
    )
