"""Which cells of a run are compared with which: groups of seeds, and what they were done on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np

from results.analysis.stats import Difference, Outcome, Ranked, hierarchical_bootstrap
from results.store.folder import RunFolder
from results.store.records import Axis, Record
from results.store.samples import PREDICTION, REFERENCE


class Run:
    """The cells of a folder with their outcomes, each file of samples read once."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.groups: list[Group] = sorted(grouped(folder), key=_order)
        self._outcomes: dict[str, dict[str, Outcome]] = {}

    @cached_property
    def settings(self) -> dict[str, str]:
        """What tells a group from those with its merge, method, target and bits, by its first key."""
        return settings(self.groups, code_hashes(self.folder))

    def outcomes(self, record: Record) -> dict[str, Outcome]:
        """What a cell did on every test sample, by task."""
        if record.key not in self._outcomes:
            self._outcomes[record.key] = outcomes(self.folder, record.key)
        return self._outcomes[record.key]

    def name(self, group: Group) -> str:
        """The method, with what tells this group from others of the same method."""
        words = self.settings[group[0].key]
        return f"{group[0].method} ({words})" if words else group[0].method

    def partner(self, group: Group, wanted: Callable[[Record], bool]) -> Group | None:
        """The wanted group on the same merge, bits, grid, device and test samples, with a common seed.

        Where calibration settings leave several, it is the one that shares the most of them.
        """
        first = group[0]
        found = [
            other
            for other in self.groups
            if wanted(other[0]) and basis(other[0]) == basis(first) and pairs(group, other)
        ]
        return max(found, key=lambda other: (shared_axes(first, other[0]), other[0].key), default=None)

    def difference(self, group: Group, other: Group) -> Difference:
        """The paired difference of two groups' averages over their common seeds, as fractions."""
        sides = zip(*pairs(group, other), strict=True)
        first, second = ([self.outcomes(record) for record in side] for side in sides)
        return hierarchical_bootstrap(first, second)


def pairs(group: Group, other: Group) -> list[tuple[Record, Record]]:
    """The records of two groups that share a seed."""
    by_seed = {record.seed: record for record in other}
    return [(record, by_seed[record.seed]) for record in group if record.seed in by_seed]


def _order(group: Group) -> tuple[object, ...]:
    first = group[0]
    return first.merge or "", -(first.bits or 99), first.method, first.key


def outcomes(folder: RunFolder, key: str) -> dict[str, Outcome]:
    """The outcome of every task of the cell ``key``: right or wrong, or ``Ranked`` for Spearman's rho.

    Raises:
        UserError: the folder has no such record, or its file of samples cannot be used.
    """
    found: dict[str, Outcome] = dict(folder.correct(key))
    predictions = folder.predictions(key)
    for name in predictions:
        task = name.removesuffix(REFERENCE)
        if task != name and task not in found:  # references of classes are in what is right already
            pair = (predictions[task + end].astype(np.float64) for end in (PREDICTION, REFERENCE))
            found[task] = Ranked(*pair)
    return found


Group = tuple[Record, ...]
# the fields of the quantisation grid, which two cells that are compared must share
GRID_AXES = ("group_size", "symmetric", "act_order", "block_size", "fit_scales_on", "scale_dtype")


def grouped(folder: RunFolder) -> list[Group]:
    """The folder's records, those that differ in ``seed`` only together, by seed ascending.

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
    """By key the hash of the code that a cell was asked from, where the manifest has it."""
    codes = {cell.key: (cell.model_extra or {}).get("code") for cell in folder.manifest.cells}
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
    return {key: _distinct(one, others) for others in alike.values() for key, one in others.items()}


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


def _distinct(one: Mapping[str, object], others: Mapping[str, Mapping[str, object]]) -> str:
    varying = [
        name for name in sorted(one) if len({json.dumps(other.get(name)) for other in others.values()}) > 1
    ]
    return ", ".join(f"{name}={one[name]}" for name in varying)


def basis(record: Record) -> tuple[object, ...]:
    """What two cells that are compared must share: merge, bits, grid, device, test samples."""
    grid = [record.axes.get(axis) for axis in GRID_AXES]
    samples = {task: (result.metric, result.samples) for task, result in record.tasks.items()}
    named = (record.merge, record.merge_options, record.bits, record.device, record.dtype)
    return (*named, grid, samples)


def shared_axes(record: Record, other: Record) -> int:
    """How many axes two cells have in common; of several partners the one that shares most counts."""
    return len(record.axes.items() & other.axes.items())
