"""A cell's refinements: from which samples, with which state on disk, at whose cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from baselines import refinements
from benchmarks.run.cells import Cell, Refining
from benchmarks.run.outcome import Outcome, Place
from benchmarks.sources import cache
from benchmarks.workbench import code
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
    file = _state(workbench, described, [cell.before.module])
    _refine(workbench, cell, (cell.before, "before"), tower, {}, file, outcome)


def end(
    workbench: Workbench,
    cell: Cell,
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    outcome: Outcome,
) -> None:
    """Refine what the last pass left; what was kept on disk to go on from is deleted."""
    assert cell.after is not None
    file = _state(workbench, asdict(cell), cell.modules)
    _refine(workbench, cell, (cell.after, "after"), tower, quantised, file, outcome)
    file.unlink(missing_ok=True)


def _refine(
    workbench: Workbench,
    cell: Cell,
    asked: tuple[Refining, Place],
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    state: Path,
    outcome: Outcome,
) -> None:
    refining, place = asked
    assert cell.samples is not None
    with outcome.timed("teach"):
        lessons = workbench.lessons(cell.samples, cell.seed, cell.decoder, refining.budget)
    found = refinements.get(refining.name)(tower, quantised, lessons, refining.budget, state)
    outcome.curves[place] = found.curve
    outcome.spend("refine", found.curve.seconds)


def _state(workbench: Workbench, described: Mapping[str, Any], modules: Sequence[str]) -> Path:
    """The file of a refinement's state, named by everything that its numbers depend on."""
    digest = code.code_digest(*map(Path, modules))
    origin = {"cell": described, "context": workbench.context, "code": digest}
    text = json.dumps(origin, sort_keys=True)
    return cache.folder("refined") / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.pt"
