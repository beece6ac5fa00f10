"""The regression gate: a run beside a golden run of the same cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from results.errors import ResultError
from results.folder import RunFolder
from results.records import Record
from results.samples import Correct
from results.stats import Side, holm, mcnemar

_FAILURES = ("worse", "missing", "other suite version")
_ROUND_OFF = 1e-12  # objectives below it are round-off of float64, not quantisation error


@dataclass(frozen=True)
class Move:
    """One quantity of a cell that is not what it was; `verdict` says whether that is a failure."""

    cell: str
    quantity: str
    golden: str
    now: str
    change: str
    verdict: str


@dataclass(frozen=True)
class CheckReport:
    """What moved between a golden run and a run, over `cells` golden cells."""

    moves: tuple[Move, ...]
    cells: int

    @property
    def failed(self) -> bool:
        """Whether any move is a regression."""
        return any(move.verdict in _FAILURES for move in self.moves)

    def render(self) -> str:
        """Return the moves as a table, and one line with the outcome, ending in a line break."""
        failures = sum(move.verdict in _FAILURES for move in self.moves)
        outcome = f"{'FAILED' if self.failed else 'passed'}: {self.cells} golden cells, "
        outcome += f"{len(self.moves)} moves, {failures} of them regressions\n"
        if not self.moves:
            return outcome
        table = tabulate([vars(move) for move in self.moves], "keys", "simple", disable_numparse=True)
        return f"{table}\n\n{outcome}"


def check(folder: RunFolder, golden: RunFolder, *, alpha: float = 0.001, rtol: float = 1e-3) -> CheckReport:
    """Compare every cell of `golden` with the cell of the same key in `folder`.

    A regression is: another suite or suite version; a cell, task or layer that is missing; accuracy worse
    by McNemar's exact one-sided test at level `alpha`, over all samples together or on one task (Holm's
    adjustment over the tasks, so that a gain elsewhere can't hide a broken task); a layer objective
    larger by more than `rtol` relative. Every other change is listed and does not fail; cells that only
    `folder` has are not looked at.

    Raises
    ------
    ResultError
        where the golden run is empty or damaged, or correctness can't be used or paired.
    """
    expected = golden.records()
    if golden.problems:
        raise ResultError(f"{golden.path}: damaged golden run: {golden.problems[0]}; restore it")
    if not expected:
        raise ResultError(f"{golden.path}: the golden run holds no records; record one first")
    suite, other = _suite(golden), _suite(folder)
    if suite != other:
        return CheckReport((Move("", "suite", suite, other, "", "other suite version"),), len(expected))
    found = {record.key: record for record in folder.records()}
    moves: list[Move] = []
    for old in expected:
        cell, new = _cell(old), found.get(old.key)
        if new is None:
            moves.append(Move(cell, "record", "present", "missing", "", "missing"))
            continue
        moves += _accuracy_moves(cell, golden.correct(old.key), folder.correct(old.key), alpha)
        moves += _objective_moves(cell, old, new, rtol)
    return CheckReport(tuple(moves), len(expected))


def _suite(folder: RunFolder) -> str:
    return f"{folder.manifest.suite} version {folder.manifest.suite_version}"


def _cell(record: Record) -> str:
    parts = [record.merge, record.method, record.target, f"{record.bits}-bit" if record.bits else None]
    return f"{' '.join(part for part in parts if part)} ({record.key})"


def _accuracy_moves(cell: str, old: Correct, new: Correct, alpha: float) -> Iterator[Move]:
    for task in sorted(set(old) - set(new)):
        yield Move(cell, f"accuracy {task}", "present", "missing", "", "missing")
    tasks = sorted(set(old) & set(new))
    if not tasks:
        return
    before, after = ({task: run[task] for task in tasks} for run in (old, new))
    groups = [("accuracy, all samples", tasks), *((f"accuracy {task}", [task]) for task in tasks)]
    worse, better = _pvalues(before, after, tasks, "less"), _pvalues(before, after, tasks, "greater")
    for (quantity, names), p_worse, p_better in zip(groups, worse, better, strict=True):
        golden, now = (np.concatenate([run[name] for name in names]).mean() for run in (before, after))
        if golden == now:
            continue
        verdict = "worse" if p_worse < alpha else "better" if p_better < alpha else "within noise"
        change = f"{100 * (now - golden):+.2f} points"
        yield Move(cell, quantity, f"{100 * golden:.2f}", f"{100 * now:.2f}", change, verdict)


def _pvalues(before: Correct, after: Correct, tasks: Sequence[str], side: Side) -> list[float]:
    """Return the p-value over all samples, then those of the tasks adjusted for their number."""
    single = [mcnemar({task: after[task]}, {task: before[task]}, alternative=side) for task in tasks]
    return [mcnemar(after, before, alternative=side), *holm(single)]


def _objective_moves(cell: str, old: Record, new: Record, rtol: float) -> Iterator[Move]:
    now = {layer.name: layer.objective for layer in new.layers}
    small = []
    for layer in old.layers:
        quantity = f"objective {layer.name}"
        if layer.name not in now:
            yield Move(cell, quantity, f"{layer.objective:.6g}", "missing", "", "missing")
            continue
        golden, value = layer.objective, now[layer.name]
        change = value - golden
        tolerance = rtol * abs(golden) + _ROUND_OFF
        if abs(change) > tolerance:
            yield _objective_move(cell, quantity, golden, value, "worse" if change > 0 else "better")
        elif change:
            small.append((abs(change) / tolerance, golden, value))
    if small:
        _, golden, value = max(small)
        quantity = f"objective, largest of {len(small)} small moves"
        yield _objective_move(cell, quantity, golden, value, "within tolerance")


def _objective_move(cell: str, quantity: str, golden: float, now: float, verdict: str) -> Move:
    change = f"{100 * (now - golden) / abs(golden):+.4f} %" if golden else f"{now - golden:+.3g}"
    return Move(cell, quantity, f"{golden:.6g}", f"{now:.6g}", change, verdict)
