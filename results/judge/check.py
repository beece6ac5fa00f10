"""The regression gate: a run beside a golden run of the same cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tabulate import tabulate

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.analysis.stats import (
    Floats,
    Outcomes,
    Ranked,
    Side,
    holm,
    mcnemar_pvalues,
    paired_counts,
    score,
    task_pvalues,
)
from results.judge.objectives import ROUND_OFF, Change, changes, lost_layers
from results.store.records import Record

RATE = 0.01  # the chance that the gate fails a run that is as good as the golden one
_FAILURES = ("worse", "missing", "other suite version", "other suite", "other device", "rehearsal")
_SIDES: tuple[Side, Side] = ("less", "greater")


@dataclass(frozen=True)
class Move:
    """One quantity of a cell that is not what it was; ``verdict`` says whether that is a failure."""

    cell: str
    quantity: str
    golden: str
    now: str
    change: str
    verdict: str

    @property
    def failed(self) -> bool:
        """Whether this is a regression."""
        return self.verdict in _FAILURES


@dataclass(frozen=True)
class CheckReport:
    """What moved between a golden run and a run; ``cells`` names the golden cells.

    ``accuracy_tests`` and ``objective_tests`` are one family, ``rate`` its false-alarm rate.
    """

    moves: tuple[Move, ...]
    cells: tuple[str, ...]
    accuracy_tests: int
    objective_tests: int
    rate: float

    @property
    def tests(self) -> int:
        """The size of the family: everything that can fail where nothing is missing."""
        return self.accuracy_tests + self.objective_tests

    @property
    def failed(self) -> bool:
        """Whether any move is a regression."""
        return any(move.failed for move in self.moves)

    def render(self) -> str:
        """The moves as a table, and one line with the outcome, ending in a line break."""
        failures = sum(move.failed for move in self.moves)
        outcome = f"{'FAILED' if self.failed else 'passed'}: {len(self.cells)} golden cells, "
        outcome += f"{len(self.moves)} moves, {failures} of them regressions; "
        outcome += f"{self.accuracy_tests} tests of accuracy and {self.objective_tests} of layer objectives "
        outcome += f"at a false-alarm rate of {self.rate:.2%} together\n"
        if not self.moves:
            return outcome
        table = tabulate([asdict(move) for move in self.moves], "keys", "simple", disable_numparse=True)
        return f"{table}\n\n{outcome}"

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        moves = [{**asdict(move), "failed": move.failed} for move in self.moves]
        return {
            "passed": not self.failed,
            "cells": list(self.cells),
            "tests": self.tests,
            "accuracy_tests": self.accuracy_tests,
            "objective_tests": self.objective_tests,
            "false_alarm_rate": self.rate,
            "moves": moves,
        }


@dataclass(frozen=True)
class _Tested:
    """One accuracy of a cell before and now, in points, and the p-values that it fell or rose."""

    cell: str
    quantity: str
    golden: float
    now: float
    worse: float
    better: float


def check(run: Analysis, golden: Analysis, *, rate: float = RATE) -> CheckReport:
    """Compare every cell of ``golden`` with the cell of the same key in ``run``.

    A regression is: a rehearsal; another suite (by what it reads, where the
    golden run tells), suite version or device class; a cell, task or layer that is
    missing; accuracy that is worse; a layer objective that is larger. Accuracy is worse by McNemar's exact
    one-sided test, over all samples of a cell together or on one of its tasks (so that a gain elsewhere
    cannot hide a broken task; Spearman tasks by the paired bootstrap). Objectives are larger by more than
    the last bits of products make them on another processor (``results.judge.objectives``): layer by layer
    where inputs do not depend on earlier roundings, in the mean over layers in every cell. All these tests of
    all cells are one family under Holm's adjustment: the chance that a run of the same code fails by any of
    them is at most ``rate``. Every other change is listed and does not fail; cells that only ``run`` has are
    not looked at.

    Raises:
        UserError: the golden run is empty or damaged, or correctness cannot be used or paired.
    """
    if not 0 < rate < 1:
        raise UserError(f"false-alarm rate {rate} is out of range; give a number between 0 and 1")
    if golden.problems:
        raise UserError(f"{golden.folder.path}: damaged golden run: {golden.problems[0]}; restore it")
    if not golden.records:
        raise UserError(f"{golden.folder.path}: the golden run holds no records; record one first")
    cells = tuple(_cell(record) for record in golden.records)
    if foreign := _foreign(run, golden):
        return CheckReport((foreign,), cells, 0, 0, rate)
    by_key = {record.key: record for record in run.records}
    moves: list[Move] = []
    tested: list[_Tested] = []
    objectives: list[tuple[str, Change]] = []
    for cell, old in zip(cells, golden.records, strict=True):
        new = by_key.get(old.key)
        if new is None:
            moves.append(Move(cell, "record", "present", "missing", "", "missing"))
            continue
        lost = sorted(set(old.tasks) - set(new.tasks))
        moves += [Move(cell, f"accuracy {task}", "present", "missing", "", "missing") for task in lost]
        moves += [
            Move(cell, f"objective {name}", f"{objective:.6g}", "missing", "", "missing")
            for name, objective in lost_layers(old, new)
        ]
        tested += _accuracies(cell, golden.outcomes(old), run.outcomes(new))
        objectives += [(cell, change) for change in changes(old, new)]
    judged = [(cell, change) for cell, change in objectives if change.spread is not None]
    verdicts = _verdicts(tested, [change for _, change in judged], rate)
    moves += _accuracy_moves(tested, verdicts)
    moves += _objective_moves(objectives, dict(zip(judged, verdicts[len(tested) :], strict=True)))
    place = {cell: number for number, cell in reversed(list(enumerate(cells)))}
    order = sorted(moves, key=lambda move: (place[move.cell], move.quantity.startswith("objective")))
    return CheckReport(tuple(order), cells, len(tested), len(judged), rate)


def _foreign(run: Analysis, golden: Analysis) -> Move | None:
    """Why the two runs cannot be compared at all; None where they can."""
    if run.manifest.rehearsal:
        return Move("", "run", "a result", "a rehearsal", "", "rehearsal")
    suites = [f"{x.manifest.suite} version {x.manifest.suite_version}" for x in (golden, run)]
    if suites[0] != suites[1]:
        return Move("", "suite", suites[0], suites[1], "", "other suite version")
    reads = [x.manifest.suite_sha256 for x in (golden, run)]
    if reads[0] is not None and reads[0] != reads[1]:
        told = [(read or "not told")[:12] for read in reads]
        return Move("", "what the suite reads", told[0], told[1], "", "other suite")
    devices = [{f"{record.device} {record.dtype}" for record in x.records} for x in (golden, run)]
    if run.records and not devices[0] <= devices[1]:
        before, after = (", ".join(sorted(names)) for names in devices)
        return Move("", "device", before, after, "", "other device")
    return None


def _cell(record: Record) -> str:
    parts = [record.merge, record.method, record.target, f"{record.bits}-bit" if record.bits else None]
    return f"{' '.join(part for part in parts if part)} ({record.key})"


def _accuracies(cell: str, old: Outcomes, new: Outcomes) -> Iterator[_Tested]:
    tasks = sorted(set(old) & set(new))
    if not tasks:
        return
    before, after = ({task: run[task] for task in tasks} for run in (old, new))
    counts = paired_counts(after, before)
    exact = [task for task in tasks if not isinstance(before[task], Ranked)]
    groups = [("accuracy, all samples", exact), *((f"accuracy {task}", [task]) for task in exact)]
    pvalues = [cell_pvalues(counts[:, 0], counts[:, 2], side) for side in _SIDES]
    for (quantity, group), worse, better in zip(groups if exact else [], *pvalues, strict=bool(exact)):
        scores = [_accuracy(run, group) for run in (before, after)]
        yield _Tested(cell, quantity, scores[0], scores[1], float(worse), float(better))
    for task in sorted(set(tasks) - set(exact)):
        one, other = {task: after[task]}, {task: before[task]}
        fell, rose = (task_pvalues(one, other, alternative=side)[task] for side in _SIDES)
        yield _Tested(cell, f"correlation {task}", score(before[task]), score(after[task]), fell, rose)


def _accuracy(run: Outcomes, tasks: Sequence[str]) -> float:
    right = np.concatenate([np.asarray(run[task]) for task in tasks])
    return float(right.mean())


def cell_pvalues(lost: ArrayLike, gained: ArrayLike, side: Side) -> Floats:
    """A cell's p-values (..., 1 + tasks): of all samples together, then of each task.

    ``lost`` and ``gained`` (..., tasks) count the samples that only the golden run, or only the run, gets
    right. "less" is evidence that the run is the worse one.
    """
    pairs = [np.asarray(counts) for counts in (gained, lost)]
    first, second = (np.concatenate([x.sum(axis=-1, keepdims=True), x], axis=-1) for x in pairs)
    return mcnemar_pvalues(first, second, side)


def alarms(pvalues: Floats, rate: float) -> NDArray[np.bool_]:
    """Which of a family of p-values (..., tests) raise an alarm at a false-alarm rate together."""
    return np.asarray(holm(pvalues) <= rate)


def _verdicts(tested: Sequence[_Tested], judged: Sequence[Change], rate: float) -> list[str]:
    """What the tests of accuracies and then of objectives say: worse, better, or within noise."""
    rose = [change.pvalues for change in judged]
    worse, better = (
        alarms(np.array(pvalues), rate)
        for pvalues in (
            [test.worse for test in tested] + [up for up, _ in rose],
            [test.better for test in tested] + [down for _, down in rose],
        )
    )
    return ["worse" if w else "better" if b else "within noise" for w, b in zip(worse, better, strict=True)]


def _accuracy_moves(tested: Sequence[_Tested], verdicts: Sequence[str]) -> Iterator[Move]:
    for test, verdict in zip(tested, verdicts, strict=False):  # those of objectives follow
        if test.golden == test.now:
            continue
        change = f"{100 * (test.now - test.golden):+.2f} points"
        golden, now = f"{100 * test.golden:.2f}", f"{100 * test.now:.2f}"
        yield Move(test.cell, test.quantity, golden, now, change, verdict)


def _objective_moves(
    objectives: Sequence[tuple[str, Change]], verdicts: Mapping[tuple[str, Change], str]
) -> Iterator[Move]:
    """The objectives that got worse or better, and of the others the largest move of each cell."""
    quiet: dict[tuple[str, str], list[Change]] = defaultdict(list)
    for cell, change in objectives:
        verdict = verdicts.get((cell, change), "not tested alone")
        if verdict in ("worse", "better"):
            yield _objective_move(cell, change.quantity, change, verdict)
        elif change.golden != change.now:
            quiet[cell, verdict].append(change)
    for (cell, verdict), small in quiet.items():
        quantity = f"objective, largest of {len(small)} other moves"
        yield _objective_move(cell, quantity, max(small, key=lambda change: abs(change.ratio)), verdict)


def _objective_move(cell: str, quantity: str, change: Change, verdict: str) -> Move:
    golden, now = change.golden, change.now
    moved = f"{100 * (now / golden - 1):+.4f} %" if golden > ROUND_OFF else f"{now - golden:+.3g}"
    return Move(cell, quantity, f"{golden:.6g}", f"{now:.6g}", moved, verdict)
