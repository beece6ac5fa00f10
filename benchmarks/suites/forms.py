"""The forms of suite files: suites, their tasks, where samples come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from benchmarks.suites import splits
from benchmarks.suites.strict import Count, Line, Names, OwnedName, PlainName, Strict
from benchmarks.suites.towers import TextTowerSpec, TowerSpec
from epmq.errors import nearest

PACKAGE = Path(__file__).parents[1]
FOLDER = PACKAGE / "suites"
TASKS = FOLDER / "tasks"
LOCAL = "local"  # the namespace of suite files that give none


class DatasetSpec(Strict):
    """Where a task's samples come from; ``package:`` paths are bundled, others are folders or hub ids.

    ``train_size`` and ``eval_size`` are ``None`` where they are not known before the data set is pinned.
    """

    path: Line
    config: Line | None
    revision: Line | None
    train_split: Line
    eval_split: Line
    label_column: Line
    train_size: Count | None
    eval_size: Count | None
    licence: str

    @model_validator(mode="after")
    def _splits_differ(self) -> DatasetSpec:
        if splits.share(self.train_split, self.eval_split):
            raise ValueError(
                f"train_split {self.train_split!r} and eval_split {self.eval_split!r} share samples, or "
                "their slices cannot be compared; calibrate on others than are evaluated, in one unit"
            )
        return self

    @property
    def inputs(self) -> list[str]:
        """Columns that a model's inputs are made from."""
        raise NotImplementedError


class ImageData(DatasetSpec):
    """Samples that are images."""

    image_column: str

    @property
    def inputs(self) -> list[str]:
        return [self.image_column]


class TextData(DatasetSpec):
    """Samples whose prompt is made from one or several columns of text."""

    columns: Names

    @property
    def inputs(self) -> list[str]:
        return list(self.columns)


class Source(Strict):
    """The public files that a task's facts were read from."""

    repository: str
    commit: str
    paths: Names


class TaskSpec(Strict):
    """One task: data and expert checkpoint. ``notes`` say what is odd about the data and stays so."""

    task: PlainName
    dataset: DatasetSpec
    expert: Line
    notes: Sequence[str] = ()
    source: Source | None = None


class ImageTask(TaskSpec):
    """A task of zero-shot classification: class names in label order, prompt templates with ``{c}``."""

    dataset: ImageData
    class_names: Names
    templates: Names

    @model_validator(mode="before")
    @classmethod
    def _from_shared(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "use" not in given:
            return given
        own = {name: value for name, value in given.items() if name != "use"}
        return {**_shared_task(given["use"]), **own}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With ``use``, which stands for every field but the expert."""
        reference = handler(core)
        found = handler.resolve_ref_schema(reference)
        found["properties"]["use"] = {"enum": _shared_names()}
        found["anyOf"] = [{"required": found.pop("required")}, {"required": ["use", "expert"]}]
        return reference

    @field_validator("class_names")
    @classmethod
    def _classes_differ(cls, names: list[str]) -> list[str]:
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"class {twice[0]!r} is there twice; no sample can be told to be of one of them")
        return names

    @field_validator("templates")
    @classmethod
    def _templates_take_a_class(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if "{c}" not in template:
                raise ValueError(f"template {template!r} lacks {{c}}, the place of the class name")
        return templates


class TextTask(TaskSpec):
    """A task of generation. ``prompt`` is an lm-eval task: ``SET/NAME.yaml`` in ``prompts``, or a path."""

    dataset: TextData
    prompt: Line


def _shared_task(name: Any) -> dict[str, Any]:
    """The content of ``benchmarks/suites/tasks/NAME.json``."""
    if name not in _shared_names():
        raise ValueError(f"task {name!r} to use is unknown{nearest(str(name), _shared_names())}")
    content: dict[str, Any] = json.loads((TASKS / f"{name}.json").read_bytes())
    return content


def _shared_names() -> list[str]:
    return sorted(file.stem for file in TASKS.glob("*.json"))


class Comparison(Strict):
    """A named set of options for ``epmq run``: what is compared when the command names nothing.

    ``axes`` are of calibration and grid, for every cell that takes them.
    """

    merge: list[str]
    method: list[str]
    target: list[Literal["merged", "expert"]]
    bits: list[int]
    samples: Annotated[list[Count], Field(min_length=1)]
    controls: list[str]
    axes: dict[str, str | float | int | bool | None] = Field(default={})

    @field_validator("samples", mode="before", json_schema_input_type=Count | list[Count])
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, int) else given


class Suite(Strict):
    """A suite and its version; a change that can move a number takes a new version.

    Attributes:
        rehearsal: its models and data are made-up stand-ins; its numbers are never results.
        tower: the base's size; ``None`` leaves a plan's estimates out.
        chosen: defaults of calibration axes that were chosen for this suite without labels, by reading.
    """

    name: OwnedName
    version: Count
    kind: Literal["clip", "text"]
    description: str
    library: str
    rehearsal: bool = False
    base: Line
    tower: TowerSpec | TextTowerSpec | None = None
    metric: str
    comparisons: dict[PlainName, Comparison]
    chosen: dict[Literal["weights", "features"], dict[str, str | float | int]] = Field(default={})
    checkpoints: dict[str, str]  # SHA-256 of checkpoint files, by path (of bundled ones: below the package)
    tasks: Sequence[TaskSpec]

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: Sequence[TaskSpec]) -> Sequence[TaskSpec]:
        names = [task.task for task in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"task {twice[0]!r} is there twice")
        asked: dict[str, str] = {}
        for task in tasks:
            same = task.model_dump_json(exclude={"task": True, "expert": True, "notes": True, "source": True})
            if (other := asked.setdefault(same, task.task)) != task.task:
                raise ValueError(f"tasks {other!r} and {task.task!r} ask the same of the same data; drop one")
        return tasks

    @property
    def shared_samples(self) -> list[str]:
        """Which tasks are evaluated on the same samples, in words."""
        seen: dict[tuple[str | None, ...], str] = {}
        found = []
        for task in self.tasks:
            data = task.dataset
            place = (data.path, data.config, data.revision, data.eval_split)
            if (other := seen.setdefault(place, task.task)) != task.task:
                found.append(f"tasks {other} and {task.task} are evaluated on the same samples")
        return found


class ClipSuite(Suite):
    """Image classification by CLIP models.

    Attributes:
        image_processor: of a ``transformers`` suite, which of the two CLIP image processors (they resize
            differently): ``slow`` works on Pillow images, ``fast`` on tensors.
    """

    kind: Literal["clip"]
    library: Literal["open_clip", "transformers"]
    image_processor: Literal["slow", "fast"] | None = None
    tower: TowerSpec | None = None
    tasks: Annotated[list[ImageTask], Field(min_length=1)]

    @model_validator(mode="after")
    def _processor_is_chosen(self) -> ClipSuite:
        if (self.library == "transformers") != (self.image_processor is not None):
            raise ValueError(
                "image_processor: a transformers suite needs slow or fast, an open_clip one has none"
            )
        return self


class TextSuite(Suite):
    """Text tasks by language models of transformers, evaluated through lm-eval.

    Attributes:
        architecture: ``encoder-decoder`` (T5) or ``causal`` (Llama and its like).
        max_length: tokens of a prompt; what is longer is cut.
    """

    kind: Literal["text"]
    library: Literal["transformers"]
    architecture: Literal["encoder-decoder", "causal"]
    max_length: Count
    tower: TextTowerSpec | None = None
    tasks: Annotated[list[TextTask], Field(min_length=1)]


FORMS: dict[str, type[Suite]] = {"clip": ClipSuite, "text": TextSuite}
