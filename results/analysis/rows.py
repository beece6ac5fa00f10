"""The rows of a comparison: which cells it has, their order, and each cell's numbers beside others'."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from results.analysis.groups import Group
from results.analysis.stats import Difference, standard_error
from results.store.records import AskedCell, TaskResult


@dataclass(frozen=True)
class Row:
    """One cell of the comparison, the mean over its seeds. None is "not run" or "does not apply".

    Accuracies and differences are fractions. ``records`` holds the cell's records by seed, none where it was
    not run; ``spread`` is the standard deviation of the average over several seeds; ``settings`` tells rows
    apart that share merge, method, target and bits. ``vs_gptq`` is the paired difference to plain GPTQ and
    ``p_value`` its p-value adjusted for the number of rows so compared (Holm). ``best`` marks the
    highest average among the methods of one merge at the same bits. For ``recovery`` see ``recovered``.
    """

    key: str
    kind: str
    merge: str | None
    method: str
    target: str | None
    bits: int | None
    settings: str = ""
    records: Group = ()
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    average: float | None = None
    standard_error: float | None = None
    spread: float | None = None
    normalised: float | None = None
    recovery: float | None = None
    vs_gptq: Difference | None = None
    p_value: float | None = None
    best: bool = False

    @property
    def name(self) -> str:
        """The method, with what tells this row from others of the same method."""
        return f"{self.method} ({self.settings})" if self.settings else self.method


def recovered(average: float, merged: float, experts: float) -> float | None:
    """(method - merged) / (experts - merged): the share of what merging lost that is got back.

    All three are averages over the same tasks: the cell's, the full-precision merged model's and the
    experts', each on its own task. 0 is as good as merging without quantising, 1 as good as the experts,
    below 0 worse than merging alone. None where the experts are not better than the merged model.
    """
    gap = experts - merged
    return (average - merged) / gap if gap > 0 else None


def measured(group: Group, words: str, recovery: float | None) -> Row:
    """The row of a cell's records; ``words`` tells it from others of its name."""
    first = group[0]
    averages = [record.average for record in group]
    normalised = [record.normalised for record in group if record.normalised is not None]
    tasks = mean_tasks(group)
    return Row(
        key=first.key,
        kind=first.kind,
        merge=first.merge,
        method=first.method,
        target=first.target,
        bits=first.bits,
        settings=words,
        records=group,
        tasks=tasks,
        average=statistics.fmean(averages),
        standard_error=standard_error(tasks),
        spread=statistics.stdev(averages) if len(group) > 1 else None,
        normalised=statistics.fmean(normalised) if len(normalised) == len(group) else None,
        recovery=recovery,
    )


def mean_tasks(group: Group) -> dict[str, TaskResult]:
    """Each task's mean over the group's seeds."""
    return {
        task: result.model_copy(
            update={"value": statistics.fmean(record.tasks[task].value for record in group)}
        )
        for task, result in group[0].tasks.items()
    }


def not_run(cell: AskedCell) -> Row:
    """The row of a cell that was asked for and has no record."""
    seed = (cell.model_extra or {}).get("seed")
    words = "" if seed in (None, 0) else f"seed={seed}"
    return Row(cell.key, cell.kind, cell.merge, cell.method, cell.target, cell.bits, words)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """The rows as a table lists them, the best of each merge and bits marked."""
    return _mark_best(sorted(rows, key=_order))


def _order(row: Row) -> tuple[object, ...]:
    return (
        row.merge is not None,
        row.merge or "",
        row.kind == "method",
        row.method not in ("zero-shot", "merged"),
        -(row.bits or 99),  # full precision before any number of bits
        row.method,
        row.target or "",
        row.settings,
        row.key,
    )


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    averages: dict[tuple[str | None, int | None], list[float]] = defaultdict(list)
    for row in rows:
        if row.kind == "method" and row.average is not None:
            averages[row.merge, row.bits].append(row.average)
    return [
        replace(
            row, best=row.kind == "method" and row.average == max(averages[row.merge, row.bits], default=0)
        )
        for row in rows
    ]
