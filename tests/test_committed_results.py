"""Committed results are what their records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.folder import RunFolder
from results.tables import FORMATS, render

ROOT = Path(__file__).parent.parent / "results"
COMMITTED = sorted(manifest.parent for manifest in ROOT.glob("*/*/manifest.json"))


def test_there_are_committed_results() -> None:
    assert COMMITTED


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_committed_records_are_whole(folder: Path) -> None:
    run = RunFolder.open(folder)
    assert run.problems == []
    assert {cell.key for cell in run.manifest.cells} == {record.key for record in run.records()}
    for record in run.records():
        run.correct(record.key)  # checked against the record's accuracy


@pytest.mark.parametrize("fmt", FORMATS)
def test_committed_tables_are_regenerated_byte_for_byte(fmt: str) -> None:
    for table in ROOT.glob(f"v*/*/table.{'tex' if fmt == 'latex' else fmt}"):
        assert render(RunFolder.open(table.parent), fmt).encode() == table.read_bytes(), table


def test_every_committed_run_has_every_table() -> None:
    for manifest in ROOT.glob("v*/*/manifest.json"):
        names = {path.name for path in manifest.parent.glob("table.*")}
        assert names == {"table.md", "table.csv", "table.tex", "table.json"}
