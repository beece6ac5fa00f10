"""Reading the points of a figure."""

from __future__ import annotations

from collections.abc import Sequence

from results.figures.data import Point


def by(points: Sequence[Point], name: str) -> dict[str, list[Point]]:
    """Return the points by the field `name`, groups and points in the order in which they come."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(str(point[name]), []).append(point)
    return groups


def number(point: Point, name: str, scale: float = 1) -> float:
    """Return a field that holds a number, times `scale`."""
    value = point[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} of {point} is no number")
    return scale * value


def numbers(points: Sequence[Point], name: str, scale: float = 1) -> list[float]:
    """Return a field of every point, times `scale`."""
    return [number(point, name, scale) for point in points]


def errors(points: Sequence[Point], name: str, scale: float = 100) -> list[list[float]]:
    """Return the lengths of error bars (2, points) from the fields `low` and `high`."""
    middle, low, high = (numbers(points, field, scale) for field in (name, "low", "high"))
    return [
        [m - end for m, end in zip(middle, low, strict=True)],
        [end - m for m, end in zip(middle, high, strict=True)],
    ]


def bit_widths(points: Sequence[Point]) -> list[int | None]:
    """Return the bits of the points, full precision (None) first, then descending."""
    found = {int(number(point, "bits")) for point in points if point["bits"] is not None}
    full: list[int | None] = [None] if any(point["bits"] is None for point in points) else []
    return [*full, *sorted(found, reverse=True)]
