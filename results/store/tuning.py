"""The label-free search for the anchor that a results folder may hold, ``tuning.json``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from epmq.errors import UserError
from results.store.files import os_errors, read_bounded
from results.store.folder import RunFolder
from results.store.records import Name, Real

_LARGEST = 10_000_000


class Trial(BaseModel):
    """One setting and its ``distance`` to the experts' features. Further fields are its other settings."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    merge: Name
    bits: int
    target: Name
    mixing: Real
    anchor: Annotated[float, Field(ge=0, le=1e100)]
    patch_weight: Real = 1.0
    distance: Real


_TRIALS = TypeAdapter(list[Trial])


def trials(folder: RunFolder) -> list[Trial]:
    """What the folder's ``tuning.json`` holds, nothing where it has none.

    Raises:
        UserError: the file is no list of trials.
    """
    path = folder.path / "tuning.json"
    if not path.is_symlink() and not path.exists():
        return []
    with os_errors(path, "read the label-free search"):
        data = read_bounded(path, _LARGEST)
    try:
        return _TRIALS.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}; write it again or remove it") from error
