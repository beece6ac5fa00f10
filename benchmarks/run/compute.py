"""One cell at work: its merge, its calibration and rounding, then what it predicts."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from benchmarks.run import choosing, models, refining, solvers
from benchmarks.run.cells import BASE, Cell
from benchmarks.run.outcome import Outcome
from benchmarks.workbench.base import Workbench
from epmq.calibration import Calibration
from epmq.layer.weight import QuantizedWeight
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.walk import Solver, centre, refuse_unfit, walk


def refuse_impossible(workbench: Workbench, cell: Cell) -> None:
    """Refuse a cell that cannot be computed, before any work; raises UserError."""
    if cell.samples is not None:
        for task in workbench.suite.tasks:
            workbench.sample_ids(task, cell.samples, cell.seed)
            for each in (cell.before, cell.after):
                if each is not None:
                    each.budget.split(task.task, cell.samples)
            if cell.search is not None:
                Budget(held_out=cell.search.held_out).split(task.task, cell.samples)
    for calibration in cell.passes:
        refuse_unfit(workbench.tower, calibration, workbench.models.base)
        for part, group in layer_groups(workbench.tower, calibration.layers).values():
            weight = workbench.tower.get_parameter(f"{part}.{group[0]}.weight")
            if cell.spec is not None:
                cell.spec.columns_per_group(weight.shape[1])


def compute(workbench: Workbench, cells: Sequence[Cell]) -> list[Outcome]:
    """Compute cells one after the other, then evaluate them in one pass over the test samples."""
    outcomes = [Outcome() for _ in cells]
    if cells[0].own != "nothing":
        _evaluate_own(workbench, cells[0], outcomes[0])
    else:
        pairs = zip(cells, outcomes, strict=True)
        towers = [workbench.kept(_kept_model(workbench, cell, outcome)) for cell, outcome in pairs]
        _evaluate(workbench, towers, list(workbench.models.experts), outcomes)
    for outcome in outcomes:
        outcome.peak_memory = peak_memory()
    return outcomes


def together(cells: Sequence[Cell], count: int) -> Iterator[list[Cell]]:
    """Cells in order, in groups that one pass evaluates; what is a model per task is a group alone."""
    group: list[Cell] = []
    for cell in cells:
        alone = any(each.own != "nothing" for each in (cell, *group[-1:]))
        if group and (len(group) == count or alone):
            yield group
            group = []
        group.append(cell)
    if group:
        yield group


def _evaluate_own(workbench: Workbench, cell: Cell, outcome: Outcome) -> None:
    """Every task by a model with its own expert's part."""
    for task, expert in workbench.models.experts.items():
        tower = workbench.tower
        if cell.own == "all":
            tower.load_all(expert)
        else:
            tower, _ = model(workbench, cell, outcome)
            for part, group in layer_groups(tower).values():
                for path in group:
                    tower.load(tower.get_submodule(f"{part}.{path}"), f"{part}.{path}", expert)
        _evaluate(workbench, [tower], [task], [outcome])


def _evaluate(
    workbench: Workbench, towers: Sequence[Tower], tasks: Sequence[str], outcomes: Sequence[Outcome]
) -> None:
    start = time.perf_counter()
    specs = [task for task in workbench.suite.tasks if task.task in tasks]
    for task in tqdm(specs, desc="  evaluating", leave=False, delay=2):
        for outcome, answers in zip(outcomes, workbench.answers(towers, task), strict=True):
            outcome.answers[task.task] = answers
    for outcome in outcomes:
        outcome.spend("evaluate", (time.perf_counter() - start) / len(outcomes))


def _kept_model(workbench: Workbench, cell: Cell, outcome: Outcome) -> Tower:
    """The cell's model, kept in the cache where that is asked for."""
    tower, quantised = model(workbench, cell, outcome)
    if workbench.setting.keep_models:
        models.keep(workbench, cell, tower, quantised)
    return tower


def model(
    workbench: Workbench, cell: Cell, outcome: Outcome, keeping: Callable[[Solver], Solver] = lambda x: x
) -> tuple[Tower, Mapping[str, QuantizedWeight]]:
    """What the cell starts from, calibrated and rounded: the tower, and its quantised weights by group.

    Args:
        keeping: what the rounding of the last pass is wrapped in, to keep what it solves.
    """
    if cell.start == BASE:
        return workbench.tower.load_all(workbench.models.base), {}
    if cell.search is not None:
        cell = choosing.chosen(workbench, cell, outcome)
    with outcome.timed("merge"):
        tower = workbench.merged(cell.start, cell.merge_options)
    if cell.before is not None:
        refining.start(workbench, cell, tower, outcome)
    quantised: Mapping[str, QuantizedWeight] = {}
    for calibration, solve in solvers.passes(cell):
        kept = solve if solve is centre else keeping(solve)
        quantised = _walk(workbench, cell, tower, calibration, kept, outcome)
    if cell.after is not None:
        quantised = refining.end(workbench, cell, tower, quantised, outcome)
    return tower, quantised


def _walk(
    workbench: Workbench, cell: Cell, tower: Tower, calibration: Calibration, solve: Solver, outcome: Outcome
) -> dict[str, QuantizedWeight]:
    """One pass; returns the quantised weights by group."""
    assert cell.samples is not None
    inputs = workbench.calibration_inputs(cell.samples, cell.seed, cell.decoder)
    models = workbench.models
    steps = walk(tower, models.experts, inputs, calibration, solve, base=models.base)
    total = len(layer_groups(tower, calibration.layers))
    outcome.layers, found = [], {}
    for layer in tqdm(steps, desc="  layers", total=total, leave=False, delay=2):
        if layer.solution is not None:
            found[layer.name] = layer.solution
        outcome.layers.append(replace(layer, solution=None))
        outcome.spend("calibrate", layer.calibrate_seconds)
        outcome.spend("quantise", layer.solve_seconds)
        outcome.warnings |= {f"{layer.name}: {warning}" for warning in layer.warnings}
    return found


def peak_memory() -> int:
    """Peak resident bytes of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
