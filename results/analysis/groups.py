"""Which cells of a run are compared with which: groups of seeds, and what they were done on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from results.analysis.grouping import Group, basis, code_hashes, grouped, settings, shared_axes
from results.analysis.outcomes import outcomes
from results.analysis.stats import Difference, Outcome, hierarchical_bootstrap
from results.store.folder import RunFolder
from results.store.records import Record


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
        """Return what a cell did on every test sample, by task."""
        if record.key not in self._outcomes:
            self._outcomes[record.key] = outcomes(self.folder, record.key)
        return self._outcomes[record.key]

    def name(self, group: Group) -> str:
        """Return the method, with what tells this group from others of the same method."""
        words = self.settings[group[0].key]
        return f"{group[0].method} ({words})" if words else group[0].method

    def partner(self, group: Group, wanted: Callable[[Record], bool]) -> Group | None:
        """Return the wanted group on the same merge, bits, grid, device and test samples, with a common seed.

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
        """Return the paired difference of two groups' averages over their common seeds, as fractions."""
        sides = zip(*pairs(group, other), strict=True)
        first, second = ([self.outcomes(record) for record in side] for side in sides)
        return hierarchical_bootstrap(first, second)


def pairs(group: Group, other: Group) -> list[tuple[Record, Record]]:
    """Return the records of two groups that share a seed."""
    by_seed = {record.seed: record for record in other}
    return [(record, by_seed[record.seed]) for record in group if record.seed in by_seed]


def _order(group: Group) -> tuple[object, ...]:
    first = group[0]
    return first.merge or "", -(first.bits or 99), first.method, first.key
