"""What every form of a suite's files shares: strict fields, and the wording of a refusal."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from epmq.errors import nearest

Names = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
# In place of pydantic's own words, where these say more.
_EXPECTED = {"string_type": "expected a text in quotation marks", "model_type": "expected fields"}


class Strict(BaseModel):
    """A form whose unknown fields are refused, with those that it has."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, given: Any) -> Any:
        for field in given if isinstance(given, dict) else ():
            if field not in cls.model_fields:
                raise ValueError(f"field {field!r} is unknown{nearest(str(field), cls.model_fields)}")
        return given


def first_complaint(error: ValidationError) -> str:
    """The first thing that a form refuses: the field, what it holds and what was expected."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"field {where!r} is missing"
    if first["type"] == "value_error":
        said = str(first["ctx"]["error"])
        return f"field {where!r}: {said}" if where else said
    shown = f"{first['input']!r:.80}"
    expected = _EXPECTED.get(first["type"], first["msg"])
    return f"field {where!r} is {shown}: {expected}" if where else expected
