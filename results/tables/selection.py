"""Which rows and columns of a comparison are shown, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from epmq.errors import UserError, nearest
from results.analysis.rows import Row
from results.tables.columns import DEFAULT, GROUPS, Column

Patterns = Sequence[str]


@dataclass(frozen=True)
class Selection:
    """Wildcard patterns (``fnmatch``) that a row must match; an empty one matches all.

    ``tasks`` chooses among the task columns (averages stay those over all tasks), ``columns`` among the
    groups of columns, ``sort`` is a column's heading, with ``:asc`` or ``:desc`` behind it where the usual
    direction (words ascending, numbers descending) is not wanted.
    """

    methods: Patterns = ()
    merges: Patterns = ()
    targets: Patterns = ()
    bits: Patterns = ()
    tasks: Patterns = ()
    columns: Patterns = field(default=())
    sort: str | None = None


def chosen_rows(rows: Sequence[Row], selection: Selection) -> list[Row]:
    """The rows that match; a cell without merge or target is called "none", without bits "full".

    Raises:
        UserError: a pattern matches no row, or no row matches all of them.
    """
    names: list[tuple[str, Patterns, Callable[[Row], str]]] = [
        ("method", selection.methods, lambda row: row.method),
        ("merge", selection.merges, lambda row: row.merge or "none"),
        ("target", selection.targets, lambda row: row.target or "none"),
        ("bits", selection.bits, lambda row: str(row.bits or "full")),
    ]
    found = list(rows)
    for what, patterns, name in names:
        matched = matching(what, {name(row) for row in rows}, patterns)
        found = [row for row in found if name(row) in matched]
    if rows and not found:
        asked = ", ".join(f"{what} {' '.join(patterns)}" for what, patterns, _ in names if patterns)
        raise UserError(f"no cell is of {asked} together; leave one out")
    return found


def matching(what: str, known: Iterable[str], patterns: Patterns) -> set[str]:
    """The names that match any pattern, all of them where there is none.

    Raises:
        UserError: a pattern matches none; the message names the nearest.
    """
    names = sorted(set(known))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"no {what} matches {pattern!r}{nearest(pattern, names)}")
    return {name for name in names if not patterns or any(fnmatchcase(name, one) for one in patterns)}


def chosen_groups(names: Patterns) -> tuple[str, ...]:
    """The column groups that were asked for: the default ones where none, every one for "all".

    Raises:
        UserError: there is no such group.
    """
    for name in names:
        if name not in (*GROUPS, "all"):
            raise UserError(f"unknown columns {name!r}{nearest(name, [*GROUPS, 'all'])}")
    if "all" in names:
        return GROUPS
    return tuple(names) or DEFAULT


def in_order(rows: Sequence[Row], columns: Sequence[Column], sort: str | None) -> list[Row]:
    """The rows by the column that ``sort`` names, empty cells last; as they are where it is None.

    Raises:
        UserError: there is no such column or direction.
    """
    if sort is None:
        return list(rows)
    name, _, direction = sort.partition(":")
    column = next((column for column in columns if column.header == name), None)
    if column is None:
        raise UserError(f"no column is called {name!r}{nearest(name, [x.header for x in columns])}")
    if direction not in ("", "asc", "desc"):
        raise UserError(f"unknown direction {direction!r} in {sort!r}; use {name}:asc or {name}:desc")
    order = column.order
    filled = [row for row in rows if order(row) is not None]
    numbers = any(isinstance(order(row), int | float) for row in filled)
    descending = direction == "desc" or (direction == "" and numbers)
    filled.sort(key=order, reverse=descending)  # type: ignore[arg-type]
    return filled + [row for row in rows if order(row) is None]
