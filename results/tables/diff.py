"""Two runs cell by cell: how accuracy differs, what only one has, and what they were made with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from epmq.errors import UserError, choose
from results.analysis.analysis import Analysis
from results.analysis.groups import described
from results.analysis.rows import Row
from results.analysis.stats import Difference, hierarchical_bootstrap
from results.store.records import Manifest
from results.tables.comparison import REHEARSAL
from results.tables.formats import FOR_PEOPLE, Table, Text, csv_text, escape_markdown, flat, json_text
from results.tables.selection import matching

FORMATS: Final = ("md", "csv", "latex", "json", "html")
_COLUMNS: Final = ("status", "merge", "method", "target", "bits", "quantity", "before", "after")


@dataclass(frozen=True)
class Change:
    """One quantity of a cell, the average or a task, in both runs; ``interval`` where it could be paired."""

    quantity: str
    before: float
    after: float
    interval: Difference | None


@dataclass(frozen=True)
class CellDiff:
    """One cell that both runs have; ``settings`` says what it was not made alike with."""

    row: Row
    settings: tuple[str, ...]
    changes: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not self.settings and all(change.before == change.after for change in self.changes)


@dataclass(frozen=True)
class Diff:
    """What differs between two runs of a suite; ``notes`` must stand above any table of it."""

    caption: str
    cells: tuple[CellDiff, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    provenance: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def diff(before: Analysis, after: Analysis, tasks: Sequence[str] = ()) -> Diff:
    """Compare two runs of one suite; ``tasks`` are wildcard patterns of the tasks to list.

    A difference has its 95 % interval from the paired bootstrap where both runs' manifests name the same
    suite version and data revisions, and the seeds of the two cells agree: then the samples are the same.

    Raises:
        UserError: the suites differ, a pattern matches no task, or correctness cannot be used.
    """
    old, new = before.manifest, after.manifest
    paths = before.folder.path, after.folder.path
    if old.suite != new.suite:
        raise UserError(
            f"{paths[0]} holds results of {old.suite}, {paths[1]} of {new.suite}; give runs of one suite"
        )
    rows = before.rows, after.rows
    shown = matching("task", {task for row in [*rows[0], *rows[1]] for task in row.tasks}, tasks)
    pairs, only_before, only_after = matched_rows(*rows)
    provenance = tuple(_provenance(old, new))
    same_samples = old.suite_version == new.suite_version and not any(
        name.startswith("revisions.datasets") for name, _, _ in provenance
    )
    notes = [REHEARSAL] if old.rehearsal or new.rehearsal else []
    if not same_samples:
        notes.append("the test samples are not known to be the same, so there are no paired intervals")
    cells = [
        CellDiff(
            b, tuple(changed_settings(a, b)), tuple(_changes((before, after), (a, b), shown, same_samples))
        )
        for a, b in pairs
    ]
    return Diff(
        caption=f"{old.suite}: {paths[1]} minus {paths[0]}; percentage points",
        cells=tuple(cells),
        only_before=tuple(only_before),
        only_after=tuple(only_after),
        provenance=provenance,
        notes=tuple(notes),
    )


def _changes(
    sides: tuple[Analysis, Analysis], rows: tuple[Row, Row], shown: set[str], same_samples: bool
) -> Iterator[Change]:
    a, b = rows
    common = [task for task in sorted(a.tasks) if task in b.tasks]
    before, after = ([row.tasks[task].value for task in common] for row in rows)
    pairable = same_samples and _alike(a, b, common)
    runs = [
        [side.outcomes(record) for record in row.records if pairable]
        for side, row in zip(sides, rows, strict=True)
    ]

    def interval(tasks: Sequence[str]) -> Difference | None:
        if not pairable:
            return None
        old, new = ([{task: run[task] for task in tasks} for run in side] for side in runs)
        return hierarchical_bootstrap(new, old)

    if common:
        means = [sum(values) / len(values) for values in (before, after)]
        yield Change("average", means[0], means[1], interval(common))
    for task, old, new in zip(common, before, after, strict=True):
        if task in shown:
            yield Change(task, old, new, interval([task]))


def _alike(a: Row, b: Row, tasks: Sequence[str]) -> bool:
    """Whether two rows have the same seeds and sample counts: else their means are of other draws."""
    seeds = [[record.seed for record in row.records] for row in (a, b)]
    return seeds[0] == seeds[1] and all(a.tasks[task].samples == b.tasks[task].samples for task in tasks)


def _provenance(before: Manifest, after: Manifest) -> Iterator[tuple[str, str, str]]:
    old, new = (dict(flat(_described(manifest))) for manifest in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield name, old.get(name, "none"), new.get(name, "none")


def _described(manifest: Manifest) -> dict[str, JsonValue]:
    return {
        "asked": {name: value for name, value in manifest.asked.items() if name != "cells"},
        "calibration": dict(manifest.calibration),
        "environment": manifest.environment,
        "rehearsal": manifest.rehearsal,
        "revisions": manifest.revisions,
        "suite_version": manifest.suite_version,
    }


# -- as text


def render(found: Diff, fmt: str) -> str:
    """The comparison in one of ``FORMATS``, ending in a line break.

    Markdown and JSON hold everything; CSV, LaTeX and HTML the cells only.

    Raises:
        UserError: the format is unknown.
    """
    choose("table format", fmt, FORMATS)
    if fmt == "json":
        return json_text(_object(found))
    if fmt == "csv":
        entries = [*_entries(found)]
        return csv_text([*_COLUMNS, "difference", "low", "high", "settings"], entries)
    text = FOR_PEOPLE[fmt](cells_table(found))
    return text + "".join(_lists(found)) if fmt == "md" else text


def cells_table(found: Diff) -> Table:
    """The cells that differ as a table for people: one column per task, in percentage points."""
    moved = [cell for cell in found.cells if not cell.same]
    quantities = list(dict.fromkeys(change.quantity for cell in moved for change in cell.changes))
    rows = []
    for cell in moved:
        by_name = {change.quantity: change for change in cell.changes}
        rows.append(
            [
                Text(cell.row.merge or ""),
                Text(cell.row.name),
                Text(cell.row.target or ""),
                Text("; ".join(cell.settings)),
                Text(str(cell.row.bits or "full"), sort=cell.row.bits or 99),
                *(_difference(by_name.get(quantity)) for quantity in quantities),
            ]
        )
    same = len(found.cells) - len(moved)
    caption = f"{found.caption}; {same} of {len(found.cells)} common cells are the same in all of it"
    headers = ["merge", "method", "target", "settings", "bits", *quantities]
    return Table(caption, headers, rows, words=4, heading=1, notes=found.notes)


def _difference(change: Change | None) -> Text:
    if change is None:
        return Text("")
    value = change.after - change.before
    words = f"{100 * value:+.1f}"
    if change.interval is not None:
        words += f" [{100 * change.interval.low:+.1f}, {100 * change.interval.high:+.1f}]"
    return Text(words, sort=value)


def _lists(found: Diff) -> Iterator[str]:
    yield f"\n{escape_markdown(cells_table(found).caption)}\n"
    for title, rows in (("Only in the first", found.only_before), ("Only in the second", found.only_after)):
        if rows:
            yield f"\n{title}:\n\n" + "".join(f"- {escape_markdown(_named(row))}\n" for row in rows)
    if found.provenance:
        yield "\nMade with:\n\n"
        for name, old, new in found.provenance:
            yield f"- {escape_markdown(f'{name}: {_short(old)} → {_short(new)}')}\n"


def _short(value: str) -> str:
    return f"{value[:12]}…" if re.fullmatch(r"[0-9a-f]{40,}", value) else value


def _named(row: Row) -> str:
    bits = f"{row.bits}-bit" if row.bits else "full precision"
    return " ".join(part for part in (row.merge, row.name, row.target, bits) if part)


def _entries(found: Diff) -> Iterator[dict[str, object]]:
    for cell in found.cells:
        for change in cell.changes:
            yield {**_cell(cell.row, "both"), **_change(change), "settings": "; ".join(cell.settings)}
    for status, rows in (("only first", found.only_before), ("only second", found.only_after)):
        for row in rows:
            yield _cell(row, status)


def _cell(row: Row, status: str) -> dict[str, object]:
    return {
        "status": status,
        "merge": row.merge,
        "method": row.name,
        "target": row.target,
        "bits": row.bits,
    }


def _change(change: Change) -> dict[str, object]:
    return {
        "quantity": change.quantity,
        "before": change.before,
        "after": change.after,
        "difference": change.after - change.before,
        "low": None if change.interval is None else change.interval.low,
        "high": None if change.interval is None else change.interval.high,
    }


def _object(found: Diff) -> dict[str, object]:
    return {
        "caption": found.caption,
        "notes": list(found.notes),
        "cells": [
            {
                **_cell(cell.row, "both"),
                "same": cell.same,
                "settings": list(cell.settings),
                "changes": [_change(change) for change in cell.changes],
            }
            for cell in found.cells
        ],
        "only_first": [_cell(row, "only first") for row in found.only_before],
        "only_second": [_cell(row, "only second") for row in found.only_after],
        "made_with": [{"name": name, "first": old, "second": new} for name, old, new in found.provenance],
    }


Pair = tuple[Row, Row]


def matched_rows(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Pair], list[Row], list[Row]]:
    """The pairs of rows that are the same cell, the rows that only ``a`` has, and those only ``b`` has.

    Rows are one cell where kind, merge, method, target and bits agree. Where that leaves several, the pairs
    that share the most settings are made first. A row that was not run is on neither side.
    """
    candidates = sorted(
        (-_likeness(row, other), i, j)
        for i, row in enumerate(a)
        for j, other in enumerate(b)
        if row.records and other.records and _named_cell(row) == _named_cell(other)
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
    """What the two cells were not made alike with, as ``anchor: 0.001 → 0.1``."""
    old, new = described(a.records, {}), described(b.records, {})
    return [
        f"{name}: {_shown(old.get(name))} → {_shown(new.get(name))}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _named_cell(row: Row) -> tuple[object, ...]:
    return row.kind, row.merge, row.method, row.target, row.bits


def _likeness(row: Row, other: Row) -> int:
    """How many settings two cells share; the same key is more than any number of them."""
    old, new = described(row.records, {}), described(other.records, {})
    return (row.key == other.key) * 1000 + sum(old[name] == new.get(name) for name in old)


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
