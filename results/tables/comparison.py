"""The comparison table as Markdown, CSV, LaTeX, JSON or HTML. The same folder gives the same text.

Markdown, LaTeX and HTML are for people: percent, the best average of each merge and bits bold, and
``vs gptq`` = paired difference to plain GPTQ with its 95 % bootstrap interval, with stars for its
significance in LaTeX and HTML. CSV and JSON are for programs: fractions at full precision, one
``accuracy_<task>`` per task.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from epmq.errors import choose
from results.analysis.analysis import Analysis
from results.analysis.rows import Row
from results.store.files import os_errors, write_atomically
from results.tables.columns import Column, columns
from results.tables.formats import FOR_PEOPLE, Table, csv_text, json_text
from results.tables.selection import Selection, chosen_groups, chosen_rows, in_order, matching

REHEARSAL = "rehearsal: made-up stand-ins, not results"
FORMATS = ("md", "csv", "latex", "json", "html")
_EVERYTHING = Selection()
_WORDS = 3  # merge, method, target


def render(analysis: Analysis, fmt: str, selection: Selection = _EVERYTHING) -> str:
    """The table of a folder as one of ``FORMATS``, ending in a line break.

    Raises:
        UserError: the format is unknown, ``selection`` names what is not there, or a record's per-sample
            correctness cannot be used.
    """
    choose("table format", fmt, FORMATS)
    rows, shown = chosen(analysis.rows, selection, compact=fmt in FOR_PEOPLE)
    if fmt in FOR_PEOPLE:
        return FOR_PEOPLE[fmt](for_people(analysis, rows, shown))
    entries = [_fields(analysis, row, shown) for row in rows]
    if fmt == "json":
        return json_text(entries)
    return csv_text(list(_fields(analysis, Row("", "", None, "", None, None), shown)), entries)


def chosen(rows: Sequence[Row], selection: Selection, *, compact: bool) -> tuple[list[Row], list[Column]]:
    """The rows and columns that ``selection`` asks for; ``compact`` thins the default columns."""
    tasks = matching("task", {task for row in rows for task in row.tasks}, selection.tasks)
    found = columns(rows, chosen_groups(selection.columns), sorted(tasks))
    shown = [column for column in found if column.compact] if compact and not selection.columns else found
    sortable = columns(rows, chosen_groups(["all"]), sorted(tasks))
    return in_order(chosen_rows(rows, selection), sortable, selection.sort), shown


def for_people(analysis: Analysis, rows: Sequence[Row], shown: Sequence[Column]) -> Table:
    """The rows as a table for people, with the notes that must stand on every table."""
    manifest = analysis.manifest
    return Table(
        caption=f"{manifest.suite} version {manifest.suite_version}; accuracy in percent",
        headers=[column.header for column in shown],
        rows=[[column.text(row) for column in shown] for row in rows],
        words=_WORDS,
        heading=1,
        notes=notes(analysis, rows),
    )


def notes(analysis: Analysis, rows: Sequence[Row]) -> list[str]:
    """What a reader of any number of these rows must know."""
    found = [REHEARSAL] if analysis.manifest.rehearsal else []
    loose = sum(not record.pinned for row in rows for record in row.records)
    if loose:
        found.append(f"{loose} records are of revisions that no lock pins: they may not be reproducible")
    return found


def table_file(folder: Path, fmt: str) -> Path:
    """Where the table of a format is saved."""
    return folder / f"table.{'tex' if fmt == 'latex' else fmt}"


def save(analysis: Analysis) -> list[Path]:
    """Write the table in every format beside the records, as ``table.md`` and so on; returns the paths."""
    folder, paths = analysis.folder.path, []
    for fmt in FORMATS:
        path = table_file(folder, fmt)
        with os_errors(folder, f"write {path.name} there"):
            write_atomically(path, render(analysis, fmt).encode())
        paths.append(path)
    return paths


def _fields(analysis: Analysis, row: Row, shown: Sequence[Column]) -> dict[str, object]:
    fields = {name: value for column in shown for name, value in column.fields(row).items()}
    pinned = all(record.pinned for record in row.records) if row.records else None
    return {**fields, "pinned": pinned, "rehearsal": analysis.manifest.rehearsal}
