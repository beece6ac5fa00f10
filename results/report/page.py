"""One self-contained HTML page of a results folder: tables that sort, figures, claims, provenance, warnings.

Nothing on the page is fetched from anywhere, and its content security policy lets nothing be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from pydantic import JsonValue

from results.analysis.analysis import Analysis
from results.analysis.rows import Row
from results.figures.files import Drawing
from results.paper.compare import compare
from results.paper.findings import READINGS
from results.paper.tables import bounds_table, findings_table, headline_table
from results.report.parts import picture, policy, resource
from results.store.files import os_errors, write_atomically
from results.store.records import Manifest
from results.tables.columns import columns
from results.tables.comparison import for_people, notes
from results.tables.formats import Table, Text, environment, flat


def page(analysis: Analysis, figures: Sequence[Drawing]) -> str:
    """The report of a folder as HTML, with the figures that were drawn of it.

    Raises:
        UserError: the records' samples cannot be used.
    """
    rows = analysis.rows
    beside = compare(analysis)
    style, script = (resource(name) for name in ("report.css", "report.js"))
    return (
        environment()
        .get_template("report.html")
        .render(
            manifest=analysis.manifest,
            notes=notes(analysis, rows),
            marks=beside.marks,
            facts=_facts(analysis.manifest, rows),
            glance=_glance(rows),
            tables=_tables(analysis),
            pictures=[picture(figure) for figure in figures],
            headlines=headline_table(beside),
            bounds=bounds_table(beside),
            readings=READINGS,
            verdicts=[(verdict, findings_table(verdict)) for verdict in beside.verdicts],
            provenance=[*_provenance(analysis.manifest)],
            problems=analysis.problems,
            warnings=_warnings(rows),
            version=version("epmq"),
            style=style,
            script=script,
            policy=policy(style, script),
        )
        + "\n"
    )


def save(analysis: Analysis, figures: Sequence[Drawing], path: Path) -> None:
    """Write the report to the file ``path``."""
    text = page(analysis, figures)
    with os_errors(path, "write the report there"):
        write_atomically(path, text.encode())


def _facts(manifest: Manifest, rows: Sequence[Row]) -> list[tuple[str, str]]:
    records = [record for row in rows for record in row.records]
    done = sum(bool(row.records) for row in rows)
    tasks = {task: result.samples for row in rows for task, result in row.tasks.items()}
    seeds = sorted({record.seed for record in records})
    machines = sorted({f"{record.device}, {record.dtype}" for record in records})
    return [
        ("suite", f"{manifest.suite}, version {manifest.suite_version}"),
        ("cells", f"{done} of {len(rows)} run, {len(records)} records"),
        ("tasks", f"{len(tasks)}, {sum(tasks.values()):,} test samples"),
        ("calibration seeds", ", ".join(map(str, seeds)) or "none"),
        ("measured on", "; ".join(machines) or "nothing"),
        ("begun", manifest.created),
    ]


def _glance(rows: Sequence[Row]) -> Table:
    """The best method of every merge and bits."""
    found = columns(rows, ("quality", "size"), [])
    headers = ("merge", "bits", "method", "target", "bits/weight", "average", "recovery", "vs gptq")
    chosen = [next(column for column in found if column.header == name) for name in headers]
    best = [row for row in rows if row.best]
    cells = [[column.text(row) for column in chosen] for row in best]
    return Table("The best average of each merge and bits", headers, cells, words=4, heading=2)


def _tables(analysis: Analysis) -> list[tuple[str, str, Table]]:
    rows = analysis.rows
    tasks = sorted({task for row in rows for task in row.tasks})
    captions = {
        "quality": "Averages over the tasks, in percent; differences in points",
        "tasks": "Value on each task, in percent",
        "cost": "MB are 1,000,000 bytes; seconds are means over the seeds, peak memory is their largest",
    }
    parts = (
        ("Quality", "quality", ("quality",)),
        ("Task by task", "tasks", ("tasks",)),
        ("Size and cost", "cost", ("size", "cost")),
    )
    return [
        (
            title,
            name,
            replace(for_people(analysis, rows, columns(rows, groups, tasks)), caption=captions[name]),
        )
        for title, name, groups in parts
    ]


def _provenance(manifest: Manifest) -> Iterator[tuple[str, Table]]:
    asked: dict[str, JsonValue] = {name: value for name, value in manifest.asked.items() if name != "cells"}
    parts: dict[str, JsonValue] = {
        "Asked for": asked,
        "Revisions": manifest.revisions,
        "Environment": manifest.environment,
        "Calibration samples": dict(manifest.calibration.items()),
    }
    for title, part in parts.items():
        rows = [[Text(name), Text(value)] for name, value in flat(part)]
        if rows:
            yield title, Table(title, ("what", "value"), rows, words=2)


def _warnings(rows: Sequence[Row]) -> Table | None:
    """Every warning of the records and their layers once, or None where there are none."""
    cells = []
    for row in rows:
        bits = f"{row.bits} bits" if row.bits else "full precision"
        cell = " ".join(part for part in (row.merge, row.name, row.target, bits) if part)
        warnings = [warning for record in row.records for warning in record.warnings]
        for record in row.records:
            warnings += [f"{layer.name}: {warning}" for layer in record.layers for warning in layer.warnings]
        cells += [[Text(cell), Text(warning)] for warning in dict.fromkeys(warnings)]
    return Table("Warnings of the cells", ("cell", "warning"), cells, words=2) if cells else None
