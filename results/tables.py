"""The comparison table as Markdown, CSV, LaTeX or JSON. The same folder gives the same text.

Markdown and LaTeX are for people: percent, the best average of each merge and bits bold, and
`vs gptq` = paired difference to plain GPTQ with its 95 % bootstrap interval. CSV and JSON are for
programs: fractions at full precision, one `accuracy_<task>` per task.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from results.errors import ResultError
from results.files import os_errors, write_atomically
from results.folder import RunFolder
from results.rows import Row, comparison

# stand-ins until names are escaped: no name holds such a character, and ** is as wide
_BOLD, _END = "\ue000\ue000", "\ue001\ue001"


def render(folder: RunFolder, fmt: str) -> str:
    """Return the table of `folder` as "md", "csv", "latex" or "json", ending in a line break.

    Raises
    ------
    ResultError
        where the format is unknown, or a record's per-sample correctness can't be used.
    """
    if fmt not in FORMATS:
        near = difflib.get_close_matches(fmt.lower(), FORMATS, n=1, cutoff=0)
        raise ResultError(
            f"unknown table format {fmt!r}; did you mean {near[0]!r}? known: {', '.join(FORMATS)}"
        )
    rows = comparison(folder)
    return FORMATS[fmt](rows, sorted({task for row in rows for task in row.accuracy}))


def save(folder: RunFolder) -> list[Path]:
    """Write the table in every format beside the records, as `table.md` and so on; returns the paths."""
    paths = []
    for fmt in FORMATS:
        path = folder.path / f"table.{'tex' if fmt == 'latex' else fmt}"
        with os_errors(folder.path, f"write {path.name} there"):
            write_atomically(path, render(folder, fmt).encode())
        paths.append(path)
    return paths


def _markdown(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    text = _tabulate(rows, tasks, "pipe", escape=_escape_markdown)
    return text.replace(_BOLD, "**").replace(_END, "**")


def _escape_markdown(name: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", name)


def _latex(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    text = _tabulate(rows, tasks, "latex_booktabs", escape=str)  # tabulate escapes LaTeX's specials
    text = re.sub(r"(?m)^( *)\[", r"\1{[}", text)  # else an option of the line break before it
    return text.replace("±", r"$\pm$").replace(_BOLD, r"\textbf{").replace(_END, "}")


def _tabulate(rows: Sequence[Row], tasks: Sequence[str], style: str, escape: Callable[[str], str]) -> str:
    names = [escape(task) for task in tasks]
    headers = ["merge", "method", "target", "bits", "bits/weight", *names, "average", "normalised", "vs gptq"]
    cells = [[*_words(row, escape), *_numbers(row, tasks)] for row in rows]
    align = ["left"] * 3 + ["right"] * (len(headers) - 3)
    return tabulate(cells, headers, tablefmt=style, disable_numparse=True, colalign=align) + "\n"


def _words(row: Row, escape: Callable[[str], str]) -> list[str]:
    method = f"{row.method} ({row.settings})" if row.settings else row.method
    return [escape(row.merge or ""), escape(method), escape(row.target or "")]


def _numbers(row: Row, tasks: Sequence[str]) -> list[str]:
    return [
        str(row.bits or "full"),
        "" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
        *("" if task not in row.accuracy else f"{100 * row.accuracy[task]:.1f}" for task in tasks),
        _average(row),
        "" if row.normalised is None else f"{100 * row.normalised:.1f}",
        "" if row.vs_gptq is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in row.vs_gptq)),
    ]


def _average(row: Row) -> str:
    if row.average is None or row.standard_error is None:
        return "not run"
    average = f"{100 * row.average:.2f}"
    if row.best:
        average = f"{_BOLD}{average}{_END}"
    return f"{average} ± {100 * row.standard_error:.2f}"


def _csv(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    text = io.StringIO()
    columns = list(_object(Row("", "", None, "", None, None), tasks))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_object(row, tasks) for row in rows)
    return text.getvalue()


def _json(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    return json.dumps([_object(row, tasks) for row in rows], indent=2, allow_nan=False) + "\n"


def _object(row: Row, tasks: Sequence[str]) -> dict[str, object]:
    value, low, high = row.vs_gptq or (None, None, None)
    return {
        "key": row.key,
        "status": "not run" if row.average is None else "done",
        "kind": row.kind,
        "merge": row.merge,
        "method": row.method,
        "target": row.target,
        "bits": row.bits,
        "seed": row.seed,
        "settings": row.settings,
        "bits_per_weight": row.bits_per_weight,
        **{f"accuracy_{task}": row.accuracy.get(task) for task in tasks},
        "average": row.average,
        "average_standard_error": row.standard_error,
        "normalised": row.normalised,
        "vs_gptq": value,
        "vs_gptq_low": low,
        "vs_gptq_high": high,
    }


FORMATS: dict[str, Callable[[Sequence[Row], Sequence[str]], str]] = {
    "md": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
