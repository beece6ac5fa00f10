"""What many folders hold as cells: a method at a setting of a suite, with all its draws."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import NamedTuple

from results.analysis.groups import GRID_AXES, code_hashes
from results.analysis.ranks import Contender
from results.analysis.stats import standard_error
from results.board.runs import Run
from results.store.records import Axis, Record, TaskResult

_OF_SETTING = frozenset({*GRID_AXES, "samples", "bits", "target"})


class Setting(NamedTuple):
    """What rows that are ranked together have in common, besides suite and test samples.

    ``samples`` is the number of calibration samples of a task; None where nothing at the setting calibrates.
    """

    merge: str | None
    options: tuple[tuple[str, Axis], ...]
    bits: int | None
    grid: tuple[Axis, ...]
    samples: int | None
    device: str
    dtype: str


class Method(NamedTuple):
    """A row: a method, and how this one differs from the usual form of that name, if it does."""

    name: str
    target: str | None
    kind: str
    variant: str = ""

    @property
    def label(self) -> str:
        """The name, with the difference."""
        return f"{self.name} ({self.variant})" if self.variant else self.name


@dataclass(frozen=True)
class Computed:
    """A record and the runs that have it, the first of them with its samples."""

    record: Record
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Cell:
    """A method at a setting of a suite: by calibration seed what was computed, once for each outcome.

    A draw that was computed on machines whose last bits differ has several; their mean counts. What is
    ``ranked`` is the usual form of a method: the axes that most of its draws have on the suite, and where
    several versions of the code made it, the one that made most rows of the setting.
    """

    suite: str
    setting: Setting
    method: Method
    draws: Mapping[int, tuple[Computed, ...]]
    ranked: bool = True

    @property
    def records(self) -> list[Record]:
        """All that was computed."""
        return [each.record for draw in self.draws.values() for each in draw]

    @property
    def tasks(self) -> dict[str, TaskResult]:
        """Each task's mean over draws."""
        draws = [[each.record.tasks for each in draw] for draw in self.draws.values()]
        means = {
            task: fmean(fmean(tasks[task].value for tasks in draw) for draw in draws) for task in draws[0][0]
        }
        return {
            task: result.model_copy(update={"value": means[task]}) for task, result in draws[0][0].items()
        }

    @property
    def averages(self) -> list[float]:
        """The average of each draw, as a fraction."""
        return [fmean(each.record.average for each in draw) for draw in self.draws.values()]

    @property
    def average(self) -> float:
        """The mean over draws of the average over tasks, as a fraction."""
        return fmean(self.averages)

    @property
    def standard_error(self) -> float:
        """Of the average, by the test samples."""
        return standard_error(self.tasks)

    @property
    def spread(self) -> float | None:
        """The standard deviation over draws; None of a single one."""
        return stdev(self.averages) if len(self.draws) > 1 else None

    @property
    def bits_per_weight(self) -> float | None:
        """Scales and zero points included; None in full precision."""
        return self.records[0].bits_per_weight

    @property
    def runs(self) -> list[Run]:
        """The runs that any of it is from, by name."""
        found = {run.name: run for draw in self.draws.values() for each in draw for run in each.runs}
        return [found[name] for name in sorted(found)]

    @property
    def contender(self) -> Contender:
        """What is ranked; raises UserError where a file of samples cannot be used."""
        draws = [
            [each.runs[0].analysis.outcomes(each.record) for each in draw] for draw in self.draws.values()
        ]
        return Contender(draws, tuple(self.draws))


def cells(runs: Sequence[Run]) -> list[Cell]:
    """Every cell of the runs, in an order that theirs does not change.

    What needs no calibration is at every setting that is otherwise its own.
    """
    found = [cell for suite in _by_suite(runs) for cell in _named(_unlike(_grouped(suite)))]
    settings = {(cell.suite, cell.setting) for cell in found}
    everywhere = [
        replace(cell, setting=setting)
        for cell in found
        for setting in _settings(cell, {s for suite, s in settings if suite == cell.suite})
    ]
    return sorted(
        everywhere, key=lambda cell: (cell.suite, _order(cell.setting), cell.method.label, cell.method)
    )


def _order(setting: Setting) -> str:
    return json.dumps([str(part) for part in setting])


def _settings(cell: Cell, known: Iterable[Setting]) -> list[Setting]:
    if cell.setting.samples is not None:
        return [cell.setting]
    alike = [each for each in known if each._replace(samples=None) == cell.setting and each.samples]
    return sorted(alike, key=_order) or [cell.setting]


def _by_suite(runs: Sequence[Run]) -> list[list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.name):
        found[run.analysis.manifest.suite].append(run)
    return [found[suite] for suite in sorted(found)]


@dataclass(frozen=True)
class _Group:
    """Records that differ in the seed alone, with what tells them from others of the method."""

    suite: str
    setting: Setting
    method: Method
    axes: Mapping[str, Axis]
    code: str
    draws: Mapping[int, tuple[Computed, ...]]

    @property
    def own(self) -> int:
        """How many draws a run has that is no contribution."""
        return sum(
            any(run.form is None for each in draw for run in each.runs) for draw in self.draws.values()
        )

    @property
    def same(self) -> str:
        """All but the code and the outcomes."""
        return json.dumps([_order(self.setting), *self.method, sorted(self.axes.items())], default=str)


def _grouped(runs: Sequence[Run]) -> list[_Group]:
    suite = runs[0].analysis.manifest.suite
    made: dict[str, tuple[Setting, Method, dict[str, Axis], str]] = {}
    draws: dict[str, dict[int, dict[str, list[tuple[Run, Record]]]]] = {}
    for run in runs:
        codes = code_hashes(run.analysis.manifest)
        for record in sorted(run.analysis.records, key=lambda record: record.key):
            setting, method = _setting(record), Method(record.method, record.target, record.kind)
            axes = {name: value for name, value in record.axes.items() if name not in _OF_SETTING}
            axes |= {} if record.pinned else {"pinned": False}
            code = codes.get(record.key, "")[:8]
            key = json.dumps([_order(setting), *method, sorted(axes.items()), code], default=str)
            made[key] = setting, method, axes, code
            outcomes = draws.setdefault(key, {}).setdefault(record.seed, {})
            outcomes.setdefault(str(record.samples_sha256), []).append((run, record))
    return [
        _Group(
            suite,
            *made[key],
            {seed: _computed(outcomes) for seed, outcomes in sorted(draws[key].items())},
        )
        for key in sorted(made)
    ]


def _computed(outcomes: Mapping[str, Sequence[tuple[Run, Record]]]) -> tuple[Computed, ...]:
    return tuple(Computed(same[0][1], tuple(run for run, _ in same)) for _, same in sorted(outcomes.items()))


def _setting(record: Record) -> Setting:
    samples = record.axes.get("samples")
    grid = tuple(record.axes.get(axis) for axis in GRID_AXES) if record.bits else ()
    return Setting(
        record.merge,
        tuple(sorted(record.merge_options.items())),
        record.bits,
        grid,
        samples if isinstance(samples, int) else None,
        record.device,
        record.dtype,
    )


def _unlike(groups: Sequence[_Group]) -> list[_Group]:
    """The groups, those of different code as one where every draw that they share came out the same."""
    found: list[_Group] = []
    for group in groups:
        for index, other in enumerate(found):
            shared = group.draws.keys() & other.draws.keys()
            if (
                group.same == other.same
                and shared
                and all(
                    {each.record.samples_sha256 for each in group.draws[seed]}
                    & {each.record.samples_sha256 for each in other.draws[seed]}
                    for seed in shared
                )
            ):
                found[index] = replace(other, draws=_together(other.draws, group.draws))
                break
        else:
            found.append(group)
    return found


def _together(
    one: Mapping[int, tuple[Computed, ...]], other: Mapping[int, tuple[Computed, ...]]
) -> dict[int, tuple[Computed, ...]]:
    found: dict[int, tuple[Computed, ...]] = {}
    for seed in sorted({*one, *other}):
        outcomes: dict[str, list[tuple[Run, Record]]] = defaultdict(list)
        for each in (*one.get(seed, ()), *other.get(seed, ())):
            outcomes[str(each.record.samples_sha256)] += [(run, each.record) for run in each.runs]
        found[seed] = _computed(outcomes)
    return found


def _named(groups: Sequence[_Group]) -> list[Cell]:
    """The cells of a suite; a variant's name says where it is not as most draws of its method are.

    Contributions do not count where there are other draws: no flood of variants changes what is usual.
    """
    ours = {group.method for group in groups if group.own}
    counted: dict[Method, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    names = {method: set[str]() for method in {group.method for group in groups}}
    for group in groups:
        names[group.method] |= set(group.axes)
    for group in groups:
        for name in names[group.method]:
            draws = group.own if group.method in ours else len(group.draws)
            counted[group.method][name][json.dumps(group.axes.get(name))] += draws
    alike: dict[tuple[Setting, Method], list[_Group]] = defaultdict(list)
    for group in groups:
        words = [
            f"{name}={group.axes.get(name)}"
            for name, values in sorted(counted[group.method].items())
            if json.dumps(group.axes.get(name)) != _usual(values)
        ]
        alike[group.setting, group.method._replace(variant=", ".join(words))].append(group)
    made = Counter((group.setting, group.code) for group in groups)
    found = []
    for (setting, method), same in alike.items():
        first, *others = _preferred(same, made)
        found.append(Cell(first.suite, setting, method, first.draws, ranked=not method.variant))
        found += [
            Cell(each.suite, setting, _by_code(method, each), each.draws, ranked=False) for each in others
        ]
    return found


def _preferred(groups: Sequence[_Group], made: Counter[tuple[Setting, str]]) -> list[_Group]:
    """The groups of one method, first the one whose code made most rows of the setting, then most draws."""
    return sorted(groups, key=lambda g: (-made[g.setting, g.code], -len(g.draws), g.code))


def _usual(values: Counter[str]) -> str | None:
    """The value that more draws have than any other; None where two are as frequent."""
    (first, most), *others = values.most_common(2)
    return None if others and others[0][1] == most else first


def _by_code(method: Method, group: _Group) -> Method:
    words = [method.variant, f"code={group.code or 'unknown'}"]
    return method._replace(variant=", ".join(word for word in words if word))
