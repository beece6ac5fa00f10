"""What every form of a suite's files shares: strict fields, and the wording of a refusal."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from epmq.errors import nearest

PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise ValueError(
            f"{name[:60]!r} is no name; give up to 100 letters, digits and . _ -, a letter first"
        )
    return name


def _plain_or_owned(name: str) -> str:
    owner, slash, own = name.rpartition("/")
    if slash:
        _plain(owner)
    _plain(own)
    return name


def _one_line(text: str) -> str:
    if not text or len(text) > 1000 or not text.isprintable():
        raise ValueError(f"{text[:60]!r} must be one line of 1 to 1000 printable characters")
    return text


_PLAIN, _OWNED = f"^{PLAIN.pattern}$", f"^({PLAIN.pattern}/)?{PLAIN.pattern}$"
PlainName = Annotated[  # it becomes a part of files' names
    str, AfterValidator(_plain), Field(json_schema_extra={"pattern": _PLAIN})
]
OwnedName = Annotated[  # OWNER/NAME, or NAME
    str, AfterValidator(_plain_or_owned), Field(json_schema_extra={"pattern": _OWNED})
]
Line = Annotated[str, AfterValidator(_one_line), Field(json_schema_extra={"minLength": 1, "maxLength": 1000})]
Names = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1, le=2**53, strict=True)]
# In place of pydantic's own words, where these say more.
_EXPECTED = {"string_type": "expected a text in quotation marks", "model_type": "expected fields"}


class Strict(BaseModel):
    """A form whose unknown fields are refused, with those that it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, given: Any) -> Any:
        for field in given if isinstance(given, dict) else ():
            if field not in cls.model_fields:
                raise ValueError(f"field {field!r} is unknown{nearest(str(field), cls.model_fields)}")
        return given


def first_complaint(error: ValidationError) -> str:
    """The first thing that a form refuses: the field, what it holds and what was expected."""
    return complaints(error)[0]


def complaints(error: ValidationError) -> list[str]:
    """Everything that a form refuses, in its order."""
    return [_complaint(each) for each in error.errors()]


def _complaint(found: Any) -> str:
    where = ".".join(map(str, found["loc"]))
    if found["type"] == "missing":
        return f"field {where!r} is missing"
    if found["type"] == "value_error":
        said = str(found["ctx"]["error"])
        return f"field {where!r}: {said}" if where else said
    shown = f"{found['input']!r:.80}"
    expected = _EXPECTED.get(found["type"], found["msg"])
    return f"field {where!r} is {shown}: {expected}" if where else expected
