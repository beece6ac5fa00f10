"""Tables of the pages: rows of committed tables, the paper's headline, what a run would take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tabulate import tabulate

from docs.tools import formats
from docs.tools.records import RUNS, headlines, one, task_fields, task_name, text
from docs.tools.records import tables as committed
from epmq.errors import UserError

ASSUMED_RATE = 2e13  # operations per second of the machine that estimates are written down for
ESTIMATES = ("disk", "memory", "time, evaluation", "time, calibration")


def table(words: Sequence[str]) -> str:
    """The Markdown table that ``words`` ask for.

    Either ``SUITE PATTERN ... : COLUMN, COLUMN, ...`` (rows MERGE/METHOD/BITS and columns of the committed
    table, in its order), or ``tasks SUITE ROW=HEADING ...`` (a line for each task and their average), or
    ``balanced SUITE ROW=HEADING ...`` (balanced accuracies, beside each task's largest class), or ``paper``,
    or ``plan SUITE SUITE ...``, ``registry KIND`` (see docs/tools/registry.py), ``objectives SUITE`` or
    ``formats`` (what loads where, from docs/formats).

    Raises:
        UserError: there is no such table, row or column.
    """
    kind, *rest = words
    if kind == "paper":
        return _headline()
    if kind == "plan":
        return _plans(rest)
    if kind in ("registry", "objectives"):
        return _of_registry(kind, rest)
    if kind == "formats":
        return formats.table()
    if kind == "tasks":
        return _tasks(rest[0], [word.partition("=")[::2] for word in rest[1:]])
    if kind == "balanced":
        return _balanced(rest[0], [word.partition("=")[::2] for word in rest[1:]])
    if kind not in committed():
        raise UserError(f"no committed run is called {kind!r}; known: {', '.join(committed())}")
    line = " ".join(rest)
    patterns, _, columns = line.partition(" : ")
    return _rows(kind, patterns.split(), [column.strip() for column in columns.split(",")])


def _of_registry(kind: str, rest: Sequence[str]) -> str:
    from docs.tools.registry import objectives, registered  # imports torch, which no other page needs

    if len(rest) != 1:
        raise UserError(f"'{kind}' takes one word, not {len(rest)}")
    return registered(rest[0]) if kind == "registry" else objectives(rest[0])


def _rows(suite: str, patterns: Sequence[str], columns: Sequence[str]) -> str:
    lines = (RUNS / suite / "table.md").read_text("utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heading, _, *body = cells
    if unknown := [column for column in columns if column not in heading]:
        raise UserError(f"{suite}/table.md has no column {unknown[0]!r}; known: {', '.join(heading)}")
    for pattern in patterns:
        if not any(fnmatchcase(_name(heading, row), pattern) for row in body):
            raise UserError(f"no row of {suite}/table.md is called {pattern!r}")
    found = [row for row in body if any(fnmatchcase(_name(heading, row), pattern) for pattern in patterns)]
    return _markdown(columns, [[row[heading.index(column)] for column in columns] for row in found])


def _name(heading: Sequence[str], row: Sequence[str]) -> str:
    merge, method, bits = (row[heading.index(column)] for column in ("merge", "method", "bits"))
    return f"{merge or 'none'}/{method}/{bits}"


def _tasks(suite: str, asked: Sequence[tuple[str, str]]) -> str:
    """A line for each task; in a heading, ``_`` stands for a space."""
    found = [one(suite, row) for row, _ in asked]
    lines = [[task_name(f), *(f"{100 * row[f]:.1f}" for row in found)] for f in task_fields(found[0])]
    average = ["average", *(f"{100 * row['average']:.1f}" for row in found)]
    heading = ["task", *((heading or row).replace("_", " ") for row, heading in asked)]
    return _markdown(heading, [*lines, average])


def _balanced(suite: str, asked: Sequence[tuple[str, str]]) -> str:
    """A line for each task of classes: the share of its largest class, then balanced accuracies."""

    def score(row: str, task: str, field: str) -> str:
        return text(f"draws {suite} {row} tasks.{task}.{field} mean")

    first = one(suite, asked[0][0])
    tasks = [field.removeprefix("accuracy_") for field in task_fields(first) if field.startswith("accuracy_")]
    lines = [
        [task, score(asked[0][0], task, "majority"), *(score(row, task, "balanced") for row, _ in asked)]
        for task in tasks
    ]
    heading = ["task", "largest class", *((heading or row).replace("_", " ") for row, heading in asked)]
    return _markdown(heading, lines)


def _headline() -> str:
    heading = ["suite", "merge", "bits", "GPTQ", "E-PMQ"]
    fields = ("suite", "merge", "bits_note", "baseline_value", "epmq_value")
    entries = [
        {**e, "merge": e["merge"] or "not stated", "bits_note": e["bits_note"] or e["bits"]}
        for e in headlines().values()
    ]
    return _markdown(heading, [[entry[name] for name in fields] for entry in entries])


def _plans(names: Sequence[str]) -> str:
    """Estimates of default comparisons, at ``ASSUMED_RATE``; what a plan has to ask the hub is left out."""
    found = {name: _estimates(name) for name in names}
    return _markdown(["", *names], [[what, *(found[name][what] for name in names)] for what in ESTIMATES])


def _estimates(name: str) -> dict[str, str]:
    import torch  # takes seconds, and no other page needs it

    from benchmarks.run.cells import Request, expand
    from benchmarks.run.plan import Plan
    from benchmarks.suites import load as suites
    from benchmarks.workbench.machine import Machine

    suite = suites.load(name)
    cells = expand(Request(**suites.options(suite, "default")))
    text = str(Plan(suite, cells, [], ASSUMED_RATE, Machine(torch.device("cpu"), "float32")))
    lines = [re.split(r"\s{2,}", line) for line in text.splitlines()]
    return {line[0]: line[1] for line in lines if line[0] in ESTIMATES}


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return tabulate([[str(cell) for cell in row] for row in rows], heading, "pipe", disable_numparse=True)
