"""What every form of a suite file shares: strict fields, and the wording of a refusal."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Names = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def first_complaint(error: ValidationError) -> str:
    """The first thing that a form refuses, with its field."""
    first = error.errors()[0]
    where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
    return f"{where}{first['msg']}"
