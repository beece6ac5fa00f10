"""A record holds finite, consistent numbers under known names, or it does not exist."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from epmq.errors import UserError
from results.store.records import Manifest, Record
from tests.fixtures.records import make_cell, make_manifest


def test_a_record_survives_the_way_to_json_and_back() -> None:
    record, _ = make_cell("a", merge_options={"scale": 0.3}, normalised=0.1 + 0.2, warnings=["dead column 3"])
    assert Record.from_json(record.to_json().encode()) == record


def test_json_has_sorted_keys_and_names_its_schema() -> None:
    data = json.loads(make_cell("a")[0].to_json())
    assert list(data) == sorted(data)
    assert data["schema"] == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"average": 0.71},
        {"average": float("nan")},
        {"key": "ABCDEF0123456789"},
        {"key": "../../etc/passwd"},
        {"key": "0123456789abcdef\n"},
        {"tasks": {}},
        {"tasks": {"digits": {"value": 1.2, "samples": 10}}, "average": 1.2},
        {"tasks": {"digits": {"value": 0.5, "samples": 0}}, "average": 0.5},
        {"axes": {"anchor": float("inf")}},
        {"layers": [{"name": "a", "rows": 1, "columns": 1, "objective": float("nan")}]},
        {"seconds": {"merge": -1.0}},
        {"method": "two\nlines"},
        {"colour": "blue"},
        {"schema": 1},
        {"device": "tpu"},
        {"dtype": "float64"},
        {"pinned": None},
        {"bits": 2**60},
        {"packed_bytes": 10**400},
        {"seconds": {"merge": 1e300}},
        {"axes": {"layers": "two\nlines"}},
        {"suite": "../elsewhere"},
        {"tasks": {"/etc/passwd": {"value": 0.5, "samples": 10}}, "average": 0.5},
        {"tasks": {"a/../b": {"value": 0.5, "samples": 10}}, "average": 0.5},
        {"tasks": {"digits@prediction": {"value": 0.5, "samples": 10}}, "average": 0.5},
        {"tasks": {"digits": {"value": -0.5, "samples": 10}}, "average": -0.5},
        {"tasks": {"digits": {"value": 0.5, "samples": 10**9}}, "average": 0.5},
        {"tasks": {name: {"value": 0.5, "samples": 6_000_000} for name in "ab"}, "average": 0.5},
        {"samples_sha256": "0"},
        {"average_ranked": 0.5},
        {"tasks": {"digits": {"value": 0.5, "samples": 10, "ranked": 1.5}}, "average": 0.5},
        {"tasks": {"digits": {"value": 0.5, "samples": 10, "ranked": 0.6}}, "average": 0.5},
        {
            "tasks": {"digits": {"value": 0.5, "samples": 10, "ranked": 0.6}},
            "average": 0.5,
            "average_ranked": 0.5,
        },
    ],
    ids=str,
)
def test_a_bad_field_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_cell("a", **changes)


@pytest.mark.parametrize("field", ["device", "dtype", "pinned"])
def test_where_a_number_was_made_has_no_default(field: str) -> None:
    fields = make_cell("a")[0].model_dump()
    del fields[field]
    with pytest.raises(ValidationError, match=f"{field}\n  Field required"):
        Record(**fields)


def test_a_correlation_may_be_negative() -> None:
    task = {"metric": "spearman", "value": -0.25, "samples": 10}
    assert make_cell("a", tasks={"sts": task}, average=-0.25)[0].tasks["sts"].value == -0.25


def test_the_ranked_average_is_over_the_tasks_that_have_a_ranked_score() -> None:
    tasks: dict[str, Any] = {name: {"value": 0.5, "samples": 10} for name in "abc"}
    tasks["a"]["ranked"], tasks["b"]["ranked"] = 0.6, 0.9
    assert make_cell("a", tasks=tasks, average=0.5, average_ranked=0.75)[0].average_ranked == 0.75


def test_a_sealed_record_shows_every_change() -> None:
    record = make_cell("a")[0].sealed("0" * 64)
    assert record.record_sha256 == record.digest()
    assert Record.from_json(record.to_json().encode()).digest() == record.digest()
    for change in ({"seed": 1}, {"samples_sha256": "1" * 64}, {"peak_memory_bytes": 1001}):
        assert record.model_copy(update=change).digest() != record.digest()


def test_an_average_within_round_off_of_the_mean_is_accepted() -> None:
    assert make_cell("a", average=0.7 + 9e-10)[0].average == 0.7 + 9e-10


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"schema": 4}', "schema: must be 3, not '4', which this version of epmq cannot read"),
        ('{"schema": true}', "schema: must be 3, not 'True'"),
        ('{"schema": "3"}', "schema: must be 3"),
        ('{"schema": 3}', "key: Field required"),
        ("{}", "schema: Field required"),
        ("[1, 2]", "Input should be an object, not list"),
        ('{"schema": 3, "key": NaN}', "Invalid JSON"),
        ('{"schema": 3, "average": 1e999}', "holds a number that is not finite"),
        ("", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON: recursion limit"),
    ],
)
def test_a_bad_line_is_explained_in_one_line(line: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        Record.from_json(line.encode())
    assert "\n" not in str(caught.value)


def test_json_without_a_schema_is_refused() -> None:
    data = json.loads(make_cell("a")[0].to_json())
    del data["schema"]
    with pytest.raises(UserError, match="schema: Field required"):
        Record.from_json(json.dumps(data).encode())


def test_json_numbers_as_strings_are_refused() -> None:
    data = json.loads(make_cell("a")[0].to_json())
    data["average"] = str(data["average"])
    with pytest.raises(UserError, match="average: Input should be a valid number"):
        Record.from_json(json.dumps(data).encode())


def test_a_record_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        make_cell("a")[0].average = 1.0


def test_a_complaint_holds_nothing_that_a_terminal_obeys() -> None:
    data = json.loads(make_cell("a")[0].to_json())
    with pytest.raises(UserError, match=r"\?\[2J.*not permitted") as caught:
        Record.from_json(json.dumps({**data, "\x1b[2J" + "a" * 1000: 1}).encode())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_a_manifest_lists_the_cells_it_was_asked_for() -> None:
    cell = {"key": "0" * 16, "method": "rtn", "merge": "ties", "target": "merged", "bits": 4}
    manifest = make_manifest(asked={"cells": [cell]})
    assert [asked.method for asked in manifest.cells] == ["rtn"]
    assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert make_manifest().cells == []


@pytest.mark.parametrize("cells", [[{"key": "x"}], "all", [3]], ids=str)
def test_a_manifest_with_bad_cells_is_refused(cells: object) -> None:
    with pytest.raises(ValidationError):
        make_manifest(asked={"cells": cells})
