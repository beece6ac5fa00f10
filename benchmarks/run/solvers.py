"""Which solver each calibration pass of a cell runs."""

from __future__ import annotations

from collections.abc import Iterator

import baselines
from benchmarks.run.cells import Cell
from epmq.calibration import Calibration
from epmq.layer.spec import QuantSpec
from epmq.walk import Solver, centre


def solver(rounding: baselines.Baseline, spec: QuantSpec) -> Solver:
    """A walk's solver that rounds every layer the same way."""
    return lambda problem: rounding(problem, spec)


def passes(cell: Cell) -> Iterator[tuple[Calibration, Solver]]:
    """The passes in order: full precision in all but the last, and in that where nothing is rounded."""
    for number, calibration in enumerate(cell.passes, 1):
        if number == len(cell.passes) and cell.rounding is not None and cell.spec is not None:
            yield calibration, solver(baselines.get(cell.rounding), cell.spec)
        else:
            yield calibration, centre
