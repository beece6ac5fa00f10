"""No name of anybody's is a formula in a CSV file, and numbers stay numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from results.analysis.analysis import Analysis
from results.figures.data import data_csv, figure_data
from results.judge.verify import verify
from results.paper.compare import compare
from results.paper.text import FORMATS as BESIDE
from results.tables import diff as diffs
from results.tables.comparison import render, save
from results.tables.formats import csv_text
from tests.fixtures.records import asking, make_cell, make_folder

FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "=cmd|' /C calc'!A0", " =1+1", "-x"]
SIZES: dict[str, Any] = {"bits_per_weight": 4.25, "packed_bytes": 17}


def cells(text: str) -> list[str]:
    return [cell for row in csv.reader(io.StringIO(text)) for cell in row]


def formulas(text: str) -> list[str]:
    """Cells that a spreadsheet would compute: they begin as one and are no number."""
    found = [cell for cell in cells(text) if cell.lstrip()[:1] in {"=", "+", "-", "@"}]

    def number(cell: str) -> bool:
        try:
            float(cell)
        except ValueError:
            return False
        return True

    return [cell for cell in found if not number(cell)]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_name_is_a_formula_in_any_csv_file(tmp_path: Path, name: str) -> None:
    task = name.replace("@", "=")  # which parts tasks from arrays, and is in no task's name
    named = {"merge": name, "method": name, "target": name, "axes": {name: name}, "suite": name}
    made = [
        make_cell(key, {task: 0.5, "b": 0.4}, **named, seed=seed, **SIZES) for seed, key in enumerate("ab")
    ]
    runs = [
        Analysis(make_folder(tmp_path / run, *made, suite=name, asked=asking(*made)))
        for run in ("one", "two")
    ]
    texts = [render(runs[0], "csv"), BESIDE["csv"](compare(runs[0]))]
    texts += [data_csv(data) for data in figure_data(runs[0])]
    texts.append(diffs.render(diffs.diff(runs[0], runs[1], []), "csv"))
    assert [cell for text in texts for cell in formulas(text)] == []
    assert f"'{name}" in cells(texts[0])
    save(runs[0])
    assert not verify(runs[0]).failed


def test_numbers_stay_numbers() -> None:
    row = {"a": -1.5, "b": "-1.5", "c": "+3", "d": "-1e-05", "e": None, "f": "-", "g": "-1.5.2"}
    assert csv_text(list(row), [row]).splitlines()[1] == "-1.5,-1.5,+3,-1e-05,,'-,'-1.5.2"
