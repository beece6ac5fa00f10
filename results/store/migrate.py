"""Older schemas: how the JSON of a record or a manifest becomes that of the present schema.

One pure function from object to object per version step. A new schema adds a step to each chain, and the
test data of the version that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic_core import from_json

from epmq.errors import UserError

SCHEMA: Final = 2

Stored = dict[str, Any]
Step = Callable[[Stored], Stored]


def _record_1_to_2(record: Stored) -> Stored:
    """Schema 1 knew one machine, the CPU in float32, and checkpoints and data named by their hashes."""
    origin = {"device": "cpu", "dtype": "float32", "pinned": True}
    return _with(record, 2, {**origin, "samples_sha256": None, "record_sha256": None})


def _manifest_1_to_2(manifest: Stored) -> Stored:
    """Schema 1 knew no rehearsals."""
    return _with(manifest, 2, {"rehearsal": False})


def _with(stored: Stored, version: int, new: Stored) -> Stored:
    """``stored`` as ``version``, with its ``new`` fields, which an older file cannot hold."""
    for field in new:
        if field in stored:
            raise UserError(f"schema {version - 1} has no field {field!r}")
    return {**stored, "schema": version, **new}


RECORD: Final[Mapping[int, Step]] = {1: _record_1_to_2}
MANIFEST: Final[Mapping[int, Step]] = {1: _manifest_1_to_2}


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
