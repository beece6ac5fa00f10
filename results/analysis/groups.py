"""Which cells of a run are compared with which: groups of seeds, and what they were done on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from results.analysis.stats import Outcome, Ranked
from results.store.records import Axis, Manifest, Record
from results.store.samples import PREDICTION, REFERENCE, Samples


def pairs(group: Group, other: Group) -> list[tuple[Record, Record]]:
    """The records of two groups that share a seed."""
    by_seed = {record.seed: record for record in other}
    return [(record, by_seed[record.seed]) for record in group if record.seed in by_seed]


def outcomes(samples: Samples) -> dict[str, Outcome]:
    """The outcome of every task of a cell: right or wrong, or ``Ranked`` for Spearman's rho."""
    predictions = samples.predictions
    referenced = [name.removesuffix(REFERENCE) for name in predictions if name.endswith(REFERENCE)]
    ranked = [task for task in referenced if task not in samples.correct]  # the others' are of classes
    ends = (PREDICTION, REFERENCE)
    return {
        **samples.correct,
        **{task: Ranked(*(predictions[task + end].astype(np.float64) for end in ends)) for task in ranked},
    }


def ranked_outcomes(samples: Samples) -> dict[str, Outcome]:
    """Right or wrong by task where the task's answers were ranked by their likelihood; no other task."""
    return dict(samples.ranked)


Group = tuple[Record, ...]
# the fields of the quantisation grid, which two cells that are compared must share
GRID_AXES = (
    *("group_size", "symmetric", "act_order", "block_size", "fit_scales_on", "scale_dtype"),
    "grid",  # only where it is no uniform one
)


def grouped(records: Iterable[Record], codes: Mapping[str, str]) -> list[Group]:
    """The records, those that differ in ``seed`` only together, by seed ascending.

    Records made by different code (by key in ``codes``) are never one group. Of records that agree even
    in the seed each begins a group of its own.
    """
    groups: dict[str, list[Record]] = {}
    seen: dict[tuple[str, int], int] = defaultdict(int)
    for record in sorted(records, key=lambda record: (record.seed, record.key)):
        same = _identity(record, codes)
        repeat = seen[same, record.seed]
        seen[same, record.seed] += 1
        groups.setdefault(f"{same} {repeat}", []).append(record)
    return [tuple(group) for group in groups.values()]


def code_hashes(manifest: Manifest) -> dict[str, str]:
    """By key the hash of the code that a cell was asked from, where the manifest has it."""
    codes = {cell.key: (cell.model_extra or {}).get("code") for cell in manifest.cells}
    return {key: code for key, code in codes.items() if isinstance(code, str)}


def settings(groups: Sequence[Group], codes: Mapping[str, str]) -> dict[str, str]:
    """By first key what tells a group from those with its merge, method, target and bits.

    For example ``anchor=0.1, seed=1``; empty where nothing does.
    """
    alike: dict[tuple[object, ...], dict[str, dict[str, object]]] = defaultdict(dict)
    for group in groups:
        first = group[0]
        named = (first.kind, first.merge, first.method, first.target, first.bits)
        alike[named][first.key] = described(group, codes)
    found: dict[str, str] = {}
    for others in alike.values():
        varying = _varying(list(others.values()))
        for key, one in others.items():
            found[key] = ", ".join(f"{name}={one[name]}" for name in sorted(one) if name in varying)
    return found


def described(group: Group, codes: Mapping[str, str]) -> dict[str, object]:
    """Everything that a group was made with, under the names that tables use."""
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


def _varying(others: Sequence[Mapping[str, object]]) -> set[str]:
    """The names whose values are not the same in all."""
    names = {name for other in others for name in other}
    return {name for name in names if len({json.dumps(other.get(name)) for other in others}) > 1}


def basis(record: Record) -> tuple[object, ...]:
    """What two cells that are compared must share: merge, bits, grid, device, test samples."""
    grid = tuple(record.axes.get(axis) for axis in GRID_AXES)
    samples = frozenset((task, result.metric, result.samples) for task, result in record.tasks.items())
    options = frozenset(record.merge_options.items())
    named = (record.merge, options, record.bits, record.device, record.dtype)
    return (*named, grid, samples)


def shared_axes(record: Record, other: Record) -> int:
    """How many axes two cells have in common; of several partners the one that shares most counts."""
    return len(record.axes.items() & other.axes.items())
