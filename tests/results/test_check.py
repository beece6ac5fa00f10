"""The gate lets equal and better runs pass, and fails on every kind of regression."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.cli import judge
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge.check import CheckReport, check
from results.judge.junit import junit
from results.judge.objectives import inputs_are_fixed, spreads
from results.store.records import LayerResult, TaskResult
from tests.fixtures.records import Correct, command, make_cell, make_folder, make_key, make_record

ACCURACIES = {"digits": 0.8, "shapes": 0.6}


def layer(objective: float, name: str = "block.0") -> LayerResult:
    return LayerResult(name=name, rows=8, columns=4, objective=objective)


def compare(path: Path, now: dict[str, float] | None = None, objective: float = 0.25) -> CheckReport:
    golden = make_folder(path / "golden", make_cell("a", ACCURACIES))
    run = make_folder(path / "run", make_cell("a", now or ACCURACIES, layers=[layer(objective)]))
    return check(Analysis(run), Analysis(golden))


def verdicts(report: CheckReport) -> dict[str, str]:
    return {move.quantity: move.verdict for move in report.moves}


def flip(correct: Correct, task: str, count: int) -> Correct:
    """Get ``count`` more samples of a task right (the first wrong ones), or fewer where it is negative."""
    changed = correct[task].copy()
    changed[np.flatnonzero(changed != (count > 0))[: abs(count)]] = count > 0
    return {**correct, task: changed}


def test_a_run_passes_beside_itself(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"), make_cell("b"))
    report = check(Analysis(folder), Analysis(folder))
    assert not report.failed
    assert report.moves == ()
    assert report.render() == (
        "passed: 2 golden cells, 0 moves, 0 of them regressions; "
        "6 tests of accuracy and 2 of layer objectives at a false-alarm rate of 1.00% together\n"
    )


def test_a_loss_of_several_points_fails(tmp_path: Path) -> None:
    report = compare(tmp_path, {"digits": 0.74, "shapes": 0.54})
    assert report.failed
    assert verdicts(report)["accuracy, all samples"] == "worse"
    assert "-6.00 points" in report.render()
    assert "FAILED: 1 golden cells, 3 moves, 3 of them regressions" in report.render()


def test_a_loss_within_noise_is_listed_and_passes(tmp_path: Path) -> None:
    report = compare(tmp_path, {"digits": 0.78, "shapes": 0.6})
    assert not report.failed
    assert verdicts(report) == {"accuracy, all samples": "within noise", "accuracy digits": "within noise"}
    assert "80.00" in report.render()
    assert "78.00" in report.render()


def test_a_gain_is_listed_and_passes(tmp_path: Path) -> None:
    report = compare(tmp_path, {"digits": 0.9, "shapes": 0.6})
    assert not report.failed
    assert verdicts(report) == {"accuracy, all samples": "better", "accuracy digits": "better"}


def test_a_broken_task_is_not_hidden_by_a_gain_elsewhere(tmp_path: Path) -> None:
    report = compare(tmp_path, {"digits": 0.65, "shapes": 0.95})
    assert report.failed
    assert verdicts(report) == {
        "accuracy, all samples": "better",
        "accuracy digits": "worse",
        "accuracy shapes": "better",
    }


def test_one_unlucky_task_of_twenty_passes(tmp_path: Path) -> None:
    golden = {f"task-{index:02}": np.arange(200) < 100 for index in range(20)}
    now = flip(flip(golden, "task-03", -10), "task-07", 10)  # alone, a loss of 10 has p = 2^-10 < rate
    folders = [
        make_folder(tmp_path / name, (make_record(correct, "a"), correct))
        for name, correct in (("golden", golden), ("run", now))
    ]
    report = check(Analysis(folders[1]), Analysis(folders[0]))
    assert not report.failed
    assert verdicts(report) == {"accuracy task-03": "within noise", "accuracy task-07": "within noise"}


def test_the_test_is_paired(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    golden = {"digits": rng.random(400) < 0.5}
    lost, churned = flip(golden, "digits", -12), flip(flip(golden, "digits", 100), "digits", -112)
    assert lost["digits"].sum() == churned["digits"].sum() == golden["digits"].sum() - 12
    folders = [
        make_folder(tmp_path / name, (make_record(correct, "a"), correct))
        for name, correct in (("golden", golden), ("lost", lost), ("churned", churned))
    ]
    assert check(Analysis(folders[1]), Analysis(folders[0])).failed
    assert not check(Analysis(folders[2]), Analysis(folders[0])).failed


def test_noise_seldom_fails(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    failures = 0
    for index in range(20):
        runs = []
        for name in ("golden", "run"):
            correct = {task: rng.random(300) < 0.7 for task in ("digits", "shapes")}
            runs.append(make_folder(tmp_path / f"{name}{index}", (make_record(correct, "a"), correct)))
        failures += check(Analysis(runs[1]), Analysis(runs[0]), rate=0.01).failed
    assert failures <= 1  # P(more than 1 of 20) < 2 %


def test_more_cells_make_one_family_with_a_stricter_level_each(tmp_path: Path) -> None:
    golden = {"digits": np.arange(200) < 100}
    lost = flip(golden, "digits", -10)  # p = 2^-10, over all samples and on the task
    others = [(make_record(golden, name, seed=1), golden) for name in "bcdefghi"]
    alone = [
        make_folder(tmp_path / f"{n}1", (make_record(c, "a"), c)) for n, c in (("g", golden), ("r", lost))
    ]
    among = [
        make_folder(tmp_path / f"{n}9", (make_record(c, "a"), c), *others)
        for n, c in (("g", golden), ("r", lost))
    ]
    assert check(Analysis(alone[1]), Analysis(alone[0])).failed  # 2 tests
    report = check(Analysis(among[1]), Analysis(among[0]))
    assert (report.accuracy_tests, report.objective_tests) == (18, 9)
    assert not report.failed  # 27 * 2^-10 > 1 %
    assert check(Analysis(among[1]), Analysis(among[0]), rate=0.03).failed


def test_a_spearman_task_is_tested_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=400)
    runs = []
    for name, noise in (("golden", 0.5), ("same", 0.5), ("worse", 1.5)):
        predicted = reference + noise * rng.normal(size=400)
        value = float(spearmanr(predicted, reference).statistic)
        task = TaskResult(metric="spearman", value=value, samples=400)
        record = make_record({"x": np.ones(1, bool)}, "a", tasks={"stsb": task}, average=value)
        folder = make_folder(tmp_path / name)
        folder.append(record, {}, {"stsb@prediction": predicted, "stsb@reference": reference})
        runs.append(folder)
    assert not check(Analysis(runs[1]), Analysis(runs[0])).failed
    assert verdicts(check(Analysis(runs[2]), Analysis(runs[0]))) == {"correlation stsb": "worse"}


FIXED = {"group_size": None, "symmetric": False, "source": "merged"}
STREAM = {**FIXED, "source": "quantised"}


def objectives(path: Path, axes: dict[str, Any], *ratios: float) -> CheckReport:
    """The report on a run whose layers' objectives are ``ratios`` times the golden run's."""
    sides = []
    for name, factors in (("golden", [1.0] * len(ratios)), ("run", ratios)):
        layers = [layer(0.25 * factor, f"block.{index}") for index, factor in enumerate(factors)]
        sides.append(Analysis(make_folder(path / name, make_cell("a", layers=layers, axes=axes))))
    return check(sides[1], sides[0])


@pytest.mark.parametrize(
    ("ratio", "failed", "verdict"), [(1.1, True, "worse"), (0.9, False, "better"), (1.001, False, None)]
)
def test_a_layer_of_fixed_inputs_is_judged_by_the_spread_of_other_processors(
    tmp_path: Path, ratio: float, failed: bool, verdict: str | None
) -> None:
    report = objectives(tmp_path, FIXED, *[1.0] * 20, ratio)
    assert report.failed == failed
    assert verdicts(report).get("objective block.20") == verdict
    if verdict is None:
        assert set(verdicts(report).values()) == {"within noise"}


def test_a_layer_behind_rounded_ones_is_shown_and_judged_in_the_mean_alone(tmp_path: Path) -> None:
    report = objectives(tmp_path / "one", STREAM, *[1.0] * 20, 1.14)
    assert not report.failed
    assert verdicts(report)["objective, largest of 1 other moves"] in ("not tested alone", "within noise")
    every = objectives(tmp_path / "every", STREAM, *[1.5] * 21)
    assert {q for q, v in verdicts(every).items() if v == "worse"} == {"objective, mean of 21 layers"}


def test_small_losses_at_every_layer_are_seen_in_the_mean(tmp_path: Path) -> None:
    spread = spreads(make_cell("a", axes=FIXED)[0])
    small = math.exp(4 * spread["layer"])  # p is 0.8 % at one layer: nothing among so many tests
    report = objectives(tmp_path, FIXED, *[small] * 400)
    assert (
        verdicts(report)["objective, mean of 400 layers"] == "worse" or spread["mean"] > spread["layer"] / 4
    )


def test_an_objective_of_round_off_size_may_change(tmp_path: Path) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a", layers=[layer(0.0), layer(1e-15, "block.1")]))
    run = make_folder(tmp_path / "run", make_cell("a", layers=[layer(2e-14), layer(-1e-15, "block.1")]))
    assert not check(Analysis(run), Analysis(golden)).failed
    now = make_folder(tmp_path / "now", make_cell("a", axes=FIXED, layers=[layer(0.1), layer(0, "block.1")]))
    before = make_folder(
        tmp_path / "before", make_cell("a", axes=FIXED, layers=[layer(0), layer(0, "block.1")])
    )
    assert check(Analysis(now), Analysis(before)).failed


@pytest.mark.parametrize(
    ("axes", "fixed"),
    [
        ({"source": "merged"}, True),
        ({"source": "expert"}, True),
        ({"source": "quantised"}, False),
        ({}, False),
        ({"source": "quantised", "then.source": "merged"}, True),
        ({"source": "merged", "then.source": "quantised"}, False),
    ],
)
def test_inputs_are_fixed_where_the_rounding_pass_does_not_read_the_rounded_model(
    axes: dict[str, Any], fixed: bool
) -> None:
    assert inputs_are_fixed(make_cell("a", axes=axes)[0]) == fixed
    assert inputs_are_fixed(make_cell("a", axes=axes, bits=None)[0])


def test_a_missing_cell_task_or_layer_fails(tmp_path: Path) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a"), make_cell("b"))
    run = make_folder(tmp_path / "run", make_cell("a", {"digits": 0.8}, layers=[]), make_cell("c"))
    report = check(Analysis(run), Analysis(golden))
    assert report.failed
    assert [(move.cell, move.quantity, move.verdict) for move in report.moves] == [
        (f"ties gptq merged 4-bit ({make_key('a')})", "accuracy shapes", "missing"),
        (f"ties gptq merged 4-bit ({make_key('a')})", "objective block.0", "missing"),
        (f"ties gptq merged 4-bit ({make_key('b')})", "record", "missing"),
    ]


def test_a_damaged_line_of_the_run_is_a_missing_cell(tmp_path: Path) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a"))
    run = make_folder(tmp_path / "run", make_cell("a"))
    (tmp_path / "run" / "records.jsonl").write_text("{}\n")
    assert check(Analysis(run), Analysis(golden)).failed


@pytest.mark.parametrize("other", [{"suite_version": 2}, {"suite": "toys"}], ids=str)
def test_another_suite_version_fails(tmp_path: Path, other: dict[str, Any]) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a"))
    run = make_folder(tmp_path / "run", make_cell("a", **other), **other)
    report = check(Analysis(run), Analysis(golden))
    assert report.failed
    assert verdicts(report) == {"suite": "other suite version"}


def test_another_device_class_or_a_rehearsal_is_said_as_such(tmp_path: Path) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a"))
    other = make_folder(tmp_path / "other", make_cell("b", device="cuda", dtype="bfloat16"))
    rehearsal = make_folder(tmp_path / "rehearsal", make_cell("a"), rehearsal=True)
    assert verdicts(check(Analysis(other), Analysis(golden))) == {"device": "other device"}
    assert verdicts(check(Analysis(rehearsal), Analysis(golden))) == {"run": "rehearsal"}
    assert check(Analysis(other), Analysis(golden)).failed
    assert check(Analysis(rehearsal), Analysis(golden)).failed


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: float) -> None:
    folder = make_folder(tmp_path, make_cell("a"))
    with pytest.raises(UserError, match="false-alarm rate"):
        check(Analysis(folder), Analysis(folder), rate=rate)


# -- for programs


def test_json_holds_the_outcome_and_every_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(tmp_path, {"digits": 0.74, "shapes": 0.6})
    arguments = ["check", tmp_path / "run", "--golden", tmp_path / "golden", "--json"]
    assert command(judge, *arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["false_alarm_rate"]) == (False, 0.01)
    assert (report["tests"], report["accuracy_tests"], report["objective_tests"]) == (4, 3, 1)
    assert {move["quantity"]: move["failed"] for move in report["moves"]} == {
        "accuracy, all samples": True,
        "accuracy digits": True,
    }


def test_junit_has_one_case_per_golden_cell(tmp_path: Path) -> None:
    cells = [make_cell("a"), make_cell("b"), make_cell("c")]
    golden = make_folder(tmp_path / "golden", *cells)
    worse = make_cell("b", {"digits": 0.6, "shapes": 0.61})
    run = make_folder(tmp_path / "run", make_cell("a"), worse)
    suite = ElementTree.fromstring(junit(check(Analysis(run), Analysis(golden)), "gate"))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.find("failure") is not None for case in suite] == [False, True, True]
    assert "accuracy digits: 80.00 -> 60.00" in str(suite[1].findtext("failure"))
    assert "accuracy shapes: 60.00 -> 61.00" in str(suite[1].findtext("system-out"))


def test_junit_escapes_names(tmp_path: Path) -> None:
    name = '<x a="b">&]]>'
    golden = make_folder(tmp_path / "golden", make_cell("a", method=name))
    run = make_folder(tmp_path / "run")
    document = junit(check(Analysis(run), Analysis(golden)), name)
    assert b"<x" not in document
    suite = ElementTree.fromstring(document)[0]
    assert suite.get("name") == name
    assert name in str(suite[0].get("name"))


def test_junit_says_when_nothing_could_be_compared(tmp_path: Path) -> None:
    golden = make_folder(tmp_path / "golden", make_cell("a"))
    run = make_folder(tmp_path / "run", make_cell("a", suite_version=2), suite_version=2)
    suite = ElementTree.fromstring(junit(check(Analysis(run), Analysis(golden)), "gate"))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


@pytest.mark.parametrize("damage", ["empty", "line", "samples", "records"])
def test_a_golden_run_with_a_problem_never_passes(tmp_path: Path, damage: str) -> None:
    golden = make_folder(tmp_path, make_cell("a"))
    lines = tmp_path / "records.jsonl"
    if damage == "empty":
        lines.write_bytes(b"")
    elif damage == "line":
        lines.write_bytes(lines.read_bytes() + b"{}\n")
    elif damage == "samples":
        (tmp_path / "samples" / f"{make_key('a')}.npz").write_bytes(b"")
    else:
        lines.unlink()
    with pytest.raises(UserError) as caught:
        check(Analysis.open(tmp_path), Analysis(golden))
    assert "\n" not in str(caught.value)


def test_a_run_on_other_samples_is_an_error(tmp_path: Path) -> None:
    correct = {task: np.ones(100, bool) for task in ("digits", "shapes")}
    golden = make_folder(tmp_path / "golden", make_cell("a"))
    run = make_folder(tmp_path / "run", (make_record(correct, "a"), correct))
    with pytest.raises(UserError, match="cannot pair 100 samples of digits with 200"):
        check(Analysis(run), Analysis(golden))
