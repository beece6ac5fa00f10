"""The gate's measured false-alarm rate is the stated one, and its power grows with the loss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import gate
from benchmarks.studies.gate import GateReport, Measured, measure
from epmq.errors import UserError
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.records import Correct, make_folder, make_record


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    rng = np.random.default_rng(0)
    cells: list[tuple[Record, Correct]] = []
    for name, accuracy in (("a", 0.6), ("b", 0.65), ("c", 0.9)):
        correct = {task: rng.random(800) < accuracy for task in ("digits", "shapes", "signs")}
        cells.append((make_record(correct, name, seed=len(cells)), correct))
    return make_folder(tmp_path / "run", *cells)


def found(report: GateReport, churn: float, loss: float, where: str = "") -> Measured:
    return next(m for m in report.measured if (m.churn, m.loss, m.where) == (churn, loss, where))


def test_the_measured_false_alarm_rate_is_the_stated_one(run: RunFolder) -> None:
    report = measure(run, replicas=2000, rate=0.05, churns=(0.3, 1.0), losses=())
    assert (report.tests, report.objective_tests) == (3 * (1 + 3), 3)  # every cell has one layer: its mean
    assert report.keeps_its_rate
    for churn in (0.3, 1.0):
        assert 0.02 <= found(report, churn, 0).rate <= 0.055


def test_power_grows_with_the_loss_and_where_runs_agree_more(run: RunFolder) -> None:
    report = measure(run, churns=(0.05, 1.0))
    assert found(report, 0.05, 0).rate <= 0.03
    assert found(report, 0.05, 3, "one cell").rate > 0.95
    assert found(report, 0.05, 1, "one cell").rate < found(report, 0.05, 3, "one cell").rate
    assert found(report, 1.0, 3, "one cell").rate < found(report, 0.05, 3, "one cell").rate
    assert found(report, 0.05, 1, "one cell").rate < found(report, 0.05, 1, "every cell").rate


def test_a_replica_is_as_good_as_its_golden_run(run: RunFolder) -> None:
    right = gate._right(run)
    counts = gate._replicas(right, 300, 0.5, np.random.default_rng(1))
    both, lost, gained = counts
    accuracy = np.stack([task.mean(axis=1) for task in right], axis=-1)
    for kept in (both + lost, both + gained):
        assert kept.mean(axis=0) / 800 == pytest.approx(accuracy, abs=0.005)
    assert (lost + gained).mean(axis=0) / 800 == pytest.approx(accuracy * (1 - accuracy), abs=0.005)


def test_a_loss_takes_the_points_that_it_says_from_the_cells_it_hits(run: RunFolder) -> None:
    rng, right = np.random.default_rng(2), gate._right(run)
    counts = gate._replicas(right, 300, 0.2, rng)
    hit = np.tile([True, False, True], (300, 1))
    before, after = counts, gate._lossy(counts, right, 3.0, hit, rng)
    assert (after.sum(axis=0) <= before.sum(axis=0)).all()
    taken = ((before[0] + before[2]) - (after[0] + after[2])).mean(axis=0) / 800
    assert taken == pytest.approx(np.array([[0.03] * 3, [0.0] * 3, [0.03] * 3]), abs=0.002)


def test_a_rate_above_the_stated_one_is_said(run: RunFolder) -> None:
    alarm = Measured(1.0, 0.0, "", 30, 200, 0.1, 0.2)
    report = GateReport("run", 1, 2, 0, 0.01, (alarm,))
    assert not report.keeps_its_rate
    assert "DISAGREES" in report.render()


def test_the_same_seed_gives_the_same_rates(run: RunFolder) -> None:
    assert measure(run, replicas=20) == measure(run, replicas=20)
    assert measure(run, replicas=20, seed=1) != measure(run, replicas=20)


def test_the_command_prints_false_alarms_and_power(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gate.main([str(run.path), "--replicas", "50"]) == 0
    text = capsys.readouterr().out
    assert "none (false alarms)" in text
    assert "3 points" in text
    assert "stated false-alarm rate: at most 1.00%; measured: agrees" in text
    assert gate.main([str(run.path), "--replicas", "50", "--churn", "1", "--loss", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["loss"] for entry in report["measured"]] == [0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    "arguments", [["--replicas", 0], ["--churn", 0], ["--churn", 1.5], ["--rate", 1], ["--loss", -1]], ids=str
)
def test_arguments_out_of_range_are_refused(
    run: RunFolder, arguments: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        gate.main([str(run.path), *map(str, arguments)])
    assert "must be" in capsys.readouterr().err


def test_cells_on_different_samples_are_refused(tmp_path: Path) -> None:
    cells = []
    for name, size in (("a", 100), ("b", 200)):
        correct = {"digits": np.ones(size, bool)}
        cells.append((make_record(correct, name), correct))
    with pytest.raises(UserError, match="same samples"):
        measure(make_folder(tmp_path, *cells))
    with pytest.raises(UserError, match="same samples"):
        measure(make_folder(tmp_path / "none"))
