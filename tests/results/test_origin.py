"""Results with a bundled suite's name and another suite's tasks, data or models stand beside nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge import golden
from results.judge.check import check
from results.judge.verify import verify
from results.paper.compare import compare
from results.paper.gains import headline
from results.store.folder import RunFolder
from results.store.records import Record
from tests.fixtures.records import asking, make_cell, make_correct, make_folder, make_record, read_by

PAPERS = "clip-vit-b32-8"
OTHER = "0" * 64
CLEAN = {"environment": {"git_commit": "0123abc", "git_dirty": False}}


def run_of(path: Path, suite: str = PAPERS, **told: Any) -> Analysis:
    sizes: dict[str, Any] = {"packed_bytes": 17, "merge": "task-arithmetic"}
    cell = make_cell("a", suite=suite, **sizes, **told)
    return Analysis(make_folder(path, cell, suite=suite, asked=asking(cell), **CLEAN, **told))


def failures(run: Analysis) -> list[str]:
    return [failure for point in verify(run).points for failure in point.failures]


def test_the_papers_suite_is_known_by_what_it_reads(tmp_path: Path) -> None:
    run = run_of(tmp_path, suite_sha256=read_by(PAPERS))
    assert compare(run).is_the_papers
    assert compare(run).lines
    assert failures(run) == []


def test_the_papers_suite_under_another_name_is_the_papers(tmp_path: Path) -> None:
    run = run_of(tmp_path, "local/mine", suite_sha256=read_by(PAPERS))
    assert compare(run).lines
    assert failures(run) == []


def test_an_impostor_stands_beside_no_number_and_fails(tmp_path: Path) -> None:
    run = run_of(tmp_path, suite_sha256=OTHER)
    assert compare(run).lines == ()
    assert "it is called clip-vit-b32-8, and reads other tasks" in compare(run).marks[0]
    (failure,) = failures(run)
    assert failure.startswith("is called clip-vit-b32-8 and is of another suite")
    assert headline(run.records[0].model_copy(update={"bits": 4})) is None


def test_results_that_do_not_tell_are_taken_for_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert compare(run).lines == ()
    assert "do not tell what their suite reads" in compare(run).marks[0]
    report = verify(run)
    assert not report.failed
    assert any("by name alone" in note for note in report.notes)


def test_records_without_the_hash_keep_their_seal() -> None:
    record = make_record(make_correct())
    assert b"suite_sha256" not in record.to_json().encode()
    told = record.model_copy(update={"suite_sha256": OTHER})
    assert told.digest() != record.digest()
    assert Record.from_json(told.sealed("1" * 64).to_json().encode()).suite_sha256 == OTHER


def test_records_of_two_suites_of_one_name_do_not_mix(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", suite_sha256=OTHER).folder
    stranger = run_of(tmp_path / "stranger", suite_sha256=read_by(PAPERS)).folder
    lines = folder.path / "records.jsonl"
    lines.write_bytes(lines.read_bytes() + (stranger.path / "records.jsonl").read_bytes())
    (problem,) = RunFolder.open(folder.path).read().problems
    assert problem.startswith(
        "records.jsonl:2: is of a suite that reads other tasks, data, models or prompts"
    )
    with pytest.raises(UserError, match="reads other tasks, data, models or prompts"):
        RunFolder.open(folder.path, stranger.manifest, create=True)


def test_an_impostor_is_held_to_no_golden_run_and_replaces_none(tmp_path: Path) -> None:
    kept, _ = golden.update(run_of(tmp_path / "a", "toy", suite_sha256=OTHER), tmp_path / "golden", "first")
    for number, told in enumerate(({"suite_sha256": "1" * 64}, {})):
        other = run_of(tmp_path / f"other{number}", "toy", **told)
        report = check(other, Analysis.open(kept))
        assert [move.verdict for move in report.moves] == ["other suite"]
        assert report.failed
        with pytest.raises(UserError, match="reads other tasks, data, models or prompts"):
            golden.update(other, tmp_path / "golden", "mine is better")
    assert not check(run_of(tmp_path / "b", "toy", suite_sha256=OTHER), Analysis.open(kept)).failed


def test_a_golden_run_that_does_not_tell_can_be_checked_and_replaced(tmp_path: Path) -> None:
    kept, _ = golden.update(run_of(tmp_path / "a", "toy"), tmp_path / "golden", "first")
    told = run_of(tmp_path / "b", "toy", suite_sha256=OTHER)
    assert not check(told, Analysis.open(kept)).failed
    golden.update(told, tmp_path / "golden", "now it tells")
    assert Analysis.open(kept).manifest.suite_sha256 == OTHER
