"""The page of all that is registered: a table for each kind, with measured rows, and what each name does."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from tabulate import tabulate

from baselines import catalogue
from baselines.catalogue import Entry
from benchmarks.studies.objectives import table
from docs.tools.records import ROOT, rows, tables
from epmq.errors import UserError

SUITES = ("micro-clip-8", "micro-glue-8")
KINDS = {
    "merges": catalogue.merges,
    "roundings": catalogue.roundings,
    "methods": catalogue.methods,
    "controls": catalogue.controls,
    "refinements": catalogue.trained,
}
STARTS = ("task-arithmetic", "simple-average", "none")  # of the row that stands for a method
MEASURED = ROOT / "docs" / "measured"


def registered(kind: str) -> str:
    """The table of a kind and, below, what each of its names does, by its docstring and its settings.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"nothing is registered as {kind!r}; known: {', '.join(KINDS)}")
    entries = KINDS[kind]()
    measured = [] if kind == "refinements" else list(SUITES)
    heading = ["name", "family", "needs", "source", *measured]
    lines = [
        [
            f"`{e.name}`",
            e.family,
            e.needs,
            _source(e.reference),
            *(_measured(kind, e.name, s) for s in measured),
        ]
        for e in entries
    ]
    found = tabulate(lines, heading, "pipe", disable_numparse=True)
    return "\n\n".join([found, "\n".join(_told(each) for each in entries)])


def objectives(suite: str) -> str:
    """The table of layer objectives that the study has written of a suite.

    Raises:
        UserError: the study was not run on it.
    """
    file = MEASURED / f"objectives-{suite}.json"
    if not file.is_file():
        raise UserError(f"there is no {file.relative_to(ROOT)}; run benchmarks.studies.objectives on {suite}")
    return table(json.loads(file.read_bytes()))


def _told(entry: Entry) -> str:
    words = " ".join(part for part in (_sentence(entry.summary), entry.about.strip()) if part)
    if entry.settings:
        words += " " + ", ".join(f"`{name} {value}`" for name, value in entry.settings.items()) + "."
    return f"- **`{entry.name}`**: {_markdown(words)}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _markdown(text: str) -> str:
    """A docstring's words: roles and double backticks are Markdown's code; arrows of HTML are none."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda m: f"`{m[1].rpartition('.')[2]}`", text)
    text = text.replace("``", "`")
    outside = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;").replace("*", r"\*") for p in outside)


def _source(reference: str) -> str:
    paper = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})", reference)
    return f"[{paper[1]}](https://arxiv.org/abs/{paper[1]})" if paper else reference


def _measured(kind: str, name: str, suite: str) -> str:
    """The average of the row that stands for a name, with its difference to GPTQ, and where it is from."""
    for folder in _folders(suite):
        if found := _found(kind, name, folder):
            link = f"../results/committed/runs/{folder}/table.md"
            if len(found) > 1:
                return f"[several settings]({link})"
            average, gap = f"[{100 * found[0]['average']:.1f}]({link})", found[0]["vs_gptq"]
            return average if gap is None else f"{average} ({100 * gap:+.1f})"
    return "not run"


def _found(kind: str, name: str, folder: str) -> Sequence[dict[str, Any]]:
    """The row that stands for a name; several where the table has it at several settings alone."""
    if kind == "merges":
        return rows(folder, f"{name}/merged/full")
    places = [(start, bits) for start in STARTS for bits in (4, "full")]
    plain = (rows(folder, f"{start}/{name}/{bits}") for start, bits in places)
    others = (rows(folder, f"{start}/{name} (*)/{bits}") for start, bits in places)
    return next((each for each in (*plain, *others) if each), [])


@cache
def _folders(suite: str) -> list[str]:
    """The committed runs of a suite: its own, then those of other comparisons."""
    return sorted((name for name in tables() if name == suite or name.startswith(f"{suite}-")), key=len)
