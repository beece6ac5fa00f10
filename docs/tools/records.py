"""Numbers of committed records, as a page asks for them.

A query is a line of words; its first names the source:

    micro-clip-8 task-arithmetic/gptq/4 average        a field of a committed table's row, in percent
    micro-clip-8 ties/epmq/4 - ties/gptq/4 average     the difference of two rows, in points
    micro-clip-8 max */epmq*/4 average                 the largest (or min) over the rows of a pattern
    micro-clip-8 ties/gptq/4 vs_gptq unsigned          a difference without its sign, which must be plus
    draws micro-clip-8 ties/epmq/4 tasks.mnist.balanced mean     a score in a row's records, the mean over its
                                                                 draws (or min, max), in percent
    paired micro-clip-8 ties/epmq/4 - ties/gptq/4 value          two rows' paired difference, in points, or an
                                                                 end of its interval, low or high
    paper b32-8-ta-w4 epmq_value                       what results/paper/headline.json says of the paper
    bounds count                                       how many results results/paper/bounds.json holds
    json results/committed/FILE.json 0.distance        an entry of any committed file, as it is; or, with
    json results/committed/FILE.json 0.share percent   a word behind it, a fraction in percent
    code results.tables.columns:STARS.0                a constant of the code

A row is MERGE/METHOD/BITS, with ``none`` for no merge and ``full`` for full precision; where a table names
settings behind a method, ``gptq*group_size=128*`` is how to ask for it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from docs.tools.draws import over_draws, paired
from epmq.errors import UserError

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "committed" / "runs"
PAPER = ROOT / "results" / "paper"
SIGNED = ("vs_gptq",)  # columns that are differences: their sign is always written
PLAIN = ("bits", "packed", "seconds", "peak_memory", "seed", "vs_gptq_p")  # columns that are no fractions
OF_RECORDS = ("draws", "paired")  # sources that read records in place of a table
EXTREMES: dict[str, Callable[[Sequence[float]], float]] = {"max": max, "min": min}


def value(query: str) -> float:
    """The number that a query asks for, in percent where it is a fraction.

    Raises:
        UserError: the source, row or field does not exist, or a pattern that asks for one row fits several.
    """
    source, *words = query.split()
    if source == "paper" and len(words) == 2:
        return float(_field(_headline(words[0]), words[1], query))
    if source in OF_RECORDS:
        return _of_records(source, [word for word in words if word != "unsigned"], query)
    if source == "bounds" and words == ["count"]:
        return len(_json(PAPER / "bounds.json")["entries"])
    if source == "json" and len(words) in (2, 3):
        return _entry(words[0], words[1], query) * (100 if words[2:] == ["percent"] else 1)
    if source == "code" and len(words) == 1:
        return _constant(words[0])
    return _of_table(source, words, query)


def text(query: str) -> str:
    """The number as it is written: one decimal, differences with their sign, the paper's digits as given."""
    source, *words = query.split()
    number = value(query)
    if words[-1] == "percent":
        return f"{number:.1f}"
    if source not in (*tables(), *OF_RECORDS):
        return f"{number:g}"
    if words[-1].startswith(PLAIN):
        return f"{number:.3g}"
    if words[-1] == "unsigned":
        if number < 0:
            raise UserError(f"{query!r} is {number:+.1f}, so that it needs its sign; correct the sentence")
        return f"{number:.1f}"
    signed = "-" in words or words[-1].startswith(SIGNED)  # the minus between two rows is a word of its own
    return f"{number:+.1f}" if signed else f"{number:.1f}"


def tables() -> list[str]:
    """Names of the suites that have a committed run."""
    return sorted(path.parent.name for path in RUNS.glob("*/table.json"))


def rows(suite: str, pattern: str) -> list[dict[str, Any]]:
    """Rows that were run of a committed table, whose MERGE/METHOD/BITS matches a pattern, in their order."""
    found = [row for row in _json(_folder(suite) / "table.json") if row["average"] is not None]
    return [row for row in found if fnmatchcase(name(row), pattern)]


def name(row: dict[str, Any]) -> str:
    """MERGE/METHOD/BITS of a row."""
    method = f"{row['method']} ({row['settings']})" if row["settings"] else row["method"]
    return f"{row['merge'] or 'none'}/{method}/{row['bits'] or 'full'}"


def task_fields(row: dict[str, Any]) -> list[str]:
    """The fields of a row that are scores of a task: those between the size and the average."""
    fields = list(row)
    return fields[fields.index("bits_per_weight") + 1 : fields.index("average")]


def task_name(field: str) -> str:
    """The task of a field METRIC_TASK, with its metric where that is not accuracy."""
    metric, _, task = field.partition("_")
    return task if metric == "accuracy" else f"{task} ({metric})"


def _of_table(suite: str, words: list[str], query: str) -> float:
    match words:
        case [*rest, "unsigned"]:
            return _of_table(suite, rest, query)
        case [("max" | "min") as which, pattern, field]:
            found = [_field(row, field, query) for row in rows(suite, pattern)]
            found = [number for number in found if number is not None]
            if not found:
                raise UserError(f"{query!r}: no row of {suite} matches {pattern!r} and has {field}")
            return EXTREMES[which](found) * _scale(field)
        case [left, "-", right, field]:
            return _of_table(suite, [left, field], query) - _of_table(suite, [right, field], query)
        case [row, field]:
            number = _field(one(suite, row), field, query)
            if number is None:
                raise UserError(f"{query!r}: the row was not run, or has no {field}")
            return float(number) * _scale(field)
    raise UserError(f"{query!r} is no query; see the docstring of docs/tools/records.py")


def _of_records(source: str, words: list[str], query: str) -> float:
    """A score over draws or a paired difference, in percent."""
    match source, words:
        case "draws", [suite, row, field, which]:
            return 100 * over_draws(_folder(suite), row, field, which)
        case "paired", [suite, row, "-", other, end]:
            return 100 * paired(_folder(suite), row, other, end)
    raise UserError(f"{query!r} is no query; see the docstring of docs/tools/records.py")


def _folder(suite: str) -> Path:
    if suite not in tables():
        raise UserError(f"no committed run is called {suite!r}; known: {', '.join(tables())}")
    return RUNS / suite


def _scale(field: str) -> float:
    return 1.0 if field.startswith(PLAIN) else 100.0


def one(suite: str, pattern: str) -> dict[str, Any]:
    """The only row of a committed table that has this name; raises UserError for none or several."""
    found = rows(suite, pattern)
    if len(found) != 1:
        raise UserError(f"{len(found)} rows of {suite} are called {pattern!r}; name one, see its table.md")
    return found[0]


def _field(entry: dict[str, Any], field: str, query: str) -> Any:
    if field not in entry:
        raise UserError(f"{query!r}: there is no field {field!r}; known: {', '.join(sorted(entry))}")
    return entry[field]


def headlines() -> dict[str, dict[str, Any]]:
    """What the paper's abstract says, by the identifier of results/paper/headline.json."""
    return {entry["id"]: entry for entry in _json(PAPER / "headline.json")["headline"]}


def _headline(name: str) -> dict[str, Any]:
    if name not in headlines():
        raise UserError(f"results/paper/headline.json has no entry {name!r}; known: {', '.join(headlines())}")
    return headlines()[name]


def _entry(path: str, place: str, query: str) -> float:
    file = ROOT / path
    if not file.resolve().is_relative_to(ROOT) or not file.is_file():
        raise UserError(f"{query!r}: there is no file {path}")
    found = _json(file)
    try:
        return float(_within(found, place))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{query!r}: {path} has no number at {place}") from error


def _within(found: Any, place: str) -> Any:
    for part in place.split("."):
        found = found[int(part)] if isinstance(found, list | tuple) else found[part]
    return found


def _constant(where: str) -> float:
    module, _, path = where.partition(":")
    attribute, _, place = path.partition(".")
    found = getattr(importlib.import_module(module), attribute)
    return float(_within(found, place) if place else found)


@cache
def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())
