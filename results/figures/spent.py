"""What accuracy costs, and how refinements went: the points of two figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from results.analysis.rows import Row
from results.analysis.stats import NORMAL_95

EVALUATION = "evaluate"  # the phase that is no cost of the model
Label = Callable[[Row], str]
Role = Callable[[Row], str]
Point = dict[str, str | int | float | None]


def seconds(row: Row) -> float:
    """What making a row's model took, the mean over its records: every phase but evaluation, in seconds."""
    spent = [
        sum(value for phase, value in record.seconds.items() if phase != EVALUATION) for record in row.records
    ]
    return statistics.fmean(spent)


def costs(rows: Sequence[Row], label: Label, role: Role) -> list[Point]:
    """Averages against seconds, cheapest first; ``frontier`` is 1 where nothing cheaper is as good."""
    points: list[Point] = []
    for merge in sorted({row.merge for row in rows if row.merge is not None}):
        best = float("-inf")
        for row in sorted((row for row in rows if row.merge == merge), key=seconds):
            if row.average is None or row.standard_error is None:
                continue
            points.append(
                {
                    "merge": merge,
                    "label": label(row),
                    "role": role(row),
                    "seconds": seconds(row),
                    "average": row.average,
                    "low": row.average - NORMAL_95 * row.standard_error,
                    "high": row.average + NORMAL_95 * row.standard_error,
                    "frontier": int(row.average > best),
                }
            )
            best = max(best, row.average)
    return points


def curves(rows: Sequence[Row], label: Label, role: Role) -> list[Point]:
    """Held-out losses by step, of each row's first record; a start that several rows share comes once."""
    points: list[Point] = []
    shared: set[tuple[tuple[int, float], ...]] = set()
    for row in rows:
        for place, result in sorted(row.records[0].refinements.items()):
            losses = tuple((point.step, point.held_out) for point in result.points)
            if place == "before" and losses in shared:
                continue
            shared.add(losses)
            name = label(row) if row.bits is None else f"{label(row)}, {row.bits}-bit"
            for step, loss in losses:
                points.append(
                    {
                        "merge": row.merge,
                        "label": f"{name}, start" if place == "before" and row.bits else name,
                        "method": label(row),
                        "role": role(row),
                        "step": step,
                        "held_out": loss,
                        "kept": int(step == result.best),
                    }
                )
    return points
