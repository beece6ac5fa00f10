"""A golden run is found by suite, version and device, and replaced by a fit run for a reason only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import judge
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge import golden
from results.store.folder import RunFolder
from tests.fixtures.records import asking, command, make_cell, make_folder, make_key

CLEAN = {"environment": {"git_commit": "0123abc", "git_dirty": False}}


def fit(path: Path, accuracy: float = 0.8, **manifest: Any) -> RunFolder:
    packed = {"packed_bytes": 17, "suite": manifest.get("suite", "toy")}  # 32 weights of 4.25 bits
    cells = [make_cell("a", {"digits": accuracy}, **packed), make_cell("b", **packed)]
    return make_folder(path, *cells, **{**CLEAN, "asked": asking(*cells), **manifest})


def history(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]


def test_a_golden_run_is_kept_by_suite_version_and_device(tmp_path: Path) -> None:
    path, _ = golden.update(Analysis(fit(tmp_path / "run")), tmp_path / "golden", "the first")
    assert path == tmp_path / "golden" / "toy" / "v1-cpu"
    assert golden.locate(tmp_path / "golden", Analysis.open(tmp_path / "run")) == path
    assert golden.locate(path, Analysis.open(tmp_path / "run")) == path
    stored = RunFolder.open(path)
    assert [record.key for record in stored.records()] == [make_key("a"), make_key("b")]
    assert stored.samples(make_key("a")).correct["digits"].mean() == 0.8
    assert stored.read().problems == []


def test_an_update_records_when_why_and_what_moved(tmp_path: Path) -> None:
    golden.update(Analysis(fit(tmp_path / "one")), tmp_path / "golden", "the first")
    path, _ = golden.update(Analysis(fit(tmp_path / "two", 0.7)), tmp_path / "golden", "  a better\nanchor ")
    first, second = history(path)
    assert (first["reason"], first["replaced"], first["moved"]) == ("the first", False, [])
    assert (second["reason"], second["replaced"]) == ("a better anchor", True)
    assert second["git_commit"] == "0123abc"
    assert second["date"].endswith("+00:00")
    assert {(move["quantity"], move["verdict"]) for move in second["moved"]} == {
        ("accuracy, all samples", "worse"),
        ("accuracy digits", "worse"),
    }
    assert RunFolder.open(path).records()[0].tasks["digits"].value == 0.7
    assert sorted(file.name for file in path.parent.iterdir()) == ["v1-cpu"]  # nothing is left behind


def test_the_command_checks_what_it_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path / "run")
    fit(tmp_path / "worse", 0.6)
    root = tmp_path / "golden"
    assert command(judge, "golden", "update", tmp_path / "run", "--golden", root, "--reason", "new") == 0
    assert "2 golden cells recorded" in capsys.readouterr().out
    assert command(judge, "check", tmp_path / "run", "--golden", root) == 0
    report = tmp_path / "report.xml"
    assert command(judge, "check", tmp_path / "worse", "--golden", root, "--junit", report) == 1
    assert b"accuracy digits" in report.read_bytes()


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ({"rehearsal": True}, "rehearsal"),
        ({"environment": {"git_dirty": True}}, "not committed"),
        ({"environment": {}}, "git could not say"),
        ({"asked": asking(make_cell("a"), make_cell("b"), make_cell("c"))}, "incomplete: 1 cells"),
    ],
    ids=["rehearsal", "dirty", "unknown", "incomplete"],
)
def test_an_unfit_run_does_not_become_golden(
    tmp_path: Path, manifest: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        golden.update(Analysis(fit(tmp_path / "run", **manifest)), tmp_path / "golden", "no")
    assert not (tmp_path / "golden").exists()


def test_an_unpinned_damaged_or_empty_run_does_not_become_golden(tmp_path: Path) -> None:
    unpinned = make_folder(tmp_path / "unpinned", make_cell("a", pinned=False), **CLEAN)
    empty = make_folder(tmp_path / "empty", **CLEAN)
    torn = fit(tmp_path / "torn")
    lines = tmp_path / "torn" / "records.jsonl"
    lines.write_bytes(lines.read_bytes() + b"{")
    changed = fit(tmp_path / "changed")
    (tmp_path / "changed" / "samples" / f"{make_key('b')}.npz").unlink()
    for folder, complaint in (
        (unpinned, f"not pinned: cell {make_key('a')}"),
        (empty, "holds no records"),
        (torn, "damaged: records.jsonl:3"),
        (changed, make_key("b")),
    ):
        with pytest.raises(UserError, match=complaint):
            golden.update(Analysis(folder), tmp_path / "golden", "no")
    assert not (tmp_path / "golden").exists()


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_reason_is_needed(tmp_path: Path, reason: str) -> None:
    with pytest.raises(UserError, match="--reason"):
        golden.update(Analysis(fit(tmp_path / "run")), tmp_path / "golden", reason)


def test_the_golden_run_of_another_suite_is_not_replaced(tmp_path: Path) -> None:
    path, _ = golden.update(Analysis(fit(tmp_path / "run")), tmp_path / "golden", "the first")
    other = fit(tmp_path / "other", suite="toys")
    with pytest.raises(UserError, match="holds toy version 1"):
        golden.update(Analysis(other), path, "by mistake")
    assert len(history(path)) == 1


def test_an_update_that_fails_leaves_the_golden_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = golden.update(Analysis(fit(tmp_path / "one")), tmp_path / "golden", "the first")
    better = fit(tmp_path / "two", 0.9)
    rename = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left"):
        golden.update(Analysis(better), tmp_path / "golden", "better")
    assert RunFolder.open(path).records()[0].tasks["digits"].value == 0.8
    assert len(history(path)) == 1


def test_records_of_two_devices_have_no_one_golden_run(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", make_cell("a"), make_cell("b", device="cuda"))
    with pytest.raises(UserError, match="one device class, not cpu, cuda"):
        golden.locate(tmp_path / "golden", Analysis(folder))


def test_a_run_whose_hashes_do_not_fit_does_not_become_golden(tmp_path: Path) -> None:
    folder = fit(tmp_path / "run")
    lines = tmp_path / "run" / "records.jsonl"
    lines.write_bytes(lines.read_bytes().replace(b'"quantise":0.1', b'"quantise":0.2', 1))
    with pytest.raises(UserError, match=r"fails 'epmq verify': .* SHA-256"):
        golden.update(Analysis(folder), tmp_path / "golden", "no")
