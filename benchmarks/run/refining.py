"""A cell's refinements: from which samples, with which state on disk, at whose cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from baselines import refinements
from benchmarks.run import unfinished
from benchmarks.run.cells import Cell, Refining
from benchmarks.run.outcome import Outcome, Place
from benchmarks.workbench.base import Workbench
from epmq.layer.weight import QuantizedWeight
from epmq.models.tower import Tower

SHARED = ("start", "merge_options", "before", "samples", "seed", "decoder")  # what a refined start depends on


def start(workbench: Workbench, cell: Cell, tower: Tower, outcome: Outcome) -> None:
    """Refine the start in full precision, once for all cells that begin from it.

    Later cells read its final state from the cache, and their records count its seconds all the same.
    """
    assert cell.before is not None
    described = {name: part for name, part in asdict(cell).items() if name in SHARED}
    file = unfinished.place(workbench, "refined/*.pt", described, [cell.before.module])
    _refine(workbench, cell, (cell.before, "before"), tower, {}, file, outcome)


def end(
    workbench: Workbench,
    cell: Cell,
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    outcome: Outcome,
) -> Mapping[str, QuantizedWeight]:
    """Refine what the last pass left; returns what became of its quantised weights.

    What was kept on disk to go on from is deleted.
    """
    assert cell.after is not None
    file = unfinished.place(workbench, "refined/*.pt", asdict(cell), cell.modules)
    found = _refine(workbench, cell, (cell.after, "after"), tower, quantised, file, outcome)
    file.unlink(missing_ok=True)
    return found


def _refine(
    workbench: Workbench,
    cell: Cell,
    asked: tuple[Refining, Place],
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    state: Path,
    outcome: Outcome,
) -> Mapping[str, QuantizedWeight]:
    refining, place = asked
    assert cell.samples is not None
    with outcome.timed("teach"):
        lessons = workbench.lessons(cell.samples, cell.seed, cell.decoder, refining.budget)
    found = refinements.get(refining.name)(tower, quantised, lessons, refining.budget, state)
    outcome.curves[place] = found.curve
    outcome.spend("refine", found.curve.seconds)
    return found.quantised
