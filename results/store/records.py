"""What a run writes down: one ``Record`` per cell, and the ``Manifest`` of the folder.

The models are frozen, refuse unknown fields, and hold finite numbers only. In JSON the field
``schema_version`` is called ``schema``; ``results/store/schema/`` holds the JSON Schemas.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

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
from pydantic_core import from_json

from epmq.errors import UserError

SCHEMA: Final = 3  # what is written, and all that is read
MAX_SAMPLES: Final = 10_000_000  # of a cell's tasks together; what bounds the memory that reading them takes


def printable(name: str) -> str:
    """``name``; raises ValueError where it holds what is not printed, a line break for instance."""
    if not name.isprintable():  # a line break in a name would break every table
        raise ValueError("must hold printable characters only")
    return name


def _no_path(name: str) -> str:
    if name.startswith("/") or {".", ".."} & set(name.split("/")):
        raise ValueError("must not read as a path: no leading / and no part . or ..")
    return name


def _no_at(name: str) -> str:
    if "@" in name:  # it parts a task from the kind of array in the files of samples
        raise ValueError("must not hold @")
    return name


Text = Annotated[str, StringConstraints(max_length=1000), AfterValidator(printable)]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    AfterValidator(printable),
    AfterValidator(_no_path),
]
TaskName = Annotated[Name, AfterValidator(_no_at)]
Key = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# the bounds keep sums and products of hostile numbers finite, and whole numbers exact in any JSON reader
Real = Annotated[float, Field(ge=-1e100, le=1e100)]
Positive = Annotated[int, Field(gt=0, le=2**53)]
NotNegative = Annotated[int, Field(ge=0, le=2**53)]
Bits = Annotated[int, Field(gt=0, le=64)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Axis = bool | int | float | Text | None


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Versioned(_Model):
    schema_version: Literal[3] = Field(default=SCHEMA, alias="schema")
    suite_sha256: Sha256 | None = None

    def to_json(self) -> str:
        """The model as one line of JSON with sorted keys, without a line break."""
        data = self.model_dump(mode="json", by_alias=True, exclude=self._absent())
        return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))

    def _absent(self) -> set[str]:
        """Fields that came later and are left out where they say nothing, so that older digests hold."""
        return {"suite_sha256"} if self.suite_sha256 is None else set()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """The model from strict JSON that names this schema.

        Raises:
            UserError: with the first complaint, on one line.
        """
        finite = _finite(data)
        try:
            return cls.model_validate_json(finite, strict=True)
        except ValidationError as error:
            raise UserError(complaint(error)) from error

    @classmethod
    def published_schema(cls) -> str:
        """The JSON Schema of this version, as ``results/store/schema/`` holds it."""
        schema: dict[str, Any] = cls.model_json_schema()
        schema["required"] = ["schema", *schema["required"]]  # files must name it
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _finite(data: bytes) -> str:
    """The JSON object ``data`` again, seen to be of this schema and to hold finite numbers only."""
    try:
        stored = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"Invalid JSON: {error}") from error
    if not isinstance(stored, dict):
        raise UserError(f"Input should be an object, not {type(stored).__name__}")
    if "schema" not in stored:
        raise UserError("schema: Field required")
    version = stored["schema"]
    if type(version) is not int or version != SCHEMA:
        raise UserError(
            f"schema: must be {SCHEMA}, not {str(version)[:40]!r}, which this version of epmq cannot read"
        )
    try:
        return json.dumps(stored, allow_nan=False)
    except ValueError as error:  # 1e999 is JSON, and infinite
        raise UserError("holds a number that is not finite") from error


class TaskResult(_Model):
    """One task's ``value`` over ``samples`` test samples: accuracy in [0, 1], Spearman's rho in [-1, 1].

    The further scores are shares of the same samples, None where they do not apply. Of generated classes:
    ``ranked``, right where the answers are ranked by their likelihood; ``ranked_norm``, the likelihood's
    logarithm divided by the answer's length; ``invalid``, generated texts that are none of the task's
    answers. Of all classes: ``balanced``, the mean recall of a class; ``majority``, the largest class.
    """

    metric: Literal["accuracy", "spearman"] = "accuracy"
    value: Annotated[float, Field(ge=-1, le=1)]
    samples: Annotated[int, Field(gt=0, le=MAX_SAMPLES)]
    ranked: Share | None = None
    ranked_norm: Share | None = None
    invalid: Share | None = None
    balanced: Share | None = None
    majority: Share | None = None

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.metric == "accuracy" and self.value < 0:
            raise ValueError(f"value: an accuracy must not be negative, not {self.value!r}")
        return self


class LayerResult(_Model):
    """One layer of shape (rows, columns), and ``objective`` = tr((Q - C) H (Q - C)^T).

    Deviations are mean squares of outputs on the calibration inputs: quantisation of Q from W_m, rounding of
    Q from the centre C, move of C from W_m; and of Q (expert), C (centre) and W_m (merging) from the targets
    that calibration set, the experts' weights on the model's inputs or the experts' own features.
    """

    name: Name
    rows: Positive
    columns: Positive
    objective: Real
    quantisation_deviation: Real | None = None
    rounding_deviation: Real | None = None
    move_deviation: Real | None = None
    expert_deviation: Real | None = None
    centre_deviation: Real | None = None
    merging_deviation: Real | None = None
    warnings: tuple[str, ...] = ()

    @property
    def experts_differ(self) -> bool:
        """Whether there is a merging deviation beyond noise; there is none where LoRA left a layer alone."""
        M, Q = self.merging_deviation, self.quantisation_deviation
        return M is not None and M > 0 and (Q is None or M > 1e-10 * Q)


class RefinementPoint(_Model):
    """A refinement after ``step`` steps: the mean loss of the steps since the last point, and held out."""

    step: NotNegative
    learnt: Real | None = None
    held_out: Real


class RefinementResult(_Model):
    """How a refinement went: its curve, the step whose state was kept, and the seconds it took.

    A cell that read a refined start from the cache counts the seconds that this start took.
    """

    points: Annotated[tuple[RefinementPoint, ...], Field(min_length=1)]
    best: NotNegative
    seconds: Seconds


class SearchTrial(_Model):
    """A setting that was tried and its model's distance to the experts on held-out calibration samples.

    ``held_out`` is None where the distance was no number.
    """

    setting: dict[Name, Axis]
    held_out: Real | None = None
    seconds: Seconds


class SearchResult(_Model):
    """What a search on held-out calibration samples chose, and all that it tried."""

    setting: dict[Name, Axis]
    trials: Annotated[tuple[SearchTrial, ...], Field(min_length=1)]


class Record(_Versioned):
    """One cell of a comparison. ``key`` is the hash of everything that can change its numbers.

    ``average`` is the unweighted mean of the tasks' values, ``average_ranked`` that of the ranked scores of
    the tasks that have one (None without any), ``normalised`` the mean over tasks of the value divided by the
    expert's value. Times are seconds by phase, sizes are bytes. ``pinned``: every checkpoint
    and data set behind it is named by its hash or commit. ``suite_sha256`` is the hash of what the suite
    reads (see ``results.store.origin``), None in records that do not tell. ``samples_sha256`` is the hash of
    the file of samples, ``record_sha256`` that of the record itself (see ``digest``); None before it is in a
    folder.
    """

    key: Key
    suite: Name
    suite_version: Positive
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16", "float16"]
    pinned: bool
    kind: Literal["method", "control"]
    merge: Name | None
    merge_options: dict[Name, Axis] = {}
    method: Name
    rounding: Name | None = None
    target: Name | None = None
    bits: Bits | None = None
    axes: dict[Name, Axis] = {}
    seed: NotNegative
    tasks: Annotated[dict[TaskName, TaskResult], Field(min_length=1)]
    average: float
    average_ranked: Share | None = None
    normalised: Real | None = None
    layers: tuple[LayerResult, ...] = ()
    refinements: dict[Literal["before", "after"], RefinementResult] = {}
    search: SearchResult | None = None
    seconds: dict[Name, Seconds] = {}
    peak_memory_bytes: NotNegative
    packed_bytes: NotNegative | None = None
    bits_per_weight: Annotated[float, Field(gt=0, le=1024)] | None = None
    warnings: tuple[str, ...] = ()
    samples_sha256: Sha256 | None = None
    record_sha256: Sha256 | None = None

    def _absent(self) -> set[str]:
        parts = {"refinements": self.refinements, "search": self.search}
        return super()._absent() | {name for name, part in parts.items() if not part}

    @model_validator(mode="after")
    def _average_is_the_mean(self) -> Self:
        mean = math.fsum(task.value for task in self.tasks.values()) / len(self.tasks)
        if abs(self.average - mean) > 1e-9:
            raise ValueError(f"average {self.average!r} is not the mean of the tasks, {mean!r}")
        return self

    @model_validator(mode="after")
    def _average_ranked_is_the_mean(self) -> Self:
        mean = mean_ranked(task.ranked for task in self.tasks.values())
        if not agree(self.average_ranked, mean):
            raise ValueError(f"average_ranked {self.average_ranked!r} is not the mean of the tasks, {mean!r}")
        return self

    @model_validator(mode="after")
    def _samples_fit_in_memory(self) -> Self:
        if sum(task.samples for task in self.tasks.values()) > MAX_SAMPLES:
            raise ValueError(f"tasks: hold more than {MAX_SAMPLES} samples together")
        return self

    def digest(self) -> str:
        """The SHA-256 of the record's JSON, all but the field ``record_sha256``."""
        return hashlib.sha256(self.model_copy(update={"record_sha256": None}).to_json().encode()).hexdigest()

    def sealed(self, samples_sha256: str) -> Record:
        """The record with the hash of its samples' file and its own."""
        record = self.model_copy(update={"samples_sha256": samples_sha256})
        return record.model_copy(update={"record_sha256": record.digest()})


def mean_ranked(scores: Iterable[float | None]) -> float | None:
    """The mean of the ranked scores that there are, None without any."""
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else None


def agree(one: float | None, other: float | None) -> bool:
    """Whether two scores are the same but for rounding, or both missing."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= 1e-9


class AskedCell(BaseModel):
    """A cell that a run was asked for. Further fields are allowed and kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    key: Key
    kind: Literal["method", "control"] = "method"
    merge: Name | None
    method: Name
    target: Name | None
    bits: Bits | None


_CELLS = TypeAdapter(list[AskedCell])


class Manifest(_Versioned):
    """What a folder of results was asked for, in which environment, from which revisions.

    ``asked`` holds the command's options; its optional entry ``cells`` lists every cell that was asked for.
    ``rehearsal``: made-up data or checkpoints stood in for the suite's, so that no number is a result.
    ``suite_sha256`` is the hash of what the suite reads, None in manifests that do not tell.
    """

    suite: Name
    suite_version: Positive
    rehearsal: bool = False
    asked: dict[str, JsonValue] = {}
    environment: dict[str, JsonValue] = {}
    revisions: dict[str, JsonValue] = {}
    calibration: dict[Name, Text] = {}
    created: Text

    @field_validator("asked")
    @classmethod
    def _cells_are_valid(cls, asked: dict[str, JsonValue]) -> dict[str, JsonValue]:
        _CELLS.validate_python(asked.get("cells", []))
        return asked

    @property
    def cells(self) -> list[AskedCell]:
        """The cells that were asked for; empty where the manifest does not list them."""
        return _CELLS.validate_python(self.asked.get("cells", []))


def complaint(error: ValidationError) -> str:
    """The first complaint on one line, as ``field: what is wrong``, with the value if it is short."""
    first = error.errors(include_url=False)[0]
    where = ".".join(_quotable(str(part)) for part in first["loc"])
    message = _quotable(" ".join(first["msg"].removeprefix("Value error, ").split()), 300)
    value = repr(first["input"])
    if first["type"] not in {"missing", "value_error", "json_invalid"} and len(value) <= 40:
        message += f", not {value}"
    return f"{where}: {message}" if where else message


def _quotable(text: str, length: int = 80) -> str:
    """Text from a file without what a terminal could obey, and not too long to read."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown if len(shown) <= length else shown[:length] + "..."
