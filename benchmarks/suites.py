"""Suites as data: ``benchmarks/suites/NAME.json``, or a path to a file of the same form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from epmq.errors import UserError, nearest

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "suites"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Strict):
    """Where a task's samples come from; ``package:`` paths are bundled, others are hub ids."""

    path: str
    config: str | None
    revision: str | None
    train_split: str
    eval_split: str
    image_column: str
    label_column: str
    train_size: int
    eval_size: int
    licence: str


class TaskSpec(_Strict):
    """One task: data, expert checkpoint, class names in label order and prompt templates with ``{c}``."""

    task: str
    dataset: DatasetSpec
    expert: str
    class_names: list[str]
    templates: list[str]

    @field_validator("templates")
    @classmethod
    def _templates_take_a_class(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if "{c}" not in template:
                raise ValueError(f"template {template!r} lacks {{c}}, the place of the class name")
        return templates


class Comparison(_Strict):
    """A named set of options for ``epmq run``: what is compared when the command names nothing."""

    merge: list[str]
    method: list[str]
    target: list[Literal["merged", "expert"]]
    bits: list[int]
    samples: int
    controls: list[str]


class Suite(_Strict):
    """A suite and its version; a change that can move a number takes a new version."""

    name: str
    version: int = Field(ge=1)
    kind: Literal["clip"]
    description: str
    library: Literal["open_clip"]
    base: str
    metric: str
    comparisons: dict[str, Comparison]
    checkpoints: dict[str, str]  # SHA-256 of every bundled checkpoint file, by its path below the package
    tasks: list[TaskSpec]


def names() -> list[str]:
    """The bundled suites."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> Suite:
    """A bundled suite by name, or a suite file by path; raises UserError for neither or a bad file."""
    file = FOLDER / f"{name}.json"
    if name.endswith(".json"):
        file = Path(name)
    if name not in names() and not file.is_file():
        raise UserError(f"suite {name!r} is unknown{nearest(name, names())}")
    try:
        return Suite.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{file}: field {where}: {first['msg']}; correct the suite file") from error


def locate(path: str) -> Path:
    """A local path for a suite's ``package:`` path."""
    return PACKAGE / path.removeprefix("package:")


def options(suite: Suite, comparison: str) -> dict[str, Any]:
    """The options of a named comparison; raises UserError for an unknown name."""
    if comparison not in suite.comparisons:
        known = suite.comparisons
        raise UserError(f"comparison {comparison!r} is unknown in {suite.name}{nearest(comparison, known)}")
    return suite.comparisons[comparison].model_dump()
