"""Two runs side by side: what moved, by how much and how surely, and what explains it."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli.main import main
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.analysis.groups import outcomes
from results.analysis.stats import paired_bootstrap
from results.store.folder import RunFolder
from results.tables.diff import FORMATS, Diff, diff, render
from tests.fixtures.records import make_cell, make_correct, make_folder, make_key, make_record


def runs(tmp_path: Path, before: list[Any], after: list[Any], **manifest: Any) -> tuple[RunFolder, RunFolder]:
    return make_folder(tmp_path / "a", *before), make_folder(tmp_path / "b", *after, **manifest)


def compared(path: Path, before: list[Any], after: list[Any]) -> Diff:
    old, new = runs(path, before, after)
    return diff(Analysis(old), Analysis(new))


def moved(found: Diff) -> dict[str, float]:
    (cell,) = [cell for cell in found.cells if not cell.same]
    return {change.quantity: round(change.after - change.before, 6) for change in cell.changes}


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a, b = runs(tmp_path, [make_cell("a"), make_cell("b", bits=3)], [make_cell("b", bits=3), make_cell("a")])
    found = diff(Analysis(a), Analysis(b))
    assert [cell.same for cell in found.cells] == [True, True]
    assert not found.only_before
    assert not found.only_after
    assert not found.provenance


def test_differences_are_second_minus_first_with_paired_intervals(tmp_path: Path) -> None:
    before = make_cell("a", {"digits": 0.5, "shapes": 0.6})
    a, b = runs(tmp_path, [before], [make_cell("a", {"digits": 0.7, "shapes": 0.55})])
    found = diff(Analysis(a), Analysis(b))
    assert moved(found) == {"average": 0.075, "digits": 0.2, "shapes": -0.05}
    average, digits, _ = found.cells[0].changes
    old, new = (outcomes(folder.samples(make_key("a"))) for folder in (a, b))
    assert average.interval == paired_bootstrap(new, old)
    assert digits.interval == paired_bootstrap({"digits": new["digits"]}, {"digits": old["digits"]})


def test_a_cell_with_another_setting_is_the_same_cell_and_says_what_changed(tmp_path: Path) -> None:
    before = [make_cell(f"a{anchor}", axes={"anchor": anchor, "samples": 8}) for anchor in (0.0, 0.1)]
    after = [make_cell(f"b{anchor}", axes={"anchor": anchor, "samples": 16}) for anchor in (0.1, 0.0)]
    found = compared(tmp_path, before, after)
    assert [cell.settings for cell in found.cells] == [("samples: 8 → 16",)] * 2


def test_what_only_one_run_has_is_listed(tmp_path: Path) -> None:
    a, b = runs(
        tmp_path, [make_cell("a"), make_cell("r", method="rtn")], [make_cell("a"), make_cell("c", bits=3)]
    )
    found = diff(Analysis(a), Analysis(b))
    assert [row.method for row in found.only_before] == ["rtn"]
    assert [row.bits for row in found.only_after] == [3]
    text = render(found, "md")
    assert "Only in the first:\n\n- ties rtn merged 4-bit\n" in text
    assert "Only in the second:\n\n- ties gptq merged 3-bit\n" in text


def test_a_task_that_one_run_lacks_is_left_out_of_both_averages(tmp_path: Path) -> None:
    before, after = make_cell("a", {"x": 0.5, "y": 0.1}), make_cell("a", {"x": 0.6, "z": 1.0})
    assert moved(compared(tmp_path, [before], [after])) == {"average": 0.1, "x": 0.1}


@pytest.mark.parametrize(
    "manifest",
    [
        {"suite_version": 2},
        {"revisions": {"datasets": {"digits": "b" * 40}}},
    ],
    ids=["suite version", "data revision"],
)
def test_other_test_samples_have_no_paired_interval(tmp_path: Path, manifest: dict[str, Any]) -> None:
    a = make_folder(tmp_path / "a", make_cell("a", {"digits": 0.5}))
    version = {"suite_version": manifest.get("suite_version", 1)}
    b = make_folder(tmp_path / "b", make_cell("a", {"digits": 0.6}, **version), **manifest)
    found = diff(Analysis(a), Analysis(b))
    assert [change.interval for change in found.cells[0].changes] == [None, None]
    assert "so there are no paired intervals" in render(found, "md")


def test_another_number_of_samples_or_other_seeds_have_no_paired_interval(tmp_path: Path) -> None:
    few = make_correct({"digits": 0.5}, samples=100)
    for name, cell in {
        "n": (make_record(few, "a"), few),
        "s": make_cell("a", {"digits": 0.5}, seed=1),
    }.items():
        found = compared(tmp_path / name, [make_cell("a", {"digits": 0.6})], [cell])
        assert [change.interval for change in found.cells[0].changes] == [None, None]


def test_environment_and_revisions_that_changed_are_named(tmp_path: Path) -> None:
    a = make_folder(tmp_path / "a", environment={"packages": {"torch": "2.14"}, "cpus": 2})
    b = make_folder(tmp_path / "b", environment={"packages": {"torch": "2.15"}, "cpus": 2})
    assert diff(Analysis(a), Analysis(b)).provenance == (("environment.packages.torch", "2.14", "2.15"),)
    assert "- environment.packages.torch: 2.14 → 2.15\n" in render(diff(Analysis(a), Analysis(b)), "md")


def test_another_suite_is_an_error(tmp_path: Path) -> None:
    a, b = make_folder(tmp_path / "a"), make_folder(tmp_path / "b", suite="other")
    with pytest.raises(UserError, match=r"holds results of toy, .* of other; give runs of one suite"):
        diff(Analysis(a), Analysis(b))


def test_only_the_tasks_that_are_asked_for(tmp_path: Path) -> None:
    a, b = runs(tmp_path, [make_cell("a")], [make_cell("a", {"digits": 0.1, "shapes": 0.1})])
    assert set(moved(diff(Analysis(a), Analysis(b), ["dig*"]))) == {"average", "digits"}
    with pytest.raises(UserError, match="no task matches 'x'; known: digits, shapes"):
        diff(Analysis(a), Analysis(b), ["x"])


def test_a_rehearsal_says_so(tmp_path: Path) -> None:
    a, b = runs(tmp_path, [make_cell("a")], [make_cell("a")], rehearsal=True)
    assert "rehearsal: made-up stand-ins, not results" in render(diff(Analysis(a), Analysis(b)), "md")


def test_every_format_holds_the_difference(tmp_path: Path) -> None:
    a, b = runs(tmp_path, [make_cell("a", {"x": 0.5})], [make_cell("a", {"x": 0.6}), make_cell("c", bits=3)])
    found = diff(Analysis(a), Analysis(b))
    assert json.loads(render(found, "json"))["cells"][0]["changes"][1]["difference"] == pytest.approx(0.1)
    entries = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [(entry["status"], entry["quantity"]) for entry in entries] == [
        ("both", "average"),
        ("both", "x"),
        ("only second", ""),
    ]
    for fmt in ("md", "latex", "html"):
        assert "10.0 [" in render(found, fmt)
    with pytest.raises(UserError, match="table format 'text' is unknown; did you mean 'latex'"):
        render(found, "text")


HOSTILE = ["a|b", "<script>alert(1)</script>", r"\input{x}", "50% & $x"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_names(tmp_path: Path, name: str) -> None:
    a, b = runs(
        tmp_path,
        [make_cell("a", {name: 0.5}, method=name)],
        [make_cell("a", {name: 0.6}, method=name), make_cell("b", method=name, bits=3)],
    )
    found = diff(Analysis(a), Analysis(b))
    assert {render(found, fmt) != "" for fmt in FORMATS} == {True}
    assert "<script>" not in render(found, "md").replace(r"\<script\>", "")
    assert ET.fromstring(render(found, "html")).findtext("tbody/tr/th") == name
    assert r"\input{" not in render(found, "latex")


def test_the_command_prints_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(tmp_path, [make_cell("a", {"x": 0.5})], [make_cell("a", {"x": 0.6})])
    assert main(["diff", str(a.path), str(b.path), "--task", "x"]) == 0
    assert "| +10.0 [" in capsys.readouterr().out.replace("  ", " ")
    assert main(["diff", str(a.path), str(tmp_path / "none")]) == 2
    assert "epmq: error:" in capsys.readouterr().err
