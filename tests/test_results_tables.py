"""The table says what the records say, in an order and with words that depend on the records alone."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from results.errors import ResultError
from results.folder import RunFolder
from results.records import Record
from results.stats import paired_bootstrap
from results.tables import render
from tests.results_samples import Correct, make_cell, make_folder, make_key


def control(name: str, accuracies: dict[str, float], **changes: Any) -> tuple[Record, Correct]:
    full_precision: dict[str, Any] = {"rounding": None, "target": None, "bits": None, "bits_per_weight": None}
    return make_cell(name, accuracies, **{"kind": "control", **full_precision, **changes})


def study() -> list[tuple[Record, Correct]]:
    return [
        control("zero", {"digits": 0.3, "shapes": 0.4}, method="zero-shot", merge=None),
        control("experts", {"digits": 0.95, "shapes": 0.9}, method="experts", merge=None, normalised=1.0),
        control("fp", {"digits": 0.8, "shapes": 0.7}, method="merged"),
        control("ceiling", {"digits": 0.9, "shapes": 0.8}, method="epmq-full-precision"),
        make_cell("gptq4", {"digits": 0.75, "shapes": 0.6}, normalised=0.728),
        make_cell("epmq4", {"digits": 0.8, "shapes": 0.7}, method="epmq", target="expert"),
        make_cell("gptq3", {"digits": 0.5, "shapes": 0.4}, bits=3),
        make_cell("ta", {"digits": 0.5, "shapes": 0.5}, merge="task-arithmetic", method="rtn"),
    ]


def data_rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, split at pipes that are not escaped."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def objects(folder: RunFolder) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(render(folder, "json"))
    return parsed


def test_the_markdown_table_of_a_small_study(tmp_path: Path) -> None:
    table = render(make_folder(tmp_path, *study()), "md")
    header = ["merge", "method", "target", "bits", "bits/weight", "digits", "shapes", "average", "normalised"]
    assert [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]] == [*header, "vs gptq"]
    assert data_rows(table) == [
        ["", "zero-shot", "", "full", "", "30.0", "40.0", "35.00 ± 2.37", "", ""],
        ["", "experts", "", "full", "", "95.0", "90.0", "92.50 ± 1.31", "100.0", ""],
        ["task-arithmetic", "rtn", "merged", "4", "4.25", "50.0", "50.0", "**50.00** ± 2.50", "", ""],
        ["ties", "merged", "", "full", "", "80.0", "70.0", "75.00 ± 2.15", "", ""],
        ["ties", "epmq-full-precision", "", "full", "", "90.0", "80.0", "85.00 ± 1.77", "", ""],
        ["ties", "epmq", "expert", "4", "4.25", "80.0", "70.0", "**75.00** ± 2.15", "", "+7.5 [+5.0, +10.2]"],
        ["ties", "gptq", "merged", "4", "4.25", "75.0", "60.0", "67.50 ± 2.31", "72.8", ""],
        ["ties", "gptq", "merged", "3", "4.25", "50.0", "40.0", "**45.00** ± 2.47", "", ""],
    ]


def test_the_columns_of_a_printed_table_line_up(tmp_path: Path) -> None:
    table = render(make_folder(tmp_path, make_cell("a"), make_cell("b", {"digits": 0.1}, method="rtn")), "md")
    assert len({len(line) for line in table.splitlines()}) == 1


def test_the_same_cells_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    cells = study()
    folder = make_folder(tmp_path / "a", *cells)
    random.Random(0).shuffle(cells)
    shuffled = make_folder(tmp_path / "b", *cells)
    for fmt in ("md", "csv", "latex", "json"):
        assert render(folder, fmt) == render(folder, fmt) == render(shuffled, fmt)


def test_csv_and_json_hold_the_same_numbers_at_full_precision(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    rows = list(csv.DictReader(io.StringIO(render(folder, "csv"))))
    epmq = next(row for row in rows if row["method"] == "epmq")
    correct = [folder.correct(make_key(name)) for name in ("epmq4", "gptq4")]
    difference = paired_bootstrap(correct[0], correct[1])
    assert [float(epmq[f"vs_gptq{end}"]) for end in ("", "_low", "_high")] == list(difference)
    assert float(epmq["accuracy_shapes"]) == 0.7
    for row, entry in zip(rows, objects(folder), strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in entry.items()}


def test_latex_is_a_booktabs_table_with_the_best_in_bold(tmp_path: Path) -> None:
    text = render(make_folder(tmp_path, *study()), "latex")
    assert text.startswith("\\begin{tabular}{lllrrrrrrr}\n\\toprule")
    assert r"\textbf{75.00} $\pm$ 2.15" in text
    assert text.count(r"\textbf") == 3
    assert "±" not in text


# -- the partner of "vs gptq"


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 3},
        {"seed": 1},
        {"merge": "task-arithmetic"},
        {"merge_options": {"scale": 0.5}},
        {"axes": {"group_size": 32}},
        {"method": "gptq", "target": "merged", "axes": {"samples": 16}},
    ],
    ids=str,
)
def test_what_has_no_gptq_of_its_own_is_not_compared(tmp_path: Path, changes: dict[str, Any]) -> None:
    cell = make_cell("other", **{"method": "epmq", "target": "expert", **changes})
    folder = make_folder(tmp_path, make_cell("gptq"), cell)
    assert [row["vs_gptq"] for row in objects(folder)] == [None, None]


def test_a_control_with_bits_is_compared_too(tmp_path: Path) -> None:
    cell = make_cell("r", {"digits": 0.9, "shapes": 0.6}, kind="control", method="regmean-gptq", target=None)
    rows = objects(make_folder(tmp_path, make_cell("gptq"), cell))
    assert [(row["method"], row["vs_gptq"]) for row in rows] == [
        ("regmean-gptq", pytest.approx(0.05)),
        ("gptq", None),
    ]


def test_a_sweep_over_calibration_compares_like_with_like_and_names_what_differs(tmp_path: Path) -> None:
    cells = []
    for samples, gptq, epmq in ((16, 0.3, 0.4), (256, 0.5, 0.7)):
        axes = {"group_size": None, "samples": samples}
        cells.append(make_cell(f"g{samples}", {"digits": gptq}, axes=axes))
        cells.append(make_cell(f"e{samples}", {"digits": epmq}, axes=axes, method="epmq", target="expert"))
    rows = objects(make_folder(tmp_path, *cells))
    assert [(row["settings"], row["vs_gptq"]) for row in rows if row["method"] == "epmq"] == [
        ("samples=16", pytest.approx(0.1)),
        ("samples=256", pytest.approx(0.2)),
    ]
    assert "epmq (samples=16)" in render(RunFolder.open(tmp_path), "md")


# -- shapes and names


def test_a_cell_that_was_asked_for_and_has_no_record_is_a_row(tmp_path: Path) -> None:
    cells = [
        {"key": make_key(name), "merge": "ties", "method": name, "target": "merged", "bits": 4}
        for name in ("awq", "gptq")
    ]
    folder = make_folder(tmp_path, make_cell("gptq"), asked={"cells": cells})
    assert [(row["method"], row["status"]) for row in objects(folder)] == [
        ("awq", "not run"),
        ("gptq", "done"),
    ]
    awq = data_rows(render(folder, "md"))[0]
    assert awq == ["ties", "awq", "merged", "4", "", "", "", "not run", "", ""]
    assert "not run" in render(folder, "latex")


@pytest.mark.parametrize("fmt", ["md", "csv", "latex", "json"])
def test_an_empty_folder_is_a_table_without_rows(tmp_path: Path, fmt: str) -> None:
    table = render(make_folder(tmp_path), fmt)
    assert table == "[]\n" if fmt == "json" else "bits" in table


def test_twenty_tasks_are_twenty_columns(tmp_path: Path) -> None:
    accuracies = {f"task-{index:02}": index / 20 for index in range(20)}
    folder = make_folder(tmp_path, make_cell("a", accuracies))
    (row,) = data_rows(render(folder, "md"))
    assert row[5:25] == [f"{100 * value:.1f}" for value in accuracies.values()]


def test_cells_without_a_task_leave_its_column_empty(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a", {"digits": 0.5}), make_cell("b", {"shapes": 0.5}, bits=3))
    assert [row[5:7] for row in data_rows(render(folder, "md"))] == [["50.0", ""], ["", "50.0"]]


HOSTILE = ["a|b", r"\input{x}", "**bold**", "<script>", "[x](y)", "50% & $x_1^2$ #~", "[", "a,b\"c'", r"\|"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_break_a_table(tmp_path: Path, name: str) -> None:
    folder = make_folder(
        tmp_path, make_cell("a", {name: 0.5, "z": 0.5}, merge=name, method=name, target=name)
    )
    (row,) = data_rows(render(folder, "md"))
    assert len(row) == 10
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in row[:3]] == [name] * 3
    lines = render(folder, "latex").splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert [len(re.split(r"(?<!\\)&", line)) for line in body] == [10, 10]
    assert not any(line.lstrip().startswith("[") or r"\input" in line for line in lines)
    (entry,) = csv.DictReader(io.StringIO(render(folder, "csv")))
    assert entry["method"] == name
    assert entry[f"accuracy_{name}"] == "0.5"
    assert objects(folder)[0]["method"] == name


@pytest.mark.parametrize(
    ("fmt", "near"), [("markdown", "md"), ("CSV", "csv"), ("tex", "latex"), ("jsonl", "json")]
)
def test_an_unknown_format_names_the_nearest(tmp_path: Path, fmt: str, near: str) -> None:
    with pytest.raises(ResultError, match=f"unknown table format '{fmt}'; did you mean '{near}'"):
        render(make_folder(tmp_path), fmt)
