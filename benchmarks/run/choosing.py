"""A cell's choice of its merge's options and its axes, on calibration samples that are held out.

No label is read and no test sample. What was tried is kept, so that a killed choice goes on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.run import solvers, unfinished
from benchmarks.run.cells import Cell
from benchmarks.run.outcome import Choice, Outcome, Trial
from benchmarks.workbench.base import Workbench
from epmq.errors import UserError
from epmq.files import replacing
from epmq.gather.passes import Batches
from epmq.refinement.budget import Budget
from epmq.refinement.descent import EVALUATED, Lessons, held_out_loss
from epmq.refinement.samples import Rows
from epmq.walk import walk


def chosen(workbench: Workbench, cell: Cell, outcome: Outcome) -> Cell:
    """The cell with the options and axes whose model is the nearest to the experts on held-out samples.

    Raises:
        UserError: no setting gives a distance that is a number.
    """
    search, file = cell.search, unfinished.place(workbench, "chosen/*.json", asdict(cell), cell.modules)
    assert search is not None
    assert cell.samples is not None
    with outcome.timed("teach"):
        budget = Budget(held_out=search.held_out, intermediate=0.0)
        lessons = workbench.lessons(cell.samples, cell.seed, cell.decoder, budget)
    trials = _Trials(workbench, lessons, budget, file)
    for name, values in search.merge.items():
        if name in cell.merge_options:
            options = [{**cell.merge_options, name: value} for value in values]
            cell = trials.best([cell, *(replace(cell, merge_options=each) for each in options)], passes=False)
    for name, values in search.axes.items():
        axes = [tuple(replace(each, **{name: value}) for each in cell.passes) for value in values]
        cell = trials.best([cell, *(replace(cell, passes=each) for each in axes)], passes=True)
    outcome.choice = Choice(_setting(cell, search.merge, search.axes), trials.made)
    outcome.spend("search", trials.seconds)
    file.unlink(missing_ok=True)
    return cell


def _setting(cell: Cell, merge: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """What a search may change, as it stands."""
    options = {name: cell.merge_options[name] for name in merge if name in cell.merge_options}
    return options | {name: getattr(cell.passes[-1], name) for name in axes}


class _Trials:
    """Held-out distances of settings, each tried once."""

    def __init__(self, workbench: Workbench, lessons: Lessons, budget: Budget, file: Path) -> None:
        self.workbench, self.lessons, self.budget, self.file = workbench, lessons, budget, file
        learnt = {task: learnt for task, (learnt, _) in lessons.parts(budget).items()}
        self.learnt = _Learnt(lessons.rows, learnt)
        self.made: list[Trial] = _read(file)
        self.seconds = sum(trial.seconds for trial in self.made)

    def best(self, cells: Sequence[Cell], *, passes: bool) -> Cell:
        """The nearest cell, the earlier one of equals; ``passes``: after them, or as merged."""
        found = [(self._distance(cell, passes), cell) for cell in tqdm(cells, desc="  choosing", leave=False)]
        known = [(distance, cell) for distance, cell in found if distance is not None]
        if not known:
            raise UserError(
                "no setting of the search gives a model whose distance to the experts is a number; "
                "give the merge's options yourself"
            )
        return min(known, key=lambda each: each[0])[1]

    def _distance(self, cell: Cell, passes: bool) -> float | None:
        assert cell.search is not None
        setting = _setting(cell, cell.search.merge, cell.search.axes)
        if not passes:
            setting = {name: value for name, value in setting.items() if name in cell.merge_options}
        for trial in self.made:
            if trial.setting == setting:
                return trial.held_out
        start = time.perf_counter()
        tower = self.workbench.merged(cell.start, cell.merge_options)
        models = self.workbench.models
        for calibration, solve in solvers.passes(cell) if passes else ():
            for _ in walk(tower, models.experts, self.learnt, calibration, solve, base=models.base):
                pass
        distance = held_out_loss(tower, self.lessons, self.budget)
        seconds = time.perf_counter() - start
        self.made.append(Trial(setting, distance if math.isfinite(distance) else None, seconds))
        self.seconds += seconds
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps([asdict(trial) for trial in self.made]))
        return self.made[-1].held_out


class _Learnt(Mapping[str, Batches]):
    """The samples that are not held out, task by task, made when they are asked for."""

    def __init__(self, rows: Mapping[str, Rows], index: Mapping[str, Tensor]) -> None:
        self._rows, self._index = rows, index

    def __getitem__(self, task: str) -> Batches:
        return [self._rows[task].take(part) for part in self._index[task].split(EVALUATED)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)


def _read(file: Path) -> list[Trial]:
    """Trials of a killed choice; none where the file is not what was written."""
    try:
        return [Trial(**trial) for trial in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError):  # damaged in whatever way: nothing but time is lost
        return []
