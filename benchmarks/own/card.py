"""The model card of a checkpoint that no results folder knows: it says how it was made, and no score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from benchmarks.export.card import licence, loading, named, sources
from benchmarks.own.samples import Samples
from benchmarks.run.cells import Cell
from benchmarks.workbench.base import Workbench
from epmq.packed.writing import Written


def card(cell: Cell, workbench: Workbench, samples: Mapping[str, Samples], written: Written) -> str:
    """Markdown with the hub's front matter."""
    suite = workbench.suite
    title = f"{len(suite.tasks)} experts of {named(suite.base)}, merged, {cell.bits} bits"
    parts = [
        f"---\ntags: [epmq, quantised, model-merging]\n---\n\n# {title}",
        "Made by `epmq quantise`. Nothing was measured: what it answers was not compared with its experts.",
        "## Sources\n\n" + sources(suite, workbench.revisions),
        "## How it was made\n\n" + _made(cell, written),
        "## Calibration samples\n\n" + _samples(samples),
        "## Loading\n\n" + loading(written),
        "## Licences\n\n" + _licences(workbench),
    ]
    return "\n\n".join(parts) + "\n"


def _made(cell: Cell, written: Written) -> str:
    given = ", ".join(f"{name} {value}" for name, value in cell.merge_options.items())
    rows = [("merge", f"{cell.start}" + (f" ({given})" if given else "")), ("method", cell.method)]
    if written.packed_weights:
        stored = 8 * written.packed_bytes / written.packed_weights
        rows.append((f"bits a weight in {written.format}, with scales", f"{stored:.3f}"))
    rows.append(("weights on disk", f"{written.file_bytes / 1e6:.2f} MB"))
    axes = ", ".join(f"`{name}` {value}" for name, value in cell.axes.items())
    text = tabulate(rows, ("", ""), "github", disable_numparse=True) + f"\n\nEvery axis: {axes}."
    if written.dense:
        listed = "\n".join(f"- `{name}`: {reason}" for name, reason in sorted(written.dense.items()))
        text += f"\n\nQuantised layers that are stored dense:\n\n{listed}"
    return text


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
    return "This model is derived from these; their terms hold.\n\n" + "\n".join(lines)


def _repository(where: str) -> str:
    """A hub id without its revision."""
    return where if Path(where).is_dir() else where.partition("@")[0]
