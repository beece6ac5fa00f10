"""A run stands beside the paper's numbers where the paper has any, and beside nothing invented."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cli import judge
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.paper.compare import BesidePaper, Line, compare, status, tolerance
from results.paper.text import FORMATS, to_markdown
from results.store.records import Record, TaskResult
from tests.fixtures.records import Correct, command, make_cell, make_folder, make_record, read_by

B32 = "clip-vit-b32-8"
TASKS = ("sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
AXES = {"group_size": None, "symmetric": False, "samples": 256}
Cell = tuple[Record, Correct]


def cell(name: str, accuracy: float, suite: str = B32, **changes: Any) -> Cell:
    correct = {task: np.arange(1000) < round(1000 * accuracy) for task in TASKS}
    return make_record(correct, name, **{"suite": suite, "merge": "task-arithmetic", **changes}), correct


def control(name: str, accuracy: float, **changes: Any) -> Cell:
    plain: dict[str, Any] = {
        "kind": "control",
        "rounding": None,
        "target": None,
        "bits": None,
        "axes": {},
        "layers": (),
    }
    return cell(name, accuracy, **{**plain, "bits_per_weight": None, **changes})


def epmq(name: str, accuracy: float, **changes: Any) -> Cell:
    guided = {"target": "expert", "axes": {**AXES, "anchor": 0.1, "mixing": 0.0}}
    return cell(name, accuracy, **{"method": "epmq", **guided, **changes})


def compared(path: Path, *cells: Cell, suite: str = B32, **manifest: Any) -> BesidePaper:
    told = {"suite": suite, "suite_sha256": read_by(suite), **manifest}
    return compare(Analysis(make_folder(path, *cells, **told)))


def line(comparison: BesidePaper, method: str, merge: str | None = "task-arithmetic") -> Line:
    (found,) = [line for line in comparison.lines if (line.method, line.merge) == (method, merge)]
    return found


def test_ours_stands_beside_the_papers_number(tmp_path: Path) -> None:
    found = compared(tmp_path, cell("g", 0.65), epmq("e", 0.75))
    gptq, guided = line(found, "gptq"), line(found, "epmq")
    assert gptq.ours == pytest.approx(65.0)
    assert (gptq.published, gptq.status) == (65.0, "match")
    assert (guided.published, guided.status) == (73.6, "mismatch")
    assert guided.difference == pytest.approx(1.4)
    assert line(found, "epmq-features").status == "not run"
    assert line(found, "epmq-features").published == 73.6
    assert {x.status for x in found.lines if x.merge == "ties"} == {"not run"}
    assert found.marks == []


def test_seeds_are_averaged(tmp_path: Path) -> None:
    found = compared(tmp_path, cell("a", 0.64), cell("b", 0.67, seed=1))
    assert line(found, "gptq").ours == pytest.approx(65.5)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [(0.0, "match"), (-0.05, "match"), (0.06, "within noise"), (-0.7, "within noise"), (0.71, "mismatch")],
)
def test_the_status_follows_from_difference_and_tolerance(difference: float, expected: str) -> None:
    assert status(difference, 0.7) == expected


def test_the_tolerance_is_the_largest_of_three() -> None:
    few = {"x": TaskResult(value=0.5, samples=100)}
    many = {"x": TaskResult(value=0.5, samples=10_000_000)}
    assert tolerance(B32, few) == pytest.approx(100 * 1.959964 * 0.05)
    assert tolerance(B32, many) == 0.5


def test_the_disagreement_of_public_reproductions_can_be_the_tolerance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from results.paper import ledger

    bound = next(bound for bound in ledger.bounds() if bound.suite == B32)
    monkeypatch.setattr(
        ledger, "bounds", lambda: (bound, bound.model_copy(update={"average_recomputed": 50.0}))
    )
    many = {"x": TaskResult(value=0.5, samples=10_000_000)}
    assert tolerance(B32, many) == pytest.approx(50.0 - 48.25)


def test_a_merge_that_the_abstract_does_not_state_is_shown_so(tmp_path: Path) -> None:
    suite = "clip-vit-l14-20"
    cells = [
        cell("t", 0.35, suite),
        cell("i", 0.5, suite, merge="ties"),
        cell("r", 0.5, suite, bits=3, merge="x"),
    ]
    found = compared(tmp_path / "run", *cells, suite=suite)
    assert [(x.merge, x.published) for x in found.lines if x.method == "gptq"] == [
        ("task-arithmetic", 34.8),
        ("ties", 34.8),
    ]
    assert not any(x.merge_stated for x in found.lines if x.section == "headline")
    assert "task-arithmetic (not stated)" in to_markdown(found)
    assert "merge not stated" in to_markdown(found)
    none = compared(tmp_path / "none", suite=suite)
    assert [(x.merge, x.status) for x in none.lines if x.method == "gptq"] == [(None, "not run")]


def test_settings_of_a_method_each_have_a_line(tmp_path: Path) -> None:
    other = epmq("f", 0.7, axes={**AXES, "anchor": 0.5, "mixing": 0.0})
    found = compared(tmp_path, epmq("e", 0.75), other)
    assert line(found, "epmq (anchor=0.1)").ours == pytest.approx(75.0)
    assert line(found, "epmq (anchor=0.5)").ours == pytest.approx(70.0)


def test_controls_stand_beside_the_newest_published_bound(tmp_path: Path) -> None:
    scaled = {"method": "merged", "merge_options": {"scale": 0.3}}
    cells = [
        control("z", 0.48, method="zero-shot", merge=None),
        control("e", 0.904, method="experts", merge=None),
        control("m", 0.675, **scaled),
        control("n", 0.5, method="merged", merge_options={"scale": 0.5}),
        control("r", 0.5, method="regmean", merge="simple-average"),
    ]
    found = compared(tmp_path, *cells)
    zero, merged = line(found, "zero-shot", None), line(found, "merged 0.3")
    assert (zero.published, zero.status) == (48.0806, "within noise")
    assert (merged.published, merged.status) == (67.5481, "match")
    assert line(found, "experts", None).status == "match"
    assert line(found, "regmean", "simple-average").status == "mismatch"
    assert line(found, "merged 0.3", "ties").status == "not run"
    assert zero.worst_task is not None
    task, difference, known = zero.worst_task
    assert task == "svhn"
    assert difference == pytest.approx(48.0 - 31.63, abs=0.01)
    assert known < 0.1


def test_another_suite_gets_the_claims_and_no_number_of_the_paper(tmp_path: Path) -> None:
    found = compare(
        Analysis(make_folder(tmp_path, make_cell("g"), make_cell("e", {"digits": 0.9, "shapes": 0.7})))
    )
    assert found.lines == ()
    assert "Not the paper's suite" in found.marks[0]
    text = to_markdown(found)
    assert text.index("Not the paper's suite") < text.index("## Claims")
    assert "Headline" not in text
    assert "65.0" not in text


def test_a_rehearsal_is_marked_before_any_number(tmp_path: Path) -> None:
    found = compared(tmp_path, cell("g", 0.65), rehearsal=True)
    assert to_markdown(found).splitlines()[2].startswith("> **REHEARSAL")
    assert json.loads(FORMATS["json"](found))["rehearsal"] is True
    assert {row["rehearsal"] for row in csv.DictReader(io.StringIO(FORMATS["csv"](found)))} == {"True"}


def test_every_format_tells_the_same(tmp_path: Path) -> None:
    found = compared(tmp_path, cell("g", 0.65), epmq("e", 0.75))
    parsed = json.loads(FORMATS["json"](found))
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](found))))
    assert [(x["method"], x["status"]) for x in rows[: len(found.lines)]] == [
        (x["method"], x["status"]) for x in parsed["lines"]
    ]
    gain = next(row for row in rows if row["section"] == "C1")
    assert (float(gain["ours"]), gain["status"]) == (parsed["claims"][0]["findings"][0]["value"], "passes")
    assert [claim["verdict"] for claim in parsed["claims"]] == [v.overall for v in found.verdicts]
    assert " +10.00 |" in to_markdown(found)
    assert "### C1: supported" in to_markdown(found)


def test_names_cannot_break_the_tables(tmp_path: Path) -> None:
    name = "<img src=x>|**b**"
    cells = [cell("g", 0.6, method="x"), epmq("e", 0.7, method=name, merge="task-arithmetic")]
    text = to_markdown(compared(tmp_path, *cells))
    assert "<img" not in text.replace("\\<img", "")
    assert "\\|\\*\\*b" in text


def test_the_command_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared(tmp_path / "run", cell("g", 0.65))
    assert command(judge, "compare", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {B32} version 1 beside the paper\n")
    for fmt in FORMATS:
        out = tmp_path / f"out.{fmt}"
        assert command(judge, "compare", tmp_path / "run", "--format", fmt, "--out", out) == 0
        assert out.stat().st_size > 0
    assert (tmp_path / "out.md").read_text() == printed
    with pytest.raises(UserError, match="cannot write it"):
        command(judge, "compare", tmp_path / "run", "--out", tmp_path / "none" / "out.md")
