"""The columns of the comparison table: what people read in them, and the fields that programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from results.analysis.rows import Row
from results.tables.formats import Text

GROUPS: Final = ("tasks", "quality", "size", "cost")
# Time and memory differ from run to run, and a table without them is the same after a rerun.
DEFAULT: Final = ("tasks", "quality", "size")
STARS: Final = (0.05, 0.01, 0.001)
SMALLEST_P: Final = 1e-6  # below it a normal approximation's digits mean nothing

Fields = dict[str, object]


@dataclass(frozen=True)
class Column:
    """One column: its heading, its text for a row, and its fields for CSV and JSON.

    ``order`` gives what a row is sorted by, None for an empty cell. A column that is not ``compact`` is left
    out of the default table for people.
    """

    header: str
    group: str
    text: Callable[[Row], Text]
    fields: Callable[[Row], Fields]
    order: Callable[[Row], float | str | None]
    compact: bool = True


def columns(rows: Sequence[Row], groups: Iterable[str], tasks: Sequence[str]) -> list[Column]:
    """The columns of ``groups``, those that say which cell it is first; ``tasks`` in their order."""
    wanted = {"cell", *groups}
    chosen = [*_cell_columns(rows), _bits_per_weight(), *(_task(task, rows) for task in tasks)]
    chosen += [*_quality(), *_ranked(rows)]
    chosen += [_packed(), *(_phase(name) for name in _phases(rows)), _total(), _peak()]
    return [column for column in chosen if column.group in wanted]


def _number(
    name: str,
    header: str,
    group: str,
    value: Callable[[Row], float | None],
    form: str,
    scale: float = 1,
    *,
    compact: bool = True,
) -> Column:
    def text(row: Row) -> Text:
        number = value(row)
        return Text("" if number is None else format(number * scale, form), sort=number)

    return Column(header, group, text, lambda row: {name: value(row)}, value, compact)


def _cell_columns(rows: Sequence[Row]) -> list[Column]:
    def seeds(row: Row) -> str:
        return "+".join(str(record.seed) for record in row.records)

    found = [
        Column("merge", "cell", lambda row: Text(row.merge or ""), _identity, lambda row: row.merge),
        Column("method", "cell", lambda row: Text(row.name), _nothing, lambda row: row.name),
        Column("target", "cell", lambda row: Text(row.target or ""), _nothing, lambda row: row.target),
        Column(
            "bits",
            "cell",
            lambda row: Text(str(row.bits or "full"), sort=row.bits or 99),
            lambda row: {"seeds": seeds(row), "settings": row.settings},
            lambda row: row.bits or 99,
        ),
    ]
    if any(len(row.records) > 1 for row in rows):
        found.append(_number("seed_count", "seeds", "cell", lambda row: len(row.records) or None, "d"))
    if any(record.search for row in rows for record in row.records):
        found.append(
            Column("chosen", "cell", _chosen, lambda row: {"chosen": _chosen(row).plain}, lambda row: None)
        )
    return found


def _chosen(row: Row) -> Text:
    """What a search chose on held-out calibration samples; of several draws every different choice."""
    found = [", ".join(f"{n} {v}" for n, v in r.search.setting.items()) for r in row.records if r.search]
    return Text(" | ".join(dict.fromkeys(found)))


def _identity(row: Row) -> Fields:
    return {
        "key": row.key,
        "status": "done" if row.records else "not run",
        "kind": row.kind,
        "merge": row.merge,
        "method": row.method,
        "target": row.target,
        "bits": row.bits,
    }


def _nothing(row: Row) -> Fields:
    return {}


def _bits_per_weight() -> Column:
    return _number("bits_per_weight", "bits/weight", "size", _first("bits_per_weight"), ".2f")


def _packed() -> Column:
    return _number("packed_bytes", "packed MB", "size", _first("packed_bytes"), ",.2f", 1e-6, compact=False)


def _first(name: str) -> Callable[[Row], float | None]:
    """What is the same for every seed of a cell."""
    return lambda row: getattr(row.records[0], name) if row.records else None


def _task(task: str, rows: Sequence[Row]) -> Column:
    metric = next((row.tasks[task].metric for row in rows if task in row.tasks), "accuracy")
    header = task if metric == "accuracy" else f"{task} ({metric})"
    return _number(
        f"{metric}_{task}",
        header,
        "tasks",
        lambda row: row.tasks[task].value if task in row.tasks else None,
        ".1f",
        100,
    )


def _quality() -> list[Column]:
    return [
        Column("average", "quality", _average, _average_fields, lambda row: row.average),
        _number("normalised", "normalised", "quality", lambda row: row.normalised, ".1f", 100),
        _number("recovery", "recovery", "quality", lambda row: row.recovery, ".1f", 100),
        Column(
            "vs gptq",
            "quality",
            _difference,
            _difference_fields,
            lambda row: None if row.vs_gptq is None else row.vs_gptq.value,
        ),
        Column(
            "p (Holm)",
            "quality",
            lambda row: Text(_p_value(row.p_value), sort=row.p_value),
            lambda row: {"vs_gptq_p": row.p_value},
            lambda row: row.p_value,
            compact=False,
        ),
    ]


def _ranked(rows: Sequence[Row]) -> list[Column]:
    """Of generated answers: the score where answers are ranked, and the share that is none of the task's."""
    if not any(record.average_ranked is not None for row in rows for record in row.records):
        return []
    return [
        _number("average_ranked", "ranked", "quality", _mean_ranked, ".1f", 100),
        _number("invalid", "invalid", "quality", _mean_invalid, ".1f", 100),
    ]


def _mean_ranked(row: Row) -> float | None:
    found = [record.average_ranked for record in row.records if record.average_ranked is not None]
    return fmean(found) if found else None


def _mean_invalid(row: Row) -> float | None:
    shares = [task.invalid for record in row.records for task in record.tasks.values()]
    found = [share for share in shares if share is not None]
    return fmean(found) if found else None


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if value >= SMALLEST_P else f"<{SMALLEST_P:.0e}".replace("e-0", "e-")


def _average(row: Row) -> Text:
    if row.average is None or row.standard_error is None:
        return Text("not run")
    number, error = f"{100 * row.average:.2f}", f" ± {100 * row.standard_error:.2f}"
    if row.spread is not None:
        error += f" (sd {100 * row.spread:.2f})"
    return Text(error if row.best else number + error, strong=number if row.best else "", sort=row.average)


def _average_fields(row: Row) -> Fields:
    return {
        "average": row.average,
        "average_standard_error": row.standard_error,
        "average_spread": row.spread,
        "best": row.best,
    }


def _difference(row: Row) -> Text:
    if row.vs_gptq is None:
        return Text("")
    words = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in row.vs_gptq[:3]))
    return Text(words, stars=stars(row.p_value), sort=row.vs_gptq.value)


def stars(p_value: float | None) -> int:
    """How many stars a p-value gets: 1 below 0.05, 2 below 0.01, 3 below 0.001."""
    return 0 if p_value is None else sum(p_value < level for level in STARS)


def _difference_fields(row: Row) -> Fields:
    value, low, high, _ = row.vs_gptq or (None, None, None, None)
    return {"vs_gptq": value, "vs_gptq_low": low, "vs_gptq_high": high}


def _phases(rows: Sequence[Row]) -> list[str]:
    """The phases that were timed, in the order in which they run."""
    usual = ("merge", "calibrate", "quantise", "evaluate")
    found = {phase for row in rows for record in row.records for phase in record.seconds}
    return sorted(found, key=lambda phase: (usual.index(phase) if phase in usual else len(usual), phase))


def _phase(phase: str) -> Column:
    def mean(row: Row) -> float | None:
        times = [record.seconds[phase] for record in row.records if phase in record.seconds]
        return sum(times) / len(times) if times else None

    return _number(f"seconds_{phase}", f"{phase} s", "cost", mean, ".1f", compact=False)


def _total() -> Column:
    def mean(row: Row) -> float | None:
        times = [sum(record.seconds.values()) for record in row.records if record.seconds]
        return sum(times) / len(times) if times else None

    return _number("seconds", "total s", "cost", mean, ".1f", compact=False)


def _peak() -> Column:
    def largest(row: Row) -> float | None:
        return max((record.peak_memory_bytes for record in row.records), default=None)

    return _number("peak_memory_bytes", "peak MB", "cost", largest, ",.0f", 1e-6, compact=False)
