"""The folders that the study of growth measures, and that adding to one costs what the record takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.studies import scaling
from results.store.folder import RunFolder


def test_a_made_up_folder_is_whole_and_every_step_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.write(tmp_path / "run", 13)
    reading = RunFolder.open(tmp_path / "run").read()
    assert (len(reading.records), reading.problems) == (13, [])
    assert scaling.main(["--records", "13", "--without-report", "--suites", "2"]) == 0
    said = capsys.readouterr().out
    assert [
        step for step in ("table", "compare", "check", "append one", "ms a suite") if step not in said
    ] == []


def state(file: Path) -> tuple[int, ...]:
    """What changes where a file is written; reading does not count."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_appending_leaves_every_other_byte_and_file_alone(tmp_path: Path) -> None:
    scaling.write(tmp_path, 20)
    file, samples = tmp_path / "records.jsonl", sorted((tmp_path / "samples").iterdir())
    before, inode = file.read_bytes(), file.stat().st_ino
    others = [tmp_path / "manifest.json", *samples]
    states = [state(path) for path in others]
    record, correct = scaling.cell(20)
    RunFolder.open(tmp_path).append(record, correct)
    after = file.read_bytes()
    assert file.stat().st_ino == inode
    assert after[: len(before)] == before
    assert after[len(before) :].count(b"\n") == 1
    assert [state(path) for path in others] == states
