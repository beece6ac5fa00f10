"""``epmq verify`` passes what the runner writes, and finds every number and byte that is not what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import folder as cli_folder
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.figures.data import figure_data
from results.judge.verify import Report, verify
from results.store import exports
from results.store.exports import Export
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult
from results.tables.comparison import save
from results.tables.formats import csv_text
from tests.fixtures.records import (
    asking,
    command,
    make_cell,
    make_correct,
    make_folder,
    make_key,
    make_record,
)

EXPERTS = {"digits": 1.0, "shapes": 0.8}
PACKED: dict[str, Any] = {"bits_per_weight": 4.25, "packed_bytes": 17}  # 32 weights, 136 bits
FULL: dict[str, Any] = {"bits": None, "bits_per_weight": None, "target": None}


def study() -> list[Any]:
    experts = make_cell("experts", EXPERTS, kind="control", method="experts", merge=None, **FULL)
    return [experts, make_cell("gptq", normalised=(0.8 / 1.0 + 0.6 / 0.8) / 2, **PACKED)]


def verified(path: Path, *cells: Any, **manifest: Any) -> Report:
    return verify(Analysis(make_folder(path, *cells, **{"asked": asking(*cells), **manifest})))


def failures(report: Report) -> dict[str, str]:
    """The first failure of every point that failed."""
    return {point.what: point.failures[0] for point in report.points if point.failures}


def test_a_whole_folder_passes_and_says_what_was_looked_at(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study(), asked=asking(*study()))
    save(Analysis(folder))
    save_figures_data(folder)
    report = verify(Analysis(folder))
    assert not report.failed
    assert {point.what: point.checked for point in report.points} == {
        "lines of records.jsonl": 2,
        "the suite is what its name says": 1,
        "cells that were asked for": 2,
        "hashes of records": 2,
        "hashes of samples": 2,
        "tasks' values from samples": 2,
        "averages": 2,
        "averages normalised by the experts": 1,
        "packed sizes and bits per weight": 2,
        "tasks alike in every cell": 2,
        "saved tables": 5,
        "data of saved figures": len(figure_data(Analysis(folder))),
        "exported checkpoints name their record": 0,
    }
    assert report.notes == ()
    assert report.render().endswith(f"{tmp_path}: verified\n")


def test_an_export_names_a_record_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, *study(), asked=asking(*study()))
    known = folder.records()[1]
    assert known.record_sha256 is not None
    right = Export(key=known.key, record_sha256=known.record_sha256, format="dense", weights_sha256="0" * 64)
    for _ in range(2):
        exports.add(tmp_path, right)
    assert len((tmp_path / exports.FILE).read_bytes().splitlines()) == 1
    assert not verify(Analysis(folder)).failed
    exports.add(tmp_path, right.model_copy(update={"record_sha256": "1" * 64}))
    exports.add(tmp_path, right.model_copy(update={"key": "f" * 16}))
    (point,) = (p for p in verify(Analysis(folder)).points if p.what.startswith("exported"))
    assert point.checked == 3
    assert "2: is of another record" in point.failures[0]
    assert "3: names cell ffffffffffffffff" in point.failures[1]


def save_figures_data(folder: RunFolder) -> None:
    """The CSV beside a figure, without the time that drawing takes."""
    (folder.path / "figures").mkdir()
    for data in figure_data(Analysis(folder)):
        (folder.path / "figures" / f"{data.name}.csv").write_text(csv_text(list(data.points[0]), data.points))


# -- what a record says, against its samples and its neighbours


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"normalised": 0.9}, "normalised is 0.77"),
        ({"packed_bytes": 18}, "4.25 bits for each of 32 weights are not 18 packed bytes"),
        ({"bits_per_weight": 4.5}, "4.5 bits for each of 32 weights are not 17 packed bytes"),
        ({"bits_per_weight": 3.5, "packed_bytes": 14}, "3.5 bits per weight are fewer than the 4 bits"),
        ({"packed_bytes": None}, "is quantised to 4 bits and has no packed size"),
        ({"bits": None, "target": None}, "is in full precision and has a packed size"),
    ],
    ids=str,
)
def test_an_aggregate_that_does_not_follow_is_found(
    tmp_path: Path, changes: dict[str, Any], failure: str
) -> None:
    experts, (record, correct) = study()
    found = failures(verified(tmp_path, experts, (record.model_copy(update=changes), correct)))
    (only,) = found.values()
    assert only.startswith(f"{make_key('gptq')}: {failure}")


def test_a_normalised_average_needs_its_experts(tmp_path: Path) -> None:
    _, gptq = study()
    found = failures(verified(tmp_path, gptq))
    assert "without experts to divide by" in found["averages normalised by the experts"]


def test_an_odd_number_of_bits_is_packed_into_whole_bytes(tmp_path: Path) -> None:
    layer = {"name": "block.0", "rows": 3, "columns": 7, "objective": 0.0}  # 21 weights
    sizes: dict[str, Any] = {"bits_per_weight": (21 * 3 + 16) / 21, "packed_bytes": 10}  # 79 bits
    assert not verified(tmp_path, make_cell("a", bits=3, layers=[layer], **sizes)).failed


def test_a_task_with_other_samples_in_another_cell_is_found(tmp_path: Path) -> None:
    correct = make_correct(samples=100)
    cells = [make_cell("a", **PACKED), (make_record(correct, "b", **PACKED), correct)]
    found = failures(verified(tmp_path, *cells))
    assert found == {
        "tasks alike in every cell": "digits: cells differ in samples, metric or references: "
        "100 accuracy, 200 accuracy"
    }


def test_a_correlation_against_other_references_is_found(tmp_path: Path) -> None:
    task = TaskResult(metric="spearman", value=1.0, samples=3)
    cells: list[Any] = [
        (make_record(make_correct(), n, tasks={"sts": task}, average=1.0, **PACKED), {}) for n in "ab"
    ]
    folder = make_folder(tmp_path, asked=asking(*cells))
    for (record, correct), references in zip(cells, ([1, 2, 3], [4, 5, 6]), strict=True):
        folder.append(record, correct, {"sts@prediction": [1, 2, 3], "sts@reference": references})
    assert list(failures(verify(Analysis(folder)))) == ["tasks alike in every cell"]


# -- what was asked for


def test_a_cell_that_was_not_asked_for_is_found(tmp_path: Path) -> None:
    cells = [make_cell("a", **PACKED), make_cell("b", **PACKED)]
    found = failures(verified(tmp_path, *cells, asked=asking(cells[0])))
    assert found == {
        "cells that were asked for": f"{make_key('b')}: the manifest asks for it 0 times, expected once"
    }


@pytest.mark.parametrize("name", ["kind", "merge", "method", "target", "bits"])
def test_a_record_of_another_cell_than_asked_for_is_found(tmp_path: Path, name: str) -> None:
    (cell,) = cells = [make_cell("a", **PACKED)]
    asked = asking(*cells)
    asked["cells"][0][name] = {"kind": "control", "bits": 3}.get(name, "other")
    found = failures(verified(tmp_path, cell, asked=asked))
    assert found["cells that were asked for"].startswith(f"{make_key('a')}: {name} is ")


def test_what_is_no_failure_is_a_note(tmp_path: Path) -> None:
    cells = [make_cell("a", pinned=False, **PACKED), make_cell("b", **PACKED)]
    folder = make_folder(tmp_path, cells[0], asked=asking(*cells), rehearsal=True)
    (tmp_path / "samples" / "left-over.npz").write_bytes(b"")
    report = verify(Analysis(folder))
    assert not report.failed
    assert report.notes == (
        "a rehearsal: made-up data or checkpoints, no number is a result",
        "1 of 2 cells that were asked for are not run",
        "1 of 1 records are not pinned",
        "1 files in samples/ belong to no record",
    )


# -- bytes that were changed afterwards


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    path.write_bytes(edit(path.read_bytes()))


def test_a_record_that_was_edited_is_found_by_its_hash(tmp_path: Path) -> None:
    verified(tmp_path, *study())
    change(tmp_path / "records.jsonl", lambda text: text.replace(b'"objective":0.25', b'"objective":0.15'))
    found = failures(verify(Analysis.open(tmp_path)))
    assert list(found) == ["hashes of records"]
    assert "SHA-256 is " in found["hashes of records"]


def test_a_record_without_hashes_is_found(tmp_path: Path) -> None:
    verified(tmp_path, *study())
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines()
    bare = Record.from_json(lines[1]).model_copy(update={"samples_sha256": None, "record_sha256": None})
    (tmp_path / "records.jsonl").write_bytes(lines[0] + b"\n" + bare.to_json().encode() + b"\n")
    found = failures(verify(Analysis.open(tmp_path)))
    assert [(what, text.rpartition(" ")[2]) for what, text in found.items()] == [
        ("hashes of records", "None"),
        ("hashes of samples", "None"),
    ]


def test_samples_that_were_exchanged_are_found_even_with_the_same_accuracy(tmp_path: Path) -> None:
    cells = study()
    verified(tmp_path / "a", *cells)
    record, correct = cells[1]
    mirrored = {task: got[::-1] for task, got in correct.items()}
    verified(tmp_path / "b", cells[0], (record, mirrored))
    file = Path("samples") / f"{make_key('gptq')}.npz"
    change(tmp_path / "a" / file, lambda _: (tmp_path / "b" / file).read_bytes())
    assert list(failures(verify(Analysis.open(tmp_path / "a")))) == ["hashes of samples"]


def test_samples_with_another_accuracy_are_found_by_their_values(tmp_path: Path) -> None:
    verified(tmp_path / "a", *study())
    verified(tmp_path / "b", make_cell("gptq", {"digits": 0.5, "shapes": 0.5}))
    file = Path("samples") / f"{make_key('gptq')}.npz"
    change(tmp_path / "a" / file, lambda _: (tmp_path / "b" / file).read_bytes())
    found = failures(verify(Analysis.open(tmp_path / "a")))
    assert "digits has accuracy 0.5, its record 0.8" in found["tasks' values from samples"]


def test_missing_samples_are_found(tmp_path: Path) -> None:
    verified(tmp_path, *study())
    (tmp_path / "samples" / f"{make_key('gptq')}.npz").unlink()
    assert "No such file" in failures(verify(Analysis.open(tmp_path)))["tasks' values from samples"]


def test_a_damaged_line_is_found_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    verified(tmp_path, *study())
    change(tmp_path / "records.jsonl", lambda text: b"{}\n" + text)
    report = verify(Analysis.open(tmp_path))
    assert failures(report) == {"lines of records.jsonl": "records.jsonl:1: schema: Field required; skipped"}
    assert {point.checked for point in report.points if point.what == "averages"} == {2}


@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.tex", "table.json", "table.html"])
def test_a_table_that_was_edited_is_found(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, *study(), asked=asking(*study()))
    save(Analysis(folder))
    change(tmp_path / name, lambda text: text.replace(b"0", b"9", 1))
    found = failures(verify(Analysis(folder)))
    assert list(found) == ["saved tables"]
    assert found["saved tables"].startswith(f"{name} is not what the records give here")


@pytest.mark.parametrize("name", ["accuracy.csv", "other.csv"])
def test_data_of_a_figure_that_the_records_do_not_give_are_found(tmp_path: Path, name: str) -> None:
    folder = make_folder(tmp_path, *study(), asked=asking(*study()))
    save_figures_data(folder)
    (tmp_path / "figures" / name).write_text("bits,average\n4,0.99\n")
    found = failures(verify(Analysis(folder)))
    assert found == {"data of saved figures": f"{name} is not what the records give here; make it again"}


# -- the command


def test_the_command_prints_a_table_and_its_exit_status_is_the_outcome(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verified(tmp_path, *study())
    assert command(cli_folder, "verify", tmp_path) == 0
    assert capsys.readouterr().out.endswith(": verified\n")
    change(tmp_path / "records.jsonl", lambda text: text + b"{}\n")
    assert command(cli_folder, "verify", tmp_path) == 1
    printed = capsys.readouterr().out
    assert "failed: lines of records.jsonl: records.jsonl:3: schema: Field required; skipped\n" in printed
    assert printed.endswith(": FAILED, 1 failures\n")


def test_the_command_as_json_holds_every_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verified(tmp_path, *study())
    change(tmp_path / "records.jsonl", lambda text: text + b"{}\n" * 50)
    assert command(cli_folder, "verify", tmp_path, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["failed"] is True
    assert report["schema"] == 3
    assert len(report["points"][0]["failures"]) == 50
    assert command(cli_folder, "verify", tmp_path) == 1
    assert "and 30 more, see --json" in capsys.readouterr().out


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        command(cli_folder, "verify", tmp_path)
