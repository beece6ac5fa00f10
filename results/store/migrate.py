"""Older schemas: how the JSON of a record or a manifest becomes that of the present schema.

One pure function from object to object per version step. A new schema adds a step to each chain, and the
test data of the version that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic_core import from_json

from epmq.errors import UserError

SCHEMA: Final = 3

SCORES: Final = ("ranked", "ranked_norm", "invalid", "balanced", "majority")  # of a task, new in schema 3

Stored = dict[str, Any]
Step = Callable[[Stored], Stored]


def _record_1_to_2(record: Stored) -> Stored:
    """Schema 1 knew one machine, the CPU in float32, and checkpoints and data named by their hashes."""
    origin = {"device": "cpu", "dtype": "float32", "pinned": True}
    return _with(record, 2, {**origin, "samples_sha256": None, "record_sha256": None})


def _manifest_1_to_2(manifest: Stored) -> Stored:
    """Schema 1 knew no rehearsals."""
    return _with(manifest, 2, {"rehearsal": False})


def _record_2_to_3(record: Stored) -> Stored:
    """Schema 2 knew one score of a task, and neither invalid answers nor classes of unlike size."""
    for task in tasks.values() if isinstance(tasks := record.get("tasks"), dict) else ():
        _refuse(SCORES, task, 2)
    return _with(record, 3, {"average_ranked": None})


def _manifest_2_to_3(manifest: Stored) -> Stored:
    """Schema 3 adds nothing to a manifest."""
    return _with(manifest, 3, {})


def record_2(record: Stored) -> Stored:
    """A record that was migrated from schema 2, as it was: what its hash is of."""
    tasks = {
        name: {field: value for field, value in task.items() if field not in SCORES}
        for name, task in record["tasks"].items()
    }
    kept = {field: value for field, value in record.items() if field != "average_ranked"}
    return {**kept, "schema": 2, "tasks": tasks}


def _with(stored: Stored, version: int, new: Stored) -> Stored:
    """``stored`` as ``version``, with its ``new`` fields, which an older file cannot hold."""
    _refuse(new, stored, version - 1)
    return {**stored, "schema": version, **new}


def _refuse(fields: Iterable[str], stored: Any, version: int) -> None:
    for field in fields:
        if isinstance(stored, dict) and field in stored:
            raise UserError(f"schema {version} has no field {field!r}")


RECORD: Final[Mapping[int, Step]] = {1: _record_1_to_2, 2: _record_2_to_3}
MANIFEST: Final[Mapping[int, Step]] = {1: _manifest_1_to_2, 2: _manifest_2_to_3}


def parse(data: bytes) -> Stored:
    """The JSON object ``data``, which must name a schema that is known here.

    Raises:
        UserError: it is no JSON (NaN, Infinity and more than 200 levels included), no object, or of an
            unknown schema.
    """
    try:
        stored = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"Invalid JSON: {error}") from error
    if not isinstance(stored, dict):
        raise UserError(f"Input should be an object, not {type(stored).__name__}")
    if "schema" not in stored:
        raise UserError("schema: Field required")
    version = stored["schema"]
    if type(version) is not int or not 1 <= version <= SCHEMA:
        raise UserError(f"schema: must be a whole number from 1 to {SCHEMA}, not {str(version)[:40]!r}")
    return stored


def migrated(stored: Stored, steps: Mapping[int, Step]) -> Stored:
    """An object of any known schema as one of the present schema.

    Raises:
        UserError: it holds a field of a newer schema than its own.
    """
    while stored["schema"] != SCHEMA:
        stored = steps[stored["schema"]](stored)
    return stored
