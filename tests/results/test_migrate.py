"""Results of every older schema are read, shown and checked, and never added to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from epmq.errors import UserError
from results.judge.check import check
from results.judge.verify import verify
from results.store.folder import RunFolder
from results.store.migrate import MANIFEST, RECORD, SCHEMA, SCORES, migrated, parse
from results.store.records import Manifest, Record
from results.tables.comparison import FORMATS, render
from tests.fixtures.records import make_cell, make_folder, make_manifest

DATA = Path(__file__).parent / "data"
VERSIONS = range(1, SCHEMA)


@pytest.mark.parametrize("version", VERSIONS)
def test_there_are_test_data_and_a_step_for_every_older_schema(version: int) -> None:
    folder = DATA / f"schema-{version}"
    stored = json.loads((folder / "manifest.json").read_bytes())
    assert stored["schema"] == version
    assert version in RECORD
    assert version in MANIFEST


@pytest.mark.parametrize("version", VERSIONS)
def test_a_folder_of_an_older_schema_is_read_whole(version: int) -> None:
    folder = RunFolder.open(DATA / f"schema-{version}")
    assert folder.schema == version
    assert folder.problems == []
    assert len(folder.records()) == len(folder.manifest.cells) == 3
    for record in folder.records():
        assert record.schema_version == folder.manifest.schema_version == SCHEMA
        assert set(folder.correct(record.key)) == set(record.tasks)
        assert folder.predictions(record.key) == {}


def test_schema_2_knew_one_score() -> None:
    for record in RunFolder.open(DATA / "schema-2").records():
        assert record.average_ranked is None
        assert {getattr(task, name) for task in record.tasks.values() for name in SCORES} == {None}


def test_the_hash_of_a_record_of_schema_2_is_still_checked(tmp_path: Path) -> None:
    shutil.copytree(DATA / "schema-2", tmp_path / "run")
    file = tmp_path / "run" / "records.jsonl"
    assert file.read_bytes().count(b'"seed":0') == 3
    file.write_bytes(file.read_bytes().replace(b'"seed":0', b'"seed":1', 1))
    report = verify(RunFolder.open(tmp_path / "run"))
    failed = {point.what: len(point.failures) for point in report.points if point.failures}
    assert failed == {"hashes of records": 1}


def test_what_schema_1_left_unsaid_is_what_it_meant() -> None:
    folder = RunFolder.open(DATA / "schema-1")
    assert not folder.manifest.rehearsal
    for record in folder.records():
        assert (record.device, record.dtype, record.pinned) == ("cpu", "float32", True)
        assert record.samples_sha256 is record.record_sha256 is None


def test_migration_changes_no_number() -> None:
    file = DATA / "schema-1" / "records.jsonl"
    added = {"device", "dtype", "pinned", "samples_sha256", "record_sha256", "average_ranked"}
    for line in file.read_bytes().splitlines():
        before, now = json.loads(line), json.loads(Record.from_json(line).to_json())
        for task in now["tasks"].values():
            assert [task.pop(name) for name in SCORES] == [None] * len(SCORES)
        assert {name: now[name] for name in now if name not in added | {"schema"}} == {
            name: before[name] for name in before if name != "schema"
        }


def test_a_step_leaves_its_input_alone() -> None:
    stored = {"schema": 1, "suite": "toy"}
    assert migrated(stored, MANIFEST) == {"schema": 3, "suite": "toy", "rehearsal": False}
    assert stored == {"schema": 1, "suite": "toy"}


def test_the_present_schema_is_not_migrated() -> None:
    line = make_cell("a")[0].to_json().encode()
    assert migrated(parse(line), RECORD) == json.loads(line)


def test_a_field_of_a_newer_schema_is_unknown_to_an_older_one() -> None:
    """A file that says schema 1 and holds schema 2's fields is neither."""
    for field, model in (("device", Record), ("rehearsal", Manifest)):
        made = make_cell("a")[0] if model is Record else make_manifest()
        stored = {**json.loads(made.to_json()), "schema": 1}
        with pytest.raises(UserError, match=f"schema 1 has no field '{field}'"):
            model.from_json(json.dumps(stored).encode())
    stored = {**json.loads(make_cell("a")[0].to_json()), "schema": 2}
    with pytest.raises(UserError, match="schema 2 has no field 'ranked'"):
        Record.from_json(json.dumps(stored).encode())
    for task in stored["tasks"].values():
        for name in SCORES:
            del task[name]
    with pytest.raises(UserError, match="schema 2 has no field 'average_ranked'"):
        Record.from_json(json.dumps(stored).encode())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_of_an_older_folder_is_printed(version: int, fmt: str) -> None:
    table = render(RunFolder.open(DATA / f"schema-{version}"), fmt)
    assert "epmq" in table
    assert "experts" in table


@pytest.mark.parametrize("version", VERSIONS)
def test_an_older_folder_can_be_verified_and_compared(version: int) -> None:
    folder = RunFolder.open(DATA / f"schema-{version}")
    report = verify(folder)
    assert not report.failed
    assert ("schema 1 has no hashes" in report.render()) == (version == 1)
    assert not check(folder, folder).failed


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_is_added_to_an_older_folder(tmp_path: Path, version: int) -> None:
    shutil.copytree(DATA / f"schema-{version}", tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    record = folder.records()[0]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    complaint = (
        f"holds results of schema {version}, which can be read but not added to .*choose another --out"
    )
    with pytest.raises(UserError, match=complaint):
        folder.append(record, folder.correct(record.key))
    with pytest.raises(UserError, match=complaint):
        RunFolder.open(tmp_path / "run", folder.manifest)
    with pytest.raises(UserError, match=complaint):
        RunFolder.open(tmp_path / "run", folder.manifest, create=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_is_of_one_schema(tmp_path: Path) -> None:
    old = DATA / "schema-1"
    manifest = RunFolder.open(old).manifest
    RunFolder.open(tmp_path, manifest, create=True)
    (tmp_path / "records.jsonl").write_bytes((old / "records.jsonl").read_bytes())
    folder = RunFolder.open(tmp_path)
    assert folder.records() == []
    assert folder.problems[0] == "records.jsonl:1: is of schema 1, the folder of schema 3; skipped"


def test_a_record_can_be_carried_over_to_a_new_folder(tmp_path: Path) -> None:
    old = RunFolder.open(DATA / "schema-1")
    new = RunFolder.open(tmp_path, old.manifest, create=True)
    for record in old.records():
        new.append(record, old.correct(record.key))
    assert not verify(RunFolder.open(tmp_path)).failed
    for record in old.records():
        for task, correct in old.correct(record.key).items():
            assert np.array_equal(correct, new.correct(record.key)[task])


def test_new_folders_are_of_the_present_schema(tmp_path: Path) -> None:
    make_folder(tmp_path, make_cell("a"))
    assert RunFolder.open(tmp_path).schema == SCHEMA
