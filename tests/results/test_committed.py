"""Committed results are what their records say."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

from benchmarks.suites import load as suites
from results.analysis.analysis import Analysis
from results.figures.data import data_csv, figure_data
from results.paper.compare import compare
from results.paper.text import FORMATS as BESIDE
from results.store.folder import RunFolder
from results.tables.comparison import FORMATS, render

ROOT = Path(__file__).parents[2] / "results" / "committed"
COMMITTED = sorted(m.parent for kind in ("runs/*", "golden/*/*") for m in ROOT.glob(f"{kind}/manifest.json"))
SNAPSHOTS = sorted(manifest.parent for manifest in ROOT.glob("runs/*/manifest.json"))
WHOLE = [folder for folder in SNAPSHOTS if folder.name in suites.names()]  # beside them, rows along axes
ENDINGS = {fmt: "tex" if fmt == "latex" else fmt for fmt in FORMATS}


CLAIMS = {"C1", "C2", "C3", "C4", "C5"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def analysed(folder: Path) -> Analysis:
    return Analysis.open(folder)


def test_there_are_committed_results() -> None:
    assert {folder.name for folder in WHOLE} == {"micro-clip-8", "micro-glue-8"}


@pytest.mark.parametrize("folder", COMMITTED, ids=name)
def test_committed_records_are_whole(folder: Path) -> None:
    run = RunFolder.open(folder)
    assert run.read().problems == []
    assert {cell.key for cell in run.manifest.cells} == {record.key for record in run.records()}
    for record in run.records():
        run.samples(record.key)  # checked against the record's accuracy


@pytest.mark.parametrize("folder", SNAPSHOTS, ids=name)
@pytest.mark.parametrize("fmt", FORMATS)
def test_committed_tables_are_regenerated_byte_for_byte(folder: Path, fmt: str) -> None:
    table = folder / f"table.{ENDINGS[fmt]}"
    assert render(analysed(folder), fmt).encode() == table.read_bytes()


@pytest.mark.parametrize("folder", WHOLE, ids=name)
def test_the_data_of_committed_figures_are_regenerated_byte_for_byte(folder: Path) -> None:
    data = {f"{figure.name}.csv": data_csv(figure).encode() for figure in figure_data(analysed(folder))}
    assert data == {path.name: path.read_bytes() for path in (folder / "figures").glob("*.csv")}
    for ending in (".svg", ".png"):
        pictures = {path.stem for path in (folder / "figures").glob(f"*{ending}")}
        assert pictures == {Path(csv).stem for csv in data}


@pytest.mark.parametrize("folder", SNAPSHOTS, ids=name)
def test_every_committed_run_has_its_tables(folder: Path) -> None:
    assert {path.name for path in folder.glob("table.*")} == {f"table.{end}" for end in ENDINGS.values()}


@pytest.mark.parametrize("folder", WHOLE, ids=name)
def test_every_default_comparison_has_its_report(folder: Path) -> None:
    assert (folder / "report.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("folder", WHOLE, ids=name)
def test_every_committed_run_stands_beside_the_paper_in_every_format(folder: Path) -> None:
    beside = compare(analysed(folder))
    assert {verdict.claim.id for verdict in beside.verdicts if verdict.findings} == CLAIMS
    assert [claim["verdict"] for claim in json.loads(BESIDE["json"](beside))["claims"]] == [
        verdict.overall for verdict in beside.verdicts
    ]
    for write in BESIDE.values():
        assert write(beside).endswith("\n")
