"""Which row of one run is the same cell as which row of another."""

from __future__ import annotations

from collections.abc import Sequence

from results.analysis.grouping import described
from results.analysis.rows import Row

Pair = tuple[Row, Row]


def matched_rows(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Pair], list[Row], list[Row]]:
    """Return the pairs of rows that are the same cell, the rows that only `a` has, and those only `b` has.

    Rows are one cell where kind, merge, method, target and bits agree. Where that leaves several, the pairs
    that share the most settings are made first. A row that was not run is on neither side.
    """
    candidates = sorted(
        (-_likeness(row, other), i, j)
        for i, row in enumerate(a)
        for j, other in enumerate(b)
        if row.records and other.records and _named(row) == _named(other)
    )
    taken: dict[int, int] = {}
    for _, i, j in candidates:
        if i not in taken and j not in taken.values():
            taken[i] = j
    pairs = [(a[i], b[j]) for i, j in sorted(taken.items())]
    only_a = [row for i, row in enumerate(a) if row.records and i not in taken]
    only_b = [row for j, row in enumerate(b) if row.records and j not in taken.values()]
    return pairs, only_a, only_b


def changed_settings(a: Row, b: Row) -> list[str]:
    """Return what the two cells were not made alike with, as `anchor: 0.001 → 0.1`."""
    old, new = described(a.records, {}), described(b.records, {})
    return [
        f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _named(row: Row) -> tuple[object, ...]:
    return row.kind, row.merge, row.method, row.target, row.bits


def _likeness(row: Row, other: Row) -> int:
    """How many settings two cells share; the same key is more than any number of them."""
    old, new = described(row.records, {}), described(other.records, {})
    return (row.key == other.key) * 1000 + sum(old[name] == new.get(name) for name in old)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
