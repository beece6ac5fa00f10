"""The rows of a comparison: which cells it has, their order, and each cell's numbers beside GPTQ's."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from results.folder import RunFolder
from results.records import AskedCell, Axis, Record
from results.stats import Difference, paired_bootstrap, standard_error

# the fields of the quantisation grid, which a cell and the GPTQ cell it is compared with must share
_SPEC_AXES = ("group_size", "symmetric", "act_order", "block_size", "fit_scales_on", "scale_dtype")


@dataclass(frozen=True)
class Row:
    """One cell of the comparison. Accuracies and differences are fractions; None is "not run" or "none".

    `settings` tells rows apart that share merge, method, target and bits; it is empty elsewhere. `best`
    marks the highest average among the methods of one merge at the same bits.
    """

    key: str
    kind: str
    merge: str | None
    method: str
    target: str | None
    bits: int | None
    seed: int | None = None
    settings: str = ""
    bits_per_weight: float | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    average: float | None = None
    standard_error: float | None = None
    normalised: float | None = None
    vs_gptq: Difference | None = None
    best: bool = False


def comparison(folder: RunFolder) -> list[Row]:
    """Return the rows of the folder's table: controls without a merge, then merge by merge.

    Within a merge the full-precision model comes first, then the other controls, then the methods by bits
    descending and name. Cells that were asked for and have no record are rows without numbers.

    Raises
    ------
    ResultError
        where the per-sample correctness of a record can't be used.
    """
    records = folder.records()
    settings = _settings(records)
    known = {record.key for record in records}
    ordered = sorted(
        [_measured(folder, record, records, settings[record.key]) for record in records]
        + [_missing(cell) for cell in folder.manifest.cells if cell.key not in known],
        key=_order,
    )
    return _mark_best(ordered)


def _measured(folder: RunFolder, record: Record, records: Sequence[Record], settings: str) -> Row:
    partner = _gptq_partner(record, records)
    difference = None
    if partner is not None:
        difference = paired_bootstrap(folder.correct(record.key), folder.correct(partner.key))
    return Row(
        key=record.key,
        kind=record.kind,
        merge=record.merge,
        method=record.method,
        target=record.target,
        bits=record.bits,
        seed=record.seed,
        settings=settings,
        bits_per_weight=record.bits_per_weight,
        accuracy={task: result.value for task, result in record.tasks.items()},
        average=record.average,
        standard_error=standard_error(record.tasks),
        normalised=record.normalised,
        vs_gptq=difference,
    )


def _missing(cell: AskedCell) -> Row:
    return Row(cell.key, cell.kind, cell.merge, cell.method, cell.target, cell.bits)


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


def _gptq_partner(record: Record, records: Sequence[Record]) -> Record | None:
    """Return the plain GPTQ cell to compare with: same merge, bits, grid, seed and test samples.

    Where calibration settings leave several, it is the one that shares the most of them.
    """
    if _is_plain_gptq(record):
        return None
    partners = [other for other in records if _is_plain_gptq(other) and _pairing(other) == _pairing(record)]
    shared = {other.key: len(other.axes.items() & record.axes.items()) for other in partners}
    return max(partners, key=lambda other: (shared[other.key], other.key), default=None)


def _is_plain_gptq(record: Record) -> bool:
    return (record.method, record.target) == ("gptq", "merged")


def _pairing(record: Record) -> tuple[object, ...]:
    return (
        record.merge,
        record.merge_options,
        record.bits,
        record.seed,
        [record.axes.get(axis) for axis in _SPEC_AXES],
        {task: result.samples for task, result in record.tasks.items()},
    )


def _settings(records: Sequence[Record]) -> dict[str, str]:
    """Return by key what tells a cell from those with its merge, method, target and bits: `seed=1`."""
    groups: dict[tuple[object, ...], dict[str, dict[str, Axis]]] = defaultdict(dict)
    for record in records:
        options = {f"merge.{name}": value for name, value in record.merge_options.items()}
        group = (record.kind, record.merge, record.method, record.target, record.bits)
        groups[group][record.key] = {**record.axes, **options, "seed": record.seed}
    return {key: _distinct(axes, group) for group in groups.values() for key, axes in group.items()}


def _distinct(axes: dict[str, Axis], group: dict[str, dict[str, Axis]]) -> str:
    varying = [
        name for name in sorted(axes) if len({json.dumps(other.get(name)) for other in group.values()}) > 1
    ]
    return ", ".join(f"{name}={axes[name]}" for name in varying)
