"""A board: its runs, where every cell stands, and what there is that nobody ran."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from results.board.about import About, Registered
from results.board.cells import Cell, Method, Setting, cells
from results.board.runs import Run, opened
from results.board.standings import Standing, standings
from results.store import origin


@dataclass(frozen=True)
class Board:
    """The runs, the standings of their cells, and what is registered."""

    runs: Sequence[Run]
    standings: Sequence[Standing]
    registered: Registered

    @cached_property
    def suites(self) -> list[str]:
        """Suites that were run, then the bundled ones that were not; each by name."""
        run = sorted({each.cell.suite for each in self.standings})
        return [*run, *sorted(set(origin.known()) - set(run))]

    @cached_property
    def settings(self) -> list[Setting]:
        """Every setting: that with most ranked cells, then by merge, bits descending and the rest."""
        ranked = Counter(each.cell.setting for each in self.standings if each.ranks)
        known = sorted({each.cell.setting for each in self.standings}, key=_order)
        first = max(known, key=lambda setting: ranked[setting])
        return [first, *(setting for setting in known if setting != first)]

    @cached_property
    def _at(self) -> dict[Setting, dict[Method, dict[str, Standing]]]:
        found: dict[Setting, dict[Method, dict[str, Standing]]] = defaultdict(lambda: defaultdict(dict))
        for each in self.standings:
            found[each.cell.setting][each.cell.method][each.cell.suite] = each
        return found

    def rows(self, setting: Setting) -> list[tuple[Method, dict[str, Standing]]]:
        """The methods at a setting with their standings by suite, by rank interval and name.

        The first suite where a method is ranked counts; what is not ranked comes last.
        """

        def order(row: tuple[Method, dict[str, Standing]]) -> tuple[object, ...]:
            method, by_suite = row
            ranks = [
                (place, *ranked[:2])
                for place, suite in enumerate(self.suites)
                if suite in by_suite and (ranked := by_suite[suite].ranks)
            ]
            unranked = not any(each.cell.ranked for each in by_suite.values())
            return (
                unranked,
                not ranks,
                ranks[:1],
                method.name,
                method.label,
                method.target or "",
                method.kind,
            )

        return sorted(self._at[setting].items(), key=order)

    @cached_property
    def never(self) -> list[About]:
        """Registered methods without a run on any suite, by name."""
        run = {each.cell.method.name for each in self.standings}
        return [about for name, about in sorted(self.registered.methods.items()) if name not in run]

    @cached_property
    def merges_never(self) -> list[str]:
        """Registered merges without a run on any suite, by name."""
        return sorted(set(self.registered.merges) - {each.cell.setting.merge for each in self.standings})

    def about(self, name: str) -> About:
        """What is known of a method: as registered here, else as its contribution says."""
        if name in self.registered.methods:
            return self.registered.methods[name]
        for run in self.runs:
            if run.form and name in run.form.methods:
                form = run.form
                return About(name, "contributed", form.description, form.reference, form.code)
        return About(name, "not registered", "", "")

    def version(self, suite: str) -> int | None:
        """The version that was run; None where none was."""
        found = [run.analysis.manifest for run in self.runs if run.analysis.manifest.suite == suite]
        return found[0].suite_version if found else None

    def sizes(self, suite: str) -> tuple[int, int] | None:
        """The number of tasks and of test samples; None where it was not run."""
        found: list[Cell] = [each.cell for each in self.standings if each.cell.suite == suite]
        if not found:
            return None
        return len(found[0].tasks), sum(task.samples for task in found[0].tasks.values())


def board(folders: Sequence[Path], registered: Registered) -> Board:
    """The board of results folders; the same whatever their order.

    Raises:
        UserError: a folder cannot be used (see ``results.board.runs.opened``), or two are not of the same
            test samples.
    """
    runs = opened(folders)
    return Board(runs, standings(cells(runs)), registered)


def _order(setting: Setting) -> tuple[object, ...]:
    return (
        setting.merge or "",
        [f"{name} {value}" for name, value in setting.options],
        -(setting.bits or 0),
        [str(part) for part in setting.grid],
        setting.samples or 0,
        setting.device,
        setting.dtype,
    )
