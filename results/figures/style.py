"""How the figures look: sizes, colours that the colour-blind tell apart, markers, labels beside the lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH: Final = 5.0  # inches: a column of print, and on a phone nearly true to size
INK: Final = "#1b1f24"
MUTED: Final = "#5a6270"
GRID: Final = "#d5d9df"
PAPER: Final = "#ffffff"
# Okabe & Ito's colours but for yellow and black, darkened until text in them reads on white (4.5:1), and more
COLOURS: Final = (
    *("#0072b2", "#c04f00", "#00805c", "#b84b8a", "#8a6d00", "#3b4cc0", "#882255", "#55752f", "#287585"),
    *("#7b3fb0", "#7a4b2a"),
)
MARKERS: Final = "osDPX>dph"  # no triangle that points at an edge, which stands for a value beyond it
_FILLS: Final = ("full", "none", "bottom", "left", "top", "right")
RC: Final[Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8.4,
    "axes.titlesize": 9.2,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "epmq",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,  # a $ in a name is a $
}
_LINES: Final = {"expert": "-", "merged": "--", "control": ":"}


class Series:
    """The look of every series of a figure, from ``places``: by label the method's place in the folder.

    So a method has one colour and one marker in every panel and figure of a folder. No two of the first 99
    methods have both in common. What has no place is no method and is drawn in ink.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places

    def colour(self, label: str) -> str:
        """The colour of a series."""
        place = self._places.get(label)
        return INK if place is None else COLOURS[place % len(COLOURS)]

    def line(self, label: str, role: str) -> dict[str, Any]:
        """Matplotlib's arguments for a line: filled markers for the expert target, else hollow."""
        colour = self.colour(label)
        return {
            "label": label,
            "color": colour,
            "marker": MARKERS[self._places.get(label, 0) % len(MARKERS)],
            "linestyle": _LINES.get(role, "--"),
            "markerfacecolor": colour if role == "expert" else PAPER,
            "markeredgecolor": colour,
        }

    def bar(self, label: str, role: str) -> dict[str, Any]:
        """Matplotlib's arguments for bars: filled for the expert target, hatched for controls, or hollow."""
        colour = self.colour(label)
        hatch = {"hatch": "/////"} if role == "control" else {}
        fill = colour if role == "expert" else PAPER
        return {"label": label, "facecolor": fill, "edgecolor": colour, "linewidth": 0.8, **hatch}


def filled_by(rank: int, colour: str) -> dict[str, Any]:
    """Matplotlib's arguments that tell numbers of bits apart by how far a marker of one shape is filled."""
    return {
        "fillstyle": _FILLS[rank % len(_FILLS)],
        "markerfacecolor": colour,
        "markerfacecoloralt": PAPER,
        "markeredgecolor": colour,
    }


def shortened(name: str, length: int = 26) -> str:
    """A name that fits beside a panel."""
    return name if len(name) <= length else name[: length - 1] + "…"


def panels(count: int, height: float, *, right: float = 0.3, left: float = 0.6) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels below each other; margins and the height of each in inches."""
    figure = Figure(figsize=(WIDTH, count * height))
    axes = []
    for index in range(count):
        bottom = (count - 1 - index) * height + 0.45
        axes.append(
            figure.add_axes(
                (
                    left / WIDTH,
                    bottom / (count * height),
                    (WIDTH - left - right) / WIDTH,
                    (height - 0.75) / (count * height),
                )
            )
        )
    return figure, axes


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near ``values``, in their order and at least ``gap`` apart; in [low, high] if they fit.

    Neighbours that would overlap become one block around their mean, until no two blocks overlap.
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    blocks: list[list[int]] = []

    def bottom(block: list[int]) -> float:
        length = gap * (len(block) - 1)
        middle = sum(values[index] for index in block) / len(block)
        return max(low, min(middle - length / 2, high - length))

    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and bottom(blocks[-2]) + gap * len(blocks[-2]) > bottom(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = {index: bottom(block) + gap * rank for block in blocks for rank, index in enumerate(block)}
    return [placed[index] for index in range(len(values))]


def label_beside(
    axes: Axes, ends: Sequence[tuple[float, str, str]], scale: Callable[[float], float] = float
) -> None:
    """Write (height, text, colour) labels at the right of a panel, each with a thin line to its height.

    Labels that would overlap are moved apart; ``scale`` is the y axis's.
    """
    bottom, top = (scale(end) for end in axes.get_ylim())
    inches = axes.get_window_extent().height / axes.figure.dpi
    heights = [min(max((scale(y) - bottom) / (top - bottom), 0), 1) for y, _, _ in ends]
    places = spread(heights, 0.142 / inches, -0.05, 1.05)
    for (_, text, colour), height, place in zip(ends, heights, places, strict=True):
        axes.annotate(
            shortened(text),
            xy=(1.0, height),
            xytext=(1.07, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def floor_of(values: Sequence[float]) -> float:
    """Where an axis may begin so that a collapsed method does not flatten all the others.

    That is the smallest value, unless it lies further below the median than twice what the largest lies
    above it.
    """
    ordered = sorted(values)
    median, largest = ordered[len(ordered) // 2], ordered[-1]
    usable = median - 2 * (largest - median)
    return min(value for value in ordered if value >= usable)


def padded(low: float, high: float, below: float, above: float) -> tuple[float, float]:
    """The ends of an axis for values in [low, high] with shares of their span added at both ends.

    The span is at least 1, so that equal values have room too.
    """
    span = max(high - low, 1.0)
    return low - below * span, high + above * span


def clipped(
    axes: Axes,
    x: float,
    y: float,
    colour: str,
    edge: Literal["left", "bottom", "top"],
    *,
    silent: bool = False,
) -> None:
    """Where a point lies beyond an edge of its panel, put a triangle there, with its number or ``silent``."""
    if edge == "left":
        beyond, place, value = x < axes.get_xlim()[0], (axes.get_xlim()[0], y), x
    else:
        end = axes.get_ylim()[edge == "top"]
        beyond, place, value = (y > end if edge == "top" else y < end), (x, end), y
    if not beyond:
        return
    marker = {"left": "<", "bottom": "v", "top": "^"}[edge]
    axes.plot([place[0]], [place[1]], marker=marker, color=colour, clip_on=False, zorder=5)
    if silent:
        return
    offset = {"left": (5, 0), "bottom": (-4, 1), "top": (5, -4)}[edge]
    words = f"{value:.1f}".replace("-", "−") if abs(value) < 1e4 else f"{value:.1e}"
    axes.annotate(
        words,
        place,
        offset,
        textcoords="offset points",
        color=colour,
        fontsize=7.2,
        va="bottom" if edge == "bottom" else "center",
        ha="right" if edge == "bottom" else "left",
        annotation_clip=False,
    )


_DARK: Final = {
    INK: "#e6e9ed",
    MUTED: "#a2abb8",
    GRID: "#353c45",
    PAPER: "#15181c",
    **dict(
        zip(
            COLOURS,
            (
                *("#4da6e8", "#ff8a4a", "#2fc295", "#e58bc0", "#d9b63a", "#93a0ff", "#e06c9f", "#9cc46e"),
                "#5cc0d3",
                *("#c39bf0", "#d3a179"),
            ),
            strict=True,
        )
    ),
}


def adaptive(svg: str) -> str:
    """The SVG with its colours following the reader's preference for light or dark."""
    names = {colour: f"--c{index}" for index, colour in enumerate(_DARK)}
    light = "".join(f"{name}:{colour};" for colour, name in names.items())
    dark = "".join(f"{name}:{_DARK[colour]};" for colour, name in names.items())
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    coloured = re.sub(
        "|".join(names), lambda match: f"var({names[match.group().lower()]})", svg, flags=re.IGNORECASE
    )
    return re.sub(r"(<svg [^>]*>)", lambda match: match.group() + style, coloured, count=1)
