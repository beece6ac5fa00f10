"""Suites as data: ``benchmarks/suites/NAME.json``, or a path to a file of the same form.

A task that several suites share is in ``benchmarks/suites/tasks/NAME.json``; ``{"use": NAME, "expert": ID}``
in a suite is that task with the suite's own expert.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from benchmarks.suites import prompt as prompts
from epmq.errors import UserError, nearest

PACKAGE = Path(__file__).parents[1]
FOLDER = PACKAGE / "suites"
TASKS = FOLDER / "tasks"


Names = Annotated[list[str], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSpec(_Strict):
    """Where a task's samples come from; ``package:`` paths are bundled, others are folders or hub ids.

    ``train_size`` and ``eval_size`` are ``None`` where they are not known before the data set is pinned.
    """

    path: str
    config: str | None
    revision: str | None
    train_split: str
    eval_split: str
    label_column: str
    train_size: Count | None
    eval_size: Count | None
    licence: str

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


class Source(_Strict):
    """The public files that a task's facts were read from."""

    repository: str
    commit: str
    paths: Names


class TaskSpec(_Strict):
    """One task: data and expert checkpoint. ``notes`` say what is odd about the data and stays so."""

    task: str
    dataset: DatasetSpec
    expert: str
    notes: list[str] = []
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
    prompt: str


def _shared_task(name: Any) -> dict[str, Any]:
    """The content of ``benchmarks/suites/tasks/NAME.json``."""
    known = sorted(file.stem for file in TASKS.glob("*.json"))
    if name not in known:
        raise ValueError(f"task {name!r} to use is unknown{nearest(str(name), known)}")
    content: dict[str, Any] = json.loads((TASKS / f"{name}.json").read_bytes())
    return content


class Comparison(_Strict):
    """A named set of options for ``epmq run``: what is compared when the command names nothing."""

    merge: list[str]
    method: list[str]
    target: list[Literal["merged", "expert"]]
    bits: list[int]
    samples: int
    controls: list[str]


class TowerSpec(_Strict):
    """The size of a vision transformer, for plans that are made before its checkpoint is here."""

    image_size: Count
    patch_size: Count
    width: Count
    layers: Count
    mlp_width: Count

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def parameters(self) -> int:
        """Numbers that are merged: everything but the projection."""
        d, m = self.width, self.mlp_width
        block = 4 * (d * d + d) + (d * m + m) + (m * d + d) + 4 * d
        return d + 3 * d * self.patch_size**2 + self.tokens * d + 4 * d + self.layers * block

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass: two per multiplication in the matrices."""
        d, n = self.width, self.tokens
        block = 2 * n * (4 * d * d + 2 * d * self.mlp_width) + 4 * n * n * d
        return 2 * (n - 1) * d * 3 * self.patch_size**2 + self.layers * block


class TextTowerSpec(_Strict):
    """The size of a T5, for plans; ``tokens`` is a guess at a prompt's length, targets are short."""

    width: Count
    inner_width: Count  # of attention: heads times their size
    mlp_width: Count
    layers: Count  # encoder and decoder together
    vocabulary: Count
    tokens: Count

    @property
    def parameters(self) -> int:
        """Numbers that are merged: half of the layers are the decoder's, which attend twice."""
        return 2 * self.vocabulary * self.width + self._matrices

    @property
    def _matrices(self) -> int:
        attention, gated = 4 * self.width * self.inner_width, 3 * self.width * self.mlp_width
        return self.layers * gated + (self.layers + self.layers // 2) * attention

    @property
    def flops(self) -> int:
        """Floating-point operations of one prompt: its pass through the encoder's half of the matrices."""
        return 2 * self.tokens * self._matrices // 2


class Suite(_Strict):
    """A suite and its version; a change that can move a number takes a new version.

    Attributes:
        rehearsal: its models and data are made-up stand-ins; its numbers are never results.
        tower: the base's size; ``None`` leaves a plan's estimates out.
    """

    name: str
    version: int = Field(ge=1)
    kind: Literal["clip", "text"]
    description: str
    library: str
    rehearsal: bool = False
    base: str
    tower: TowerSpec | TextTowerSpec | None = None
    metric: str
    comparisons: dict[str, Comparison]
    checkpoints: dict[str, str]  # SHA-256 of checkpoint files, by path (of bundled ones: below the package)
    tasks: Sequence[TaskSpec]

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: Sequence[TaskSpec]) -> Sequence[TaskSpec]:
        names = [task.task for task in tasks]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"task {twice[0]!r} is there twice")
        return tasks


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


def names() -> list[str]:
    """The bundled suites."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> Suite:
    """A bundled suite by name, or a suite file by path; raises UserError for neither or a bad file."""
    file = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    if not name.endswith(".json") and name not in names():
        raise UserError(f"suite {name!r} is unknown{nearest(name, names())}")
    try:
        content = json.loads(file.read_bytes())
        kind = content.get("kind") if isinstance(content, dict) else None
        return FORMS.get(str(kind), ClipSuite).model_validate_json(json.dumps(content))
    except OSError as error:
        raise UserError(f"{file}: cannot read the suite file: {error.strerror}; check the path") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: is not JSON ({error}); correct the suite file") from error
    except ValidationError as error:
        raise UserError(f"{file}: {first_complaint(error)}; correct the suite file") from error


def load_clip(name: str) -> ClipSuite:
    """A suite of images, as :func:`load`; raises UserError for another kind."""
    suite = load(name)
    if not isinstance(suite, ClipSuite):
        raise UserError(f"suite {name!r} is of kind {suite.kind}, not clip; give a suite of images")
    return suite


def first_complaint(error: ValidationError) -> str:
    """The first thing that a form refuses, with its field."""
    first = error.errors()[0]
    where = f"field {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
    return f"{where}{first['msg']}"


def locate(path: str) -> Path:
    """A path of a suite, where ``package:`` stands for this package's folder."""
    bundled = path.removeprefix("package:")
    return PACKAGE / bundled if bundled != path else Path(path)


def on_hub(path: str) -> bool:
    """Whether a path of a suite is a hub id, ``owner/name``, and no folder on this machine."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) is not None and not Path(path).is_dir()


def options(suite: Suite, comparison: str) -> dict[str, Any]:
    """The options of a named comparison; raises UserError for an unknown name."""
    if comparison not in suite.comparisons:
        known = suite.comparisons
        raise UserError(f"comparison {comparison!r} is unknown in {suite.name}{nearest(comparison, known)}")
    return suite.comparisons[comparison].model_dump()


def fingerprint(suite: Suite) -> str:
    """SHA-256 of what numbers depend on besides the files: preprocessing, prompts, class names, splits."""
    irrelevant: Any = {"expert": True, "notes": True, "source": True, "dataset": {"path", "licence"}}
    irrelevant["prompt"] = True  # a path; the task file's content follows
    described = [t.model_dump(exclude=irrelevant) for t in suite.tasks]
    if isinstance(suite, TextSuite):
        described += [prompts.read(task.prompt).config for task in suite.tasks]
        described.append({"architecture": suite.architecture, "max_length": suite.max_length})
    else:
        assert isinstance(suite, ClipSuite)
        described.append({"library": suite.library, "image_processor": suite.image_processor})
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
