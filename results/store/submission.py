"""The form of a contribution that a results folder may hold, ``submission.json``: who contributes what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from epmq.errors import UserError
from results.store.files import os_errors, read_bounded
from results.store.records import Name, complaint, printable

FORM = "submission.json"
_MAX_FORM = 1 << 20  # bytes

NonEmpty = Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(printable)]


class Submission(BaseModel):
    """Who contributes which methods.

    Attributes:
        methods: names of methods or roundings that are contributed, as the records have them.
        reference: where the method is described: an arXiv id, a DOI or an address.
        code: where its code is: a file of this repository, or a package and its version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: NonEmpty
    authors: Annotated[tuple[Name, ...], Field(min_length=1)]
    methods: Annotated[tuple[Name, ...], Field(min_length=1)]
    reference: NonEmpty
    code: NonEmpty
    contact: NonEmpty | None = None


def read_form(path: Path) -> Submission:
    """The form in a contributed results folder; raises UserError with what is wrong with it."""
    file = path / FORM
    with os_errors(file, "read the form of a contribution"):
        data = read_bounded(file, _MAX_FORM)
    try:
        return Submission.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise UserError(f"{file}: {complaint(error)}; see the form in results/store/submission.py") from error
