"""Suites as data: ``benchmarks/suites/NAME.json``, or a path to a file of the same form.

A task that several suites share is in ``benchmarks/suites/tasks/NAME.json``; ``{"use": NAME, "expert": ID}``
in a suite is that task with the suite's own expert.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from benchmarks.suites import prompt as prompts
from benchmarks.suites.forms import FOLDER, FORMS, LOCAL, PACKAGE, ClipSuite, Suite, TextSuite
from benchmarks.suites.strict import complaints, first_complaint
from epmq.calibration import Calibration
from epmq.errors import UserError, nearest
from epmq.layer.spec import QuantSpec
from epmq.refinement.budget import Budget
from results.store.files import read_followed

MAX_BYTES = 1 << 24  # of a suite file


def names() -> list[str]:
    """The bundled suites."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load(name: str) -> Suite:
    """A bundled suite by name, or a suite file by path; raises UserError for neither or a bad file.

    A suite file that is no bundled suite gets the namespace ``local/``, unless it has one; a rehearsal keeps
    the name of what it rehearses.
    """
    if name.endswith(".json"):
        return _namespaced(_read(Path(name)))
    if name not in names():
        raise UserError(f"suite {name!r} is unknown{nearest(name, names())}")
    return _read(FOLDER / f"{name}.json")


def _namespaced(suite: Suite) -> Suite:
    if suite.rehearsal or "/" in suite.name:
        return suite
    if suite.name in names() and identity(suite) == identity(_read(FOLDER / f"{suite.name}.json")):
        return suite
    return suite.model_copy(update={"name": f"{LOCAL}/{suite.name}"})


def _read(file: Path) -> Suite:
    try:
        return _parsed(file)
    except ValidationError as error:
        raise UserError(f"{file}: {first_complaint(error)}; correct the suite file") from error


def faults(name: str) -> list[str]:
    """Everything that the form of a suite refuses, as :func:`load` would name the first of it.

    Raises:
        UserError: the suite is unknown, or its file cannot be read or is not JSON.
    """
    if not name.endswith(".json"):
        load(name)
        return []
    try:
        _parsed(Path(name))
    except ValidationError as error:
        return complaints(error)
    return []


def _parsed(file: Path) -> Suite:
    try:
        content = from_json(read_followed(file, MAX_BYTES), allow_inf_nan=False)
    except OSError as error:
        raise UserError(f"{file}: cannot read the suite file: {error.strerror}; check the path") from error
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); correct the suite file") from error
    kind = content.get("kind") if isinstance(content, dict) else None
    return FORMS.get(str(kind), ClipSuite).model_validate_json(json.dumps(content))


def load_clip(name: str) -> ClipSuite:
    """A suite of images, as :func:`load`; raises UserError for another kind."""
    suite = load(name)
    if not isinstance(suite, ClipSuite):
        raise UserError(f"suite {name!r} is of kind {suite.kind}, not clip; give a suite of images")
    return suite


def locate(path: str) -> Path:
    """A path of a suite, where ``package:`` stands for this package's folder."""
    bundled = path.removeprefix("package:")
    return PACKAGE / bundled if bundled != path else Path(path)


def on_hub(path: str) -> bool:
    """Whether a path of a suite is a hub id, ``owner/name``, and no folder on this machine."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) is not None and not Path(path).is_dir()


CALIBRATION_AXES = {f.name: f.default for f in fields(Calibration) if f.name != "target"}
REFINEMENT_AXES = {f.name: f.default for f in fields(Budget)}
SPEC_AXES = {f.name: f.default for f in fields(QuantSpec) if f.name != "bits"}


def options(suite: Suite, comparison: str) -> dict[str, Any]:
    """The options of a named comparison, as a request takes them.

    Raises:
        UserError: the comparison is unknown, or sets what is no axis.
    """
    if comparison not in suite.comparisons:
        known = suite.comparisons
        raise UserError(f"comparison {comparison!r} is unknown in {suite.name}{nearest(comparison, known)}")
    found = suite.comparisons[comparison].model_dump()
    axes = found.pop("axes")
    defaults: dict[str, Any] = {**CALIBRATION_AXES, **REFINEMENT_AXES, **SPEC_AXES}
    if unknown := [name for name in axes if name not in defaults]:
        raise UserError(f"{suite.name}: comparison {comparison!r} sets {unknown[0]!r}, which is no axis")
    if wrong := [name for name, value in axes.items() if not _is_like(value, defaults[name])]:
        raise UserError(
            f"{suite.name}: comparison {comparison!r} sets {wrong[0]!r} to {str(axes[wrong[0]])[:60]!r}, "
            f"expected a value like {defaults[wrong[0]]!r}; correct the suite file"
        )
    parts = {"calibration": CALIBRATION_AXES, "refinement": REFINEMENT_AXES, "spec": SPEC_AXES}
    split = {part: {n: v for n, v in axes.items() if n in names} for part, names in parts.items()}
    return {**found, **split, "chosen": suite.chosen}


def _is_like(value: Any, default: Any) -> bool:
    """Whether a value is of an axis's type, that of its default; without one it is a whole number or none."""
    if default is None:
        return value is None or type(value) is int
    return type(value) in ((int, float) if isinstance(default, float) else (type(default),))


def identity(suite: Suite, revisions: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of what a suite reads: tasks, data, models, prompts; names and the order of tasks do not count.

    A repository of the hub counts by its id, what is bundled by its path and pinned hash, a folder by its
    content as ``revisions`` of a run tell it (without them by its path): so a folder that is called like a
    repository is another thing.
    """
    told = revisions or {}
    tasks = sorted(suite.tasks, key=lambda task: task.task)
    described = {
        "kind": suite.kind,
        "library": suite.library,
        "fingerprint": fingerprint(suite.model_copy(update={"tasks": tasks})),
        "base": _place(suite.base, told.get("base")),
        "checkpoints": sorted(suite.checkpoints.values()),
        "tasks": [
            [
                task.task,
                _place(task.expert, _entry(told, "experts", task.task)),
                _place(task.dataset.path, _entry(told, "datasets", task.task)),
            ]
            for task in tasks
        ],
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _entry(revisions: Mapping[str, Any], kind: str, task: str) -> Any:
    found = revisions.get(kind)
    return found.get(task) if isinstance(found, dict) else None


def _place(path: str, content: Any) -> list[Any]:
    if path.startswith("package:"):
        return ["package", path]
    return ["hub", path] if on_hub(path) else ["folder", content or path]


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
