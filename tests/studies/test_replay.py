"""The gate passes the same code on another processor, and fails worse code: on runs of the tiny suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.studies.replay import false_alarms, perturbed, pooled, spread
from epmq.layer import grid
from results.analysis.analysis import Analysis
from results.judge.check import CheckReport, check
from tests.fixtures.records import make_folder, make_record
from tests.fixtures.tiny_suite import TinySuite

Replay = Callable[[str], Analysis]


@pytest.fixture(scope="module")
def replay(tiny: TinySuite, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """Runs the regression comparison's methods from fixed inputs, under a name that is used once."""

    def replayed(name: str) -> Analysis:
        request = Request(
            merge=["task-arithmetic"],
            method=["rtn", "gptq", "epmq", "epmq-features"],
            target=["merged"],
            bits=[4],
            controls=["merged"],
            samples=[16],
            calibration={"source": "merged"},
        )
        return Analysis(run(tiny.suite, request, tmp_path_factory.mktemp("runs") / name, {}))

    return replayed


@pytest.fixture(scope="module")
def golden(replay: Replay) -> Analysis:
    return replay("golden")


@pytest.fixture(scope="module")
def elsewhere(replay: Replay) -> Analysis:
    """The same code where the last bits of every product are others."""
    with perturbed(seed=1):
        return replay("elsewhere")


def failed(report: CheckReport) -> set[str]:
    return {move.quantity for move in report.moves if move.failed}


def test_products_are_perturbed_by_the_last_bits_alone() -> None:
    a, b = torch.randn(2, 30, 30, generator=torch.Generator().manual_seed(0))
    with perturbed(seed=0, scale=4):
        changed, again = a @ b, torch.nn.functional.linear(a, b)
    gap = ((changed - a @ b) / (a @ b)).abs()
    assert 0 < float(gap.max()) < 5 * torch.finfo(torch.float32).eps
    assert not torch.equal(again, torch.nn.functional.linear(a, b))


def test_another_processor_changes_objectives_and_passes_the_gate(
    golden: Analysis, elsewhere: Analysis
) -> None:
    report = check(elsewhere, golden)
    assert any(move.quantity.startswith("objective") for move in report.moves)
    assert not report.failed, report.render()
    assert false_alarms([golden, elsewhere]) == (0, 2)
    assert report.objective_tests == 4 * (8 + 1)


def test_the_spread_is_measured_over_pairs(golden: Analysis, elsewhere: Analysis) -> None:
    found = list(spread([golden, elsewhere]))
    assert [one.cell for one in found] == [
        f"task-arithmetic {name}" for name in ("rtn", "gptq", "epmq", "epmq-features")
    ]
    assert all(one.fixed_inputs and one.pairs == 1 for one in found)
    assert all(0 < one.layer <= one.largest < 0.1 for one in found)
    with pytest.raises(ValueError, match="empty"):  # no cell with quantised inputs: nothing to judge those by
        pooled(found)


def test_a_worse_rounding_fails_the_gate(
    replay: Replay, golden: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = grid.stored
    monkeypatch.setattr(grid, "stored", lambda scale, spec: stored(1.02 * scale, spec))
    report = check(replay("coarser"), golden)
    assert any(quantity.startswith("objective, mean") for quantity in failed(report)), report.render()


def test_a_task_that_loses_three_points_fails_the_gate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = {task: rng.random(1000) < 0.7 for task in ("digits", "shapes", "signs")}
    lost = before["shapes"].copy()
    lost[np.flatnonzero(lost)[:30]] = False
    cells: Any = [before, {**before, "shapes": lost}]
    runs = [
        Analysis(make_folder(tmp_path / str(index), (make_record(correct, "a"), correct)))
        for index, correct in enumerate(cells)
    ]
    report = check(runs[1], runs[0])
    assert "accuracy shapes" in failed(report)
    assert "accuracy digits" not in failed(report)
