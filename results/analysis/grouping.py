"""Which records are one cell of a comparison drawn with several seeds, and what tells like cells apart."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from results.store.folder import RunFolder
from results.store.records import Axis, Record

Group = tuple[Record, ...]
# the fields of the quantisation grid, which two cells that are compared must share
GRID_AXES = ("group_size", "symmetric", "act_order", "block_size", "fit_scales_on", "scale_dtype")


def grouped(folder: RunFolder) -> list[Group]:
    """Return the folder's records, those that differ in `seed` only together, by seed ascending.

    Records made by different code (as the manifest says) are never one group. Of records that agree even
    in the seed each begins a group of its own.
    """
    codes = code_hashes(folder)
    groups: dict[str, list[Record]] = {}
    seen: dict[tuple[str, int], int] = defaultdict(int)
    for record in sorted(folder.records(), key=lambda record: (record.seed, record.key)):
        same = _identity(record, codes)
        repeat = seen[same, record.seed]
        seen[same, record.seed] += 1
        groups.setdefault(f"{same} {repeat}", []).append(record)
    return [tuple(group) for group in groups.values()]


def code_hashes(folder: RunFolder) -> dict[str, str]:
    """Return by key the hash of the code that a cell was asked from, where the manifest has it."""
    codes = {cell.key: (cell.model_extra or {}).get("code") for cell in folder.manifest.cells}
    return {key: code for key, code in codes.items() if isinstance(code, str)}


def settings(groups: Sequence[Group], codes: Mapping[str, str]) -> dict[str, str]:
    """Return by first key what tells a group from those with its merge, method, target and bits.

    For example `anchor=0.1, seed=1`; empty where nothing does.
    """
    alike: dict[tuple[object, ...], dict[str, dict[str, object]]] = defaultdict(dict)
    for group in groups:
        first = group[0]
        named = (first.kind, first.merge, first.method, first.target, first.bits)
        alike[named][first.key] = described(group, codes)
    return {key: _distinct(one, others) for others in alike.values() for key, one in others.items()}


def described(group: Group, codes: Mapping[str, str]) -> dict[str, object]:
    """Return everything that a group was made with, under the names that tables use."""
    first = group[0]
    options: dict[str, Axis] = {f"merge.{name}": value for name, value in first.merge_options.items()}
    seeds = "+".join(str(record.seed) for record in group)
    return {
        **first.axes,
        **options,
        "code": codes.get(first.key, "")[:8],
        "device": first.device,
        "dtype": first.dtype,
        "seed": seeds,
    }


def _identity(record: Record, codes: Mapping[str, str]) -> str:
    fields = record.model_dump(
        mode="json",
        include={
            *("kind", "merge", "merge_options", "method", "rounding", "target", "bits", "axes"),
            *("device", "dtype", "pinned"),
        },
    )
    return json.dumps([fields, sorted(record.tasks), codes.get(record.key)], sort_keys=True)


def _distinct(one: Mapping[str, object], others: Mapping[str, Mapping[str, object]]) -> str:
    varying = [
        name for name in sorted(one) if len({json.dumps(other.get(name)) for other in others.values()}) > 1
    ]
    return ", ".join(f"{name}={one[name]}" for name in varying)


def basis(record: Record) -> tuple[object, ...]:
    """Return what two cells that are compared must share: merge, bits, grid, device, test samples."""
    grid = [record.axes.get(axis) for axis in GRID_AXES]
    samples = {task: (result.metric, result.samples) for task, result in record.tasks.items()}
    named = (record.merge, record.merge_options, record.bits, record.device, record.dtype)
    return (*named, grid, samples)


def shared_axes(record: Record, other: Record) -> int:
    """Return how many axes two cells have in common; of several partners the one that shares most counts."""
    return len(record.axes.items() & other.axes.items())
