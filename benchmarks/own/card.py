"""The model card of a checkpoint that no results folder knows: it says how it was made, and no score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from benchmarks.export.card import HEAD, derived, licence, loading, making, merge_told, named, sources
from benchmarks.own.samples import Samples
from benchmarks.run.cells import Cell
from benchmarks.workbench.base import Workbench
from epmq.packed.writing import Written


def card(cell: Cell, workbench: Workbench, samples: Mapping[str, Samples], written: Written) -> str:
    """Markdown with the hub's front matter."""
    suite = workbench.suite
    title = f"{len(suite.tasks)} experts of {named(suite.base)}, merged, {cell.bits} bits"
    parts = [
        HEAD + title,
        "Made by `epmq quantise`. Nothing was measured: what it answers was not compared with its experts.",
        "## Sources\n\n" + sources(suite, workbench.revisions),
        "## How it was made\n\n" + _made(cell, written),
        "## Calibration samples\n\n" + _samples(samples),
        "## Loading\n\n" + loading(written),
        "## Licences\n\n" + _licences(workbench),
    ]
    return "\n\n".join(parts) + "\n"


def _made(cell: Cell, written: Written) -> str:
    rows = [("merge", merge_told(cell.start, cell.merge_options)), ("method", cell.method)]
    if written.packed_weights:
        stored = 8 * written.packed_bytes / written.packed_weights
        rows.append((f"bits a weight in {written.format}, with scales", f"{stored:.3f}"))
    rows.append(("weights on disk", f"{written.file_bytes / 1e6:.2f} MB"))
    return making(rows, cell.axes, written)


def _samples(samples: Mapping[str, Samples]) -> str:
    rows = [
        (task, named(each.where), f"{len(each.rows)} of {each.available}", each.revision[:18])
        for task, each in samples.items()
    ]
    table = tabulate(rows, ("task", "from", "samples", "revision"), "github", disable_numparse=True)
    return f"{table}\n\nNo label was read."


def _licences(workbench: Workbench) -> str:
    suite = workbench.suite
    models = {"base": suite.base, **{f"expert of {t.task}": t.expert for t in suite.tasks}}
    lines = [f"- {what} {named(where)}: {licence(_repository(where))}" for what, where in models.items()]
    return derived(lines)


def _repository(where: str) -> str:
    """A hub id without its revision."""
    return where if Path(where).is_dir() else where.partition("@")[0]
