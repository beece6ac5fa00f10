"""The rows of a comparison: which cells it has, their order, and each cell's numbers beside others'."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from results.analysis.groups import Group, basis, code_hashes, grouped, outcomes, settings, shared_axes
from results.analysis.stats import Difference, hierarchical_bootstrap, holm, paired_test, standard_error
from results.store.folder import RunFolder
from results.store.records import AskedCell, Record, TaskResult


@dataclass(frozen=True)
class Row:
    """One cell of the comparison, the mean over its seeds. None is "not run" or "does not apply".

    Accuracies and differences are fractions. ``records`` holds the cell's records by seed, none where it was
    not run; ``spread`` is the standard deviation of the average over several seeds; ``settings`` tells rows
    apart that share merge, method, target and bits. ``vs_gptq`` is the paired difference to plain GPTQ and
    ``p_value`` its significance, adjusted for the number of rows so compared (Holm). ``best`` marks the
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


def comparison(folder: RunFolder) -> list[Row]:
    """The rows of the folder's table: controls without a merge, then merge by merge.

    Within a merge the full-precision model comes first, then the other controls, then the methods by bits
    descending and name. Cells that were asked for and have no record are rows without numbers.

    Raises:
        UserError: the per-sample correctness of a record cannot be used.
    """
    groups = grouped(folder)
    words = settings(groups, code_hashes(folder))
    measured = [_measured(group, groups, words[group[0].key]) for group in groups]
    known = {record.key for group in groups for record in group}
    missing = [_missing(cell) for cell in folder.manifest.cells if cell.key not in known]
    return _mark_best(sorted(_compared(folder, measured) + missing, key=_order))


def recovered(average: float, merged: float, experts: float) -> float | None:
    """(method - merged) / (experts - merged): the share of what merging lost that is got back.

    All three are averages over the same tasks: the cell's, the full-precision merged model's and the
    experts', each on its own task. 0 is as good as merging without quantising, 1 as good as the experts,
    below 0 worse than merging alone. None where the experts are not better than the merged model.
    """
    gap = experts - merged
    return (average - merged) / gap if gap > 0 else None


def _measured(group: Group, groups: Sequence[Group], words: str) -> Row:
    first = group[0]
    averages = [record.average for record in group]
    normalised = [record.normalised for record in group if record.normalised is not None]
    tasks = {name: _mean_result([record.tasks[name] for record in group]) for name in first.tasks}
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
        recovery=_recovery(group, groups),
    )


def _mean_result(results: Sequence[TaskResult]) -> TaskResult:
    value = statistics.fmean(result.value for result in results)
    return results[0].model_copy(update={"value": value})


def _missing(cell: AskedCell) -> Row:
    seed = (cell.model_extra or {}).get("seed")
    words = "" if seed in (None, 0) else f"seed={seed}"
    return Row(cell.key, cell.kind, cell.merge, cell.method, cell.target, cell.bits, words)


def _recovery(group: Group, groups: Sequence[Group]) -> float | None:
    first = group[0]
    merged = _bound(first, groups, "merged", first.merge)
    experts = _bound(first, groups, "experts", None)
    if first.merge is None or merged is None or experts is None:
        return None
    return recovered(statistics.fmean(record.average for record in group), merged, experts)


def _bound(record: Record, groups: Sequence[Group], method: str, merge: str | None) -> float | None:
    """The average of a full-precision control on the same samples; None where there is none."""
    for group in groups:
        first = group[0]
        if (first.kind, first.method, first.merge) != ("control", method, merge):
            continue
        if merge is not None and first.merge_options != record.merge_options:
            continue
        if _samples(first) == _samples(record):
            return statistics.fmean(other.average for other in group)
    return None


def _samples(record: Record) -> dict[str, int]:
    return {task: result.samples for task, result in record.tasks.items()}


def _compared(folder: RunFolder, rows: Sequence[Row]) -> list[Row]:
    """The rows with their differences to plain GPTQ, and p-values adjusted over all of them."""
    compared, pvalues = [], []
    for row in rows:
        partner = _gptq_partner(row, rows)
        if partner is None:
            compared.append(row)
            continue
        pairs = _pairs(row, partner)
        a, b = ([outcomes(folder, pair[side].key) for pair in pairs] for side in (0, 1))
        compared.append(replace(row, vs_gptq=hierarchical_bootstrap(a, b)))
        pvalues.append(paired_test(a, b))
    adjusted = iter(holm(pvalues).tolist())
    return [replace(row, p_value=next(adjusted)) if row.vs_gptq else row for row in compared]


def _pairs(row: Row, partner: Row) -> list[tuple[Record, Record]]:
    """The records of two rows that share a seed."""
    others = {record.seed: record for record in partner.records}
    return [(record, others[record.seed]) for record in row.records if record.seed in others]


def _gptq_partner(row: Row, rows: Sequence[Row]) -> Row | None:
    """The plain GPTQ row to compare with: same merge, bits, grid, test samples, and a common seed.

    Where calibration settings leave several, it is the one that shares the most of them.
    """
    if _is_plain_gptq(row):
        return None
    partners = [
        other
        for other in rows
        if _is_plain_gptq(other) and basis(other.records[0]) == basis(row.records[0]) and _pairs(row, other)
    ]
    return max(
        partners,
        key=lambda other: (shared_axes(row.records[0], other.records[0]), other.key),
        default=None,
    )


def _is_plain_gptq(row: Row) -> bool:
    return (row.method, row.target) == ("gptq", "merged")


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
