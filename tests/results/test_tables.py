"""The table says what the records say, in an order and with words that depend on the records alone."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.analysis.groups import outcomes
from results.analysis.stats import paired_bootstrap
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from results.tables.comparison import FORMATS, render, save
from results.tables.selection import Selection
from tests.fixtures.records import Correct, make_cell, make_folder, make_key, make_record


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


def rendered(folder: RunFolder, fmt: str, selection: Selection | None = None) -> str:
    return render(Analysis(folder), fmt, selection or Selection())


def data_rows(table: str) -> list[list[str]]:
    """The cells of a Markdown table, split at pipes that are not escaped."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def objects(folder: RunFolder) -> list[dict[str, Any]]:
    parsed: list[dict[str, Any]] = json.loads(rendered(folder, "json"))
    return parsed


def test_the_markdown_table_of_a_small_study(tmp_path: Path) -> None:
    table = rendered(make_folder(tmp_path, *study()), "md")
    header = ["merge", "method", "target", "bits", "bits/weight", "digits", "shapes", "average", "normalised"]
    assert [cell.strip() for cell in table.splitlines()[0].split("|")[1:-1]] == [
        *header,
        "recovery",
        "vs gptq",
    ]
    assert data_rows(table) == [
        ["", "zero-shot", "", "full", "", "30.0", "40.0", "35.00 ± 2.37", "", "", ""],
        ["", "experts", "", "full", "", "95.0", "90.0", "92.50 ± 1.31", "100.0", "", ""],
        ["task-arithmetic", "rtn", "merged", "4", "4.25", "50.0", "50.0", "**50.00** ± 2.50", "", "", ""],
        ["ties", "merged", "", "full", "", "80.0", "70.0", "75.00 ± 2.15", "", "0.0", ""],
        ["ties", "epmq-full-precision", "", "full", "", "90.0", "80.0", "85.00 ± 1.77", "", "57.1", ""],
        [
            *("ties", "epmq", "expert", "4", "4.25", "80.0", "70.0", "**75.00** ± 2.15", "", "0.0"),
            "+7.5 [+5.0, +10.2]",
        ],
        ["ties", "gptq", "merged", "4", "4.25", "75.0", "60.0", "67.50 ± 2.31", "72.8", "-42.9", ""],
        ["ties", "gptq", "merged", "3", "4.25", "50.0", "40.0", "**45.00** ± 2.47", "", "-171.4", ""],
    ]


def test_the_columns_of_a_printed_table_line_up(tmp_path: Path) -> None:
    table = render(
        Analysis(make_folder(tmp_path, make_cell("a"), make_cell("b", {"digits": 0.1}, method="rtn"))), "md"
    )
    assert len({len(line) for line in table.splitlines()}) == 1


def test_the_same_cells_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    cells = study()
    folder = make_folder(tmp_path / "a", *cells)
    random.Random(0).shuffle(cells)
    shuffled = make_folder(tmp_path / "b", *cells)
    for fmt in FORMATS:
        assert rendered(folder, fmt) == rendered(folder, fmt) == rendered(shuffled, fmt)


def test_csv_and_json_hold_the_same_numbers_at_full_precision(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    rows = list(csv.DictReader(io.StringIO(rendered(folder, "csv"))))
    epmq = next(row for row in rows if row["method"] == "epmq")
    epmq4, gptq4 = (outcomes(folder.samples(make_key(name))) for name in ("epmq4", "gptq4"))
    difference = paired_bootstrap(epmq4, gptq4)
    assert [float(epmq[f"vs_gptq{end}"]) for end in ("", "_low", "_high")] == list(difference[:3])
    assert float(epmq["accuracy_shapes"]) == 0.7
    for row, entry in zip(rows, objects(folder), strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in entry.items()}


def test_latex_is_a_booktabs_table_with_the_best_in_bold(tmp_path: Path) -> None:
    text = rendered(make_folder(tmp_path, *study()), "latex")
    assert text.startswith("\\begin{tabular}{lllrrrrrrrr}\n\\toprule")
    assert r"\textbf{75.00} $\pm$ 2.15" in text
    assert text.count(r"\textbf") == 3
    assert r"+7.5 [+5.0, +10.2]$^{***}$ \\" in text
    assert r"& $-$42.9 &" in text
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
    assert "epmq (samples=16)" in render(Analysis.open(tmp_path), "md")


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
    awq = data_rows(rendered(folder, "md"))[0]
    assert awq == ["ties", "awq", "merged", "4", "", "", "", "not run", "", "", ""]
    assert "not run" in rendered(folder, "latex")


@pytest.mark.parametrize("fmt", FORMATS)
def test_an_empty_folder_is_a_table_without_rows(tmp_path: Path, fmt: str) -> None:
    table = rendered(make_folder(tmp_path), fmt)
    assert table == "[]\n" if fmt == "json" else "bits" in table


def test_twenty_tasks_are_twenty_columns(tmp_path: Path) -> None:
    accuracies = {f"task-{index:02}": index / 20 for index in range(20)}
    folder = make_folder(tmp_path, make_cell("a", accuracies))
    (row,) = data_rows(rendered(folder, "md"))
    assert row[5:25] == [f"{100 * value:.1f}" for value in accuracies.values()]


def test_cells_without_a_task_leave_its_column_empty(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a", {"digits": 0.5}), make_cell("b", {"shapes": 0.5}, bits=3))
    assert [row[5:7] for row in data_rows(rendered(folder, "md"))] == [["50.0", ""], ["", "50.0"]]


HOSTILE = ["a|b", r"\input{x}", "**bold**", "<script>", "[x](y)", "50% & $x_1^2$ #~", "[", "a,b\"c'", r"\|"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_do_not_break_a_table(tmp_path: Path, name: str) -> None:
    folder = make_folder(
        tmp_path, make_cell("a", {name: 0.5, "z": 0.5}, merge=name, method=name, target=name)
    )
    (row,) = data_rows(rendered(folder, "md"))
    assert len(row) == 11
    assert [re.sub(r"\\(.)", r"\1", cell) for cell in row[:3]] == [name] * 3
    lines = rendered(folder, "latex").splitlines()
    body = [line for line in lines if line.endswith(r"\\")]
    assert [len(re.split(r"(?<!\\)&", line)) for line in body] == [11, 11]
    assert not any(line.lstrip().startswith("[") or r"\input" in line for line in lines)
    (entry,) = csv.DictReader(io.StringIO(rendered(folder, "csv")))
    assert entry["method"] == name
    assert entry[f"accuracy_{name}"] == "0.5"
    assert objects(folder)[0]["method"] == name
    page = ET.fromstring(rendered(folder, "html"))
    assert [cell.text for cell in page.find("tbody/tr") or []][:3] == [name] * 3
    assert not list(page.iter("script"))


@pytest.mark.parametrize(
    ("fmt", "hint"),
    [
        ("tex", "did you mean 'latex'"),
        ("jsonl", "did you mean 'json'"),
        ("CSV", "known: csv, html, json, latex, md"),
    ],
)
def test_an_unknown_format_names_the_nearest_or_all(tmp_path: Path, fmt: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"table format '{fmt}' is unknown; {hint}"):
        rendered(make_folder(tmp_path), fmt)


# -- what is shown


def words(folder: RunFolder, **selection: Any) -> list[list[str]]:
    return data_rows(rendered(folder, "md", Selection(**selection)))


def heading(folder: RunFolder, **selection: Any) -> list[str]:
    return [
        cell.strip()
        for cell in rendered(folder, "md", Selection(**selection)).splitlines()[0].split("|")[1:-1]
    ]


def test_wildcards_choose_rows_and_task_columns(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    assert [row[1] for row in words(folder, methods=["e*"])] == ["experts", "epmq-full-precision", "epmq"]
    assert [row[1] for row in words(folder, methods=["gptq"], bits=["3"])] == ["gptq"]
    assert [row[1] for row in words(folder, merges=["none"], bits=["full"])] == ["zero-shot", "experts"]
    assert [row[1] for row in words(folder, targets=["exp*"])] == ["epmq"]
    assert heading(folder, tasks=["dig*"]).count("digits") == 1
    assert "shapes" not in heading(folder, tasks=["dig*"])


def test_a_choice_of_rows_does_not_change_their_numbers_and_marks(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    assert words(folder, methods=["gptq"]) == [row for row in words(folder) if row[1] == "gptq"]


@pytest.mark.parametrize(
    ("selection", "complaint"),
    [
        ({"methods": ["epqm"]}, "no method matches 'epqm'; did you mean 'epmq'"),
        ({"merges": ["tie"]}, "no merge matches 'tie'; did you mean 'ties'"),
        ({"bits": ["5"]}, "no bits matches '5'; known: 3, 4, full"),
        ({"tasks": ["mnist*"]}, r"no task matches 'mnist\*'; known: digits, shapes"),
        ({"columns": ["sise"]}, "unknown columns 'sise'; did you mean 'size'"),
        ({"sort": "mean"}, "no column is called 'mean'; known: average, bits"),
        ({"sort": "average:down"}, "unknown direction 'down' in 'average:down'; use average:asc or"),
        ({"methods": ["rtn"], "merges": ["ties"]}, "no cell is of method rtn, merge ties together"),
    ],
    ids=str,
)
def test_a_name_that_matches_nothing_is_an_error(
    tmp_path: Path, selection: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        rendered(make_folder(tmp_path, *study()), "md", Selection(**selection))


def test_column_groups(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a", packed_bytes=2_500_000, peak_memory_bytes=3_000_000_000))
    cell = ["merge", "method", "target", "bits"]
    assert heading(folder, columns=["cost"]) == [*cell, "quantise s", "total s", "peak MB"]
    assert words(folder, columns=["cost"])[0][4:] == ["0.1", "0.1", "3,000"]
    assert heading(folder, columns=["size"]) == [*cell, "bits/weight", "packed MB"]
    assert words(folder, columns=["size"])[0][4:] == ["4.25", "2.50"]
    assert heading(folder, columns=["all"])[-1] == "peak MB"
    assert json.loads(rendered(folder, "json", Selection(columns=["cost"])))[0]["seconds_quantise"] == 0.1


def test_the_default_table_is_the_same_after_a_rerun_that_took_longer(tmp_path: Path) -> None:
    for fmt in FORMATS:
        texts = [
            render(
                Analysis(make_folder(tmp_path / f"{fmt}{time}", make_cell("a", seconds={"quantise": time}))),
                fmt,
            )
            for time in (1.0, 2.0)
        ]
        assert texts[0] == texts[1]


def test_sorting_puts_the_best_first_and_empty_cells_last(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    recovery = [row[9] for row in words(folder, sort="recovery")]
    assert recovery == ["57.1", "0.0", "0.0", "-42.9", "-171.4", "", "", ""]
    assert [row[9] for row in words(folder, sort="recovery:asc")][:2] == ["-171.4", "-42.9"]
    assert [row[1] for row in words(folder, sort="method")][:2] == ["epmq", "epmq-full-precision"]
    assert [row[1] for row in words(folder, sort="method:desc")][:2] == ["zero-shot", "rtn"]


# -- what a reader must know


def test_a_rehearsal_says_so_in_every_format(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a"), rehearsal=True)
    for fmt in ("md", "latex", "html"):
        assert "rehearsal: made-up stand-ins, not results" in rendered(folder, fmt)
    assert objects(folder)[0]["rehearsal"] is True
    assert next(csv.DictReader(io.StringIO(rendered(folder, "csv"))))["rehearsal"] == "True"


def test_records_that_are_not_pinned_are_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, make_cell("a", pinned=False), make_cell("b", bits=3))
    assert rendered(folder, "md").startswith("**1 records are of revisions that no lock pins")
    assert [row["pinned"] for row in objects(folder)] == [False, True]


def test_html_marks_row_headings_the_best_and_what_is_significant(tmp_path: Path) -> None:
    table = ET.fromstring(rendered(make_folder(tmp_path, *study()), "html"))
    assert {cell.get("scope") for cell in table.iter("th")} == {"col", "row"}
    assert table.find("caption") is not None
    epmq = next(row for row in table.iter("tr") if (row.findtext("th") or "") == "epmq")
    assert [strong.text for strong in epmq.iter("strong")] == ["75.00"]
    assert [sup.text for sup in epmq.iter("sup")] == ["***"]


def test_saving_writes_every_format(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study())
    assert {path.name for path in save(Analysis(folder))} == {
        f"table.{end}" for end in ("md", "csv", "tex", "json", "html")
    }
    assert (tmp_path / "table.html").read_text("ascii") == rendered(folder, "html")


def test_text_suites_show_both_scores_and_the_share_of_no_answer(tmp_path: Path) -> None:
    right = np.array([1, 1, 0, 0], bool)
    reference = np.array([0, 1, 0, 1], np.int32)
    said, likeliest = np.array([0, 1, -1, 0], np.int32), np.array([0, 1, 0, 0], np.int32)
    kinds = {"prediction": said, "reference": reference, "ranked": likeliest, "ranked_norm": likeliest}
    scores: dict[str, Any] = {
        "ranked": 0.75,
        "ranked_norm": 0.75,
        "invalid": 0.25,
        "balanced": 0.5,
        "majority": 0.5,
    }
    task = TaskResult(value=0.5, samples=4, **scores)
    record = make_record({"digits": right}, "a", tasks={"digits": task}, average_ranked=0.75)
    folder = make_folder(tmp_path)
    folder.append(record, {"digits": right}, {f"digits@{kind}": array for kind, array in kinds.items()})
    (row,) = objects(folder)
    assert (row["average"], row["average_ranked"], row["invalid"]) == (0.5, 0.75, 0.25)
    heading, line = (x for x in rendered(folder, "md").splitlines() if x.startswith("| "))
    cells = dict(zip(*([x.strip() for x in text.split("|")] for text in (heading, line)), strict=True))
    assert (cells["ranked"], cells["invalid"]) == ("75.0", "25.0")


def test_images_have_no_ranked_score(tmp_path: Path) -> None:
    assert "ranked" not in rendered(make_folder(tmp_path, make_cell("a")), "md")
