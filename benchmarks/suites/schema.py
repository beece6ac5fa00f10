"""JSON Schemas of suite files and task files, made from the forms that read them."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from benchmarks.suites.forms import ClipSuite, TextSuite
from benchmarks.suites.prompt import TaskFile

_FORMS: dict[str, Any] = {
    "suite": Annotated[ClipSuite | TextSuite, Field(discriminator="kind")],
    "task": TaskFile,
}
KINDS = tuple(_FORMS)


def schema(kind: str) -> str:
    """The JSON Schema (2020-12) of one of ``KINDS``, as text; what relates fields is checked by the forms."""
    found = TypeAdapter[BaseModel](_FORMS[kind]).json_schema()
    described = {"$schema": GenerateJsonSchema.schema_dialect, "title": f"epmq {kind} file", **found}
    return json.dumps(described, indent=2) + "\n"
