"""A folder of results analysed once: its cells, their partners, differences and rows."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Literal

from results.analysis.groups import (
    Group,
    basis,
    code_hashes,
    grouped,
    outcomes,
    pairs,
    ranked_outcomes,
    settings,
    shared_axes,
)
from results.analysis.rows import Row, in_order, measured, not_run, recovered
from results.analysis.stats import Difference, Outcome, hierarchical_bootstrap, holm
from results.store.folder import Reading, RunFolder
from results.store.records import Manifest, Record

Score = Literal["generated", "ranked"]  # of text suites; all else has the first one alone


class Analysis:
    """What a folder's records say, computed when it is first asked for and kept.

    Records are read once, each file of samples is decoded once, and each pair of cells is resampled once,
    however many tables, figures and pages are made from it. Records that are added later are not seen.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._outcomes: dict[tuple[str, Score], dict[str, Outcome]] = {}
        self._differences: dict[tuple[tuple[str, ...], tuple[str, ...], Score], Difference] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Analysis:
        """The analysis of the folder ``path``; raises a UserError where there is no usable one."""
        return cls(RunFolder.open(path))

    @property
    def manifest(self) -> Manifest:
        """The folder's manifest."""
        return self.folder.manifest

    @cached_property
    def _reading(self) -> Reading:
        return self.folder.read()

    @property
    def records(self) -> list[Record]:
        """The undamaged records in file order."""
        return self._reading.records

    @property
    def problems(self) -> list[str]:
        """What is wrong with the lines of ``records.jsonl``."""
        return self._reading.problems

    # -- cells

    @cached_property
    def groups(self) -> list[Group]:
        """The cells, each with its seeds: by merge, bits descending and method."""
        groups = grouped(self.records, self._codes)
        return sorted(groups, key=lambda g: (g[0].merge or "", -(g[0].bits or 99), g[0].method, g[0].key))

    @cached_property
    def _codes(self) -> dict[str, str]:
        return code_hashes(self.manifest)

    @cached_property
    def _settings(self) -> dict[str, str]:
        return settings(self.groups, self._codes)

    def name(self, group: Group) -> str:
        """The method, with what tells this group from others of the same method."""
        words = self._settings[group[0].key]
        return f"{group[0].method} ({words})" if words else group[0].method

    def outcomes(self, record: Record, score: Score = "generated") -> dict[str, Outcome]:
        """What a cell did on every test sample, by task; ``ranked`` has the tasks with ranked answers alone.

        Raises:
            UserError: the cell's file of samples cannot be used.
        """
        if (record.key, score) not in self._outcomes:
            samples = self.folder.samples(record.key)
            read = outcomes if score == "generated" else ranked_outcomes
            self._outcomes[record.key, score] = read(samples)
        return self._outcomes[record.key, score]

    def scores(self, *groups: Group) -> list[Score]:
        """The scores that all cells of the groups have."""
        records = [record for group in groups for record in group]
        if all(getattr(record, "average_ranked", None) is not None for record in records):
            return ["generated", "ranked"]
        return ["generated"]

    # -- cells beside each other

    @cached_property
    def _by_basis(self) -> dict[tuple[object, ...], list[Group]]:
        """The groups that can be compared with each other, in order."""
        found: dict[tuple[object, ...], list[Group]] = defaultdict(list)
        for group in self.groups:
            found[basis(group[0])].append(group)
        return found

    @cached_property
    def _all_controls(self) -> list[Group]:
        return [group for group in self.groups if group[0].kind == "control"]

    def partner(self, group: Group, suits: Callable[[Record], bool]) -> Group | None:
        """The group that suits, on the same merge, bits, grid, device and test samples, with a common seed.

        Where calibration settings leave several, it is the one that shares the most of them.
        """
        first = group[0]
        partners = [
            other for other in self._by_basis[basis(first)] if suits(other[0]) and pairs(group, other)
        ]
        return max(partners, key=lambda other: (shared_axes(first, other[0]), other[0].key), default=None)

    def difference(self, group: Group, other: Group, score: Score = "generated") -> Difference:
        """The paired difference of two groups' averages over their common seeds, as fractions."""
        ours, others = zip(*pairs(group, other), strict=True)
        return self._difference(ours, others, score)

    def _difference(
        self, ours: Sequence[Record], others: Sequence[Record], score: Score = "generated"
    ) -> Difference:
        pair = tuple(record.key for record in ours), tuple(record.key for record in others), score
        if pair not in self._differences:
            sides = ([self.outcomes(record, score) for record in side] for side in (ours, others))
            self._differences[pair] = hierarchical_bootstrap(*sides)
        return self._differences[pair]

    def bounds(self, group: Group) -> tuple[Group, Group] | None:
        """The merged model in full precision and the experts, on the group's samples; None without both."""
        first = group[0]
        merged = [
            other
            for other in self._controls(first, "merged", first.merge)
            if other[0].merge_options == first.merge_options
        ]
        experts = self._controls(first, "experts", None)
        return (merged[0], experts[0]) if first.merge and merged and experts else None

    def _controls(self, record: Record, method: str, merge: str | None) -> list[Group]:
        sizes = {task: result.samples for task, result in record.tasks.items()}
        return [
            group
            for group in self._all_controls
            if (group[0].method, group[0].merge) == (method, merge)
            and {task: result.samples for task, result in group[0].tasks.items()} == sizes
        ]

    def recovery(self, group: Group) -> float | None:
        """The group's recovery, see ``recovered``; None where a bound or the gap between them is missing."""
        if (bounds := self.bounds(group)) is None:
            return None
        return recovered(average(group), *map(average, bounds))

    def recovery_interval(self, group: Group) -> tuple[float, float] | None:
        """The 95 % interval of the recovery: the paired one to the merged model, the gap taken as known."""
        if (bounds := self.bounds(group)) is None:
            return None
        difference = self._difference(group, [bounds[0][0]] * len(group))
        merged, experts = map(average, bounds)
        low, high = (recovered(merged + end, merged, experts) for end in (difference.low, difference.high))
        return None if low is None or high is None else (low, high)

    # -- rows

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of the folder's table: controls without a merge, then merge by merge.

        Within a merge the full-precision model comes first, then the other controls, then the methods by
        bits descending and name. Cells that were asked for and have no record are rows without numbers.

        Raises:
            UserError: the per-sample correctness of a record cannot be used.
        """
        known = {record.key for record in self.records}
        missing = [not_run(cell) for cell in self.manifest.cells if cell.key not in known]
        return in_order(self._compared([self._row(group) for group in self.groups]) + missing)

    def _row(self, group: Group) -> Row:
        row = measured(group, self._settings[group[0].key], self.recovery(group))
        partner = None if _is_plain_gptq(group[0]) else self.partner(group, _is_plain_gptq)
        return row if partner is None else replace(row, vs_gptq=self.difference(group, partner))

    def _compared(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with p-values adjusted over all that are compared."""
        adjusted = iter(holm([row.vs_gptq.p_value for row in rows if row.vs_gptq]).tolist())
        return [replace(row, p_value=next(adjusted)) if row.vs_gptq else row for row in rows]


def average(group: Group) -> float:
    """The mean over the seeds of the average over tasks."""
    return fmean(record.average for record in group)


def _is_plain_gptq(record: Record) -> bool:
    return (record.method, record.target) == ("gptq", "merged")
