"""The published JSON Schemas are those of the code, and accept what the code writes."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from benchmarks.cli import folder
from benchmarks.cli.folder import SCHEMAS
from results.store.records import SCHEMA, Manifest, Record
from tests.fixtures.records import command, make_cell, make_manifest

MODELS: dict[str, type[Record] | type[Manifest]] = {"record": Record, "manifest": Manifest}


def published(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{kind}-{SCHEMA}.schema.json").read_bytes())
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_the_published_schema_is_regenerated_byte_for_byte(kind: str) -> None:
    file = SCHEMAS / f"{kind}-{SCHEMA}.schema.json"
    assert MODELS[kind].published_schema().encode() == file.read_bytes()


@pytest.mark.parametrize("kind", MODELS)
def test_the_schema_is_printed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, "schema", kind) == 0
    assert capsys.readouterr().out == MODELS[kind].published_schema()
    assert published(kind)["properties"]["schema"]["const"] == SCHEMA


def test_what_has_no_default_is_required() -> None:
    required = set(published("record")["required"])
    assert {"schema", "key", "device", "dtype", "pinned", "tasks"} <= required
    assert not {"samples_sha256", "warnings", "layers"} & required
    assert published("manifest")["required"] == ["schema", "suite", "suite_version", "created"]


@pytest.mark.parametrize("kind", MODELS)
def test_no_object_of_ours_takes_unknown_fields(kind: str) -> None:
    schema = published(kind)
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            assert part["additionalProperties"] is False


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="the package jsonschema is not installed")
def test_a_validator_takes_our_files_and_refuses_others() -> None:
    jsonschema: Any = import_module("jsonschema")

    record = json.loads(make_cell("a")[0].sealed("0" * 64).to_json())
    manifest = json.loads(make_manifest(asked={"bits": [4]}).to_json())
    for kind, stored in (("record", record), ("manifest", manifest)):
        jsonschema.Draft202012Validator.check_schema(published(kind))
        validator = jsonschema.Draft202012Validator(published(kind))
        assert list(validator.iter_errors(stored)) == []
        for wrong in ({"colour": "blue"}, {"schema": 1}, {"suite": 3}, {"suite_version": 0}):
            assert list(validator.iter_errors({**stored, **wrong})), wrong
