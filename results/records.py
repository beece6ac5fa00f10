"""What a run writes down: one `Record` per cell, and the `Manifest` of the folder.

The models are frozen, refuse unknown fields, and hold finite numbers only. In JSON the field
`schema_version` is called `schema`.
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from results.errors import ResultError

SCHEMA: Final = 1


def _printable(name: str) -> str:
    if not name.isprintable():  # a line break in a name would break every table
        raise ValueError("must hold printable characters only")
    return name


Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Axis = bool | int | float | str | None
Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Versioned(_Model):
    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")

    def to_json(self) -> str:
        """Return the model as one line of JSON with sorted keys, without a line break."""
        data = self.model_dump(mode="json", by_alias=True)
        return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the model from strict JSON that names its schema, or raise a `ResultError`."""
        try:
            model = cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise ResultError(_complaint(error)) from error
        if "schema_version" not in model.model_fields_set:
            raise ResultError("schema: Field required")
        return model


class TaskResult(_Model):
    """Accuracy on one task: `value` in [0, 1] over `samples` test samples."""

    metric: Literal["accuracy"] = "accuracy"
    value: Annotated[float, Field(ge=0, le=1)]
    samples: Positive


class LayerResult(_Model):
    """One layer of shape (rows, columns), and `objective` = tr((Q - C) H (Q - C)^T)."""

    name: Name
    rows: Positive
    columns: Positive
    objective: float
    quantisation_deviation: float | None = None
    expert_deviation: float | None = None
    merging_deviation: float | None = None
    warnings: tuple[str, ...] = ()


class Record(_Versioned):
    """One cell of a comparison. `key` is the hash of everything that can change its numbers.

    `average` is the unweighted mean of the tasks' values, `normalised` the mean over tasks of the value
    divided by the expert's value. Times are seconds by phase, sizes are bytes.
    """

    key: Key
    suite: Name
    suite_version: Positive
    kind: Literal["method", "control"]
    merge: Name | None
    merge_options: dict[Name, Axis] = {}
    method: Name
    rounding: Name | None = None
    target: Name | None = None
    bits: Positive | None = None
    axes: dict[Name, Axis] = {}
    seed: NotNegative
    tasks: Annotated[dict[Name, TaskResult], Field(min_length=1)]
    average: float
    normalised: Annotated[float, Field(ge=0)] | None = None
    layers: tuple[LayerResult, ...] = ()
    seconds: dict[Name, Annotated[float, Field(ge=0)]] = {}
    peak_memory_bytes: NotNegative
    packed_bytes: NotNegative | None = None
    bits_per_weight: Annotated[float, Field(gt=0)] | None = None
    warnings: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _average_is_the_mean(self) -> Self:
        mean = math.fsum(task.value for task in self.tasks.values()) / len(self.tasks)
        if abs(self.average - mean) > 1e-9:
            raise ValueError(f"average {self.average!r} is not the mean of the tasks, {mean!r}")
        return self


class AskedCell(BaseModel):
    """A cell that a run was asked for. Further fields are allowed and kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    key: Key
    kind: Literal["method", "control"] = "method"
    merge: Name | None
    method: Name
    target: Name | None
    bits: Positive | None


_CELLS = TypeAdapter(list[AskedCell])


class Manifest(_Versioned):
    """What a folder of results was asked for, in which environment, from which revisions.

    `asked` holds the command's options; its optional entry `cells` lists every cell that was asked for.
    """

    suite: Name
    suite_version: Positive
    asked: dict[str, JsonValue] = {}
    environment: dict[str, JsonValue] = {}
    revisions: dict[str, JsonValue] = {}
    calibration: dict[str, str] = {}
    created: str

    @field_validator("asked")
    @classmethod
    def _cells_are_valid(cls, asked: dict[str, JsonValue]) -> dict[str, JsonValue]:
        _CELLS.validate_python(asked.get("cells", []))
        return asked

    @property
    def cells(self) -> list[AskedCell]:
        """The cells that were asked for; empty where the manifest does not list them."""
        return _CELLS.validate_python(self.asked.get("cells", []))


def _complaint(error: ValidationError) -> str:
    """Return the first complaint on one line, as `field: what is wrong`, with the value if it is short."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    value = repr(first["input"])
    if first["type"] not in {"missing", "value_error", "json_invalid"} and len(value) <= 40:
        message += f", not {value}"
    return f"{where}: {message}" if where else message
