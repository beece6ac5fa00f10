"""Suites as data: ``benchmarks/suites/NAME.json``, or a path to a file of the same form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from epmq.errors import UserError, nearest

PACKAGE = Path(__file__).parent
FOLDER = PACKAGE / "suites"


Names = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Strict):
    """Where a task's samples come from; ``package:`` paths are bundled, others are folders or hub ids."""

    path: str
    config: str | None
    revision: str | None
    train_split: str
    eval_split: str
    image_column: str
    label_column: str
    train_size: Count
    eval_size: Count
    licence: str


class TaskSpec(_Strict):
    """One task: data, expert checkpoint, class names in label order and prompt templates with ``{c}``."""

    task: str
    dataset: DatasetSpec
    expert: str
    class_names: Names
    templates: Names

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
    checkpoints: dict[str, str]  # SHA-256 of checkpoint files, by path (of bundled ones: below the package)
    tasks: Annotated[list[TaskSpec], Field(min_length=1)]

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: list[TaskSpec]) -> list[TaskSpec]:
        names = [task.task for task in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"task {twice[0]!r} is there twice")
        return tasks


def names() -> list[str]:
    """The bundled suites."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> Suite:
    """A bundled suite by name, or a suite file by path; raises UserError for neither or a bad file."""
    file = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not name.endswith(".json") and name not in names():
        raise UserError(f"suite {name!r} is unknown{nearest(name, names())}")
    try:
        return Suite.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot read the suite file: {error.strerror}; check the path") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise UserError(f"{file}: {where}{first['msg']}; correct the suite file") from error


def locate(path: str) -> Path:
    """A path of a suite, where ``package:`` stands for this package's folder."""
    bundled = path.removeprefix("package:")
    return PACKAGE / bundled if bundled != path else Path(path)


def options(suite: Suite, comparison: str) -> dict[str, Any]:
    """The options of a named comparison; raises UserError for an unknown name."""
    if comparison not in suite.comparisons:
        known = suite.comparisons
        raise UserError(f"comparison {comparison!r} is unknown in {suite.name}{nearest(comparison, known)}")
    return suite.comparisons[comparison].model_dump()


def fingerprint(suite: Suite) -> str:
    """SHA-256 of what numbers depend on besides the suite's files: prompts, class names, splits, columns."""
    tasks = [t.model_dump(exclude={"expert": True, "dataset": {"path", "licence"}}) for t in suite.tasks]
    return hashlib.sha256(json.dumps(tasks, sort_keys=True).encode()).hexdigest()
