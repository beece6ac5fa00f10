"""What is missing or wrong in a suite, all of it, before anything is downloaded or computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from datasets import ClassLabel, Dataset
from tqdm.auto import tqdm

from baselines.recipes import resolve
from benchmarks.run.cells import Request, expand
from benchmarks.sources import data, lock
from benchmarks.sources import resolve as repositories
from benchmarks.sources.fetch import Sources
from benchmarks.sources.weights import configured, readable, refuse_code
from benchmarks.suites import load as suites
from benchmarks.suites import prompt
from benchmarks.suites.forms import ImageTask, Suite, TaskSpec, TextTask
from benchmarks.suites.load import locate, on_hub
from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.errors import UserError


def findings(name: str, lock_file: Path | None = None) -> list[str]:
    """What is wrong with a suite, a line each: its form, comparisons, models, data and lock.

    Folders on this machine are looked into; of the hub only what the lock pins is. A form that cannot be read
    ends the check.

    Args:
        name: a bundled suite, or the path of a suite file.
        lock_file: the lock to look at; by default the suite's own.

    Raises:
        UserError: the suite is unknown, or its file cannot be read or is not JSON.
    """
    if found := suites.faults(name):
        return found
    suite = suites.load(name)
    checks = [_comparison(suite, each) for each in suite.comparisons]
    checks += [_base(suite), *(_expert(suite, task) for task in suite.tasks)]
    checks += [each for task in suite.tasks for each in _data(suite, task)]
    checks.append(lambda: _lock(suite, lock_file))
    lines: dict[str, None] = {}  # a data set that is not there is one finding, not one a split
    for check in tqdm(checks, desc=f"checking {suite.name}", leave=False, delay=2):
        try:
            check()
        except UserError as error:
            lines[str(error)] = None
    return list(lines)


Check = Callable[[], object]


def _comparison(suite: Suite, name: str) -> Check:
    def check() -> None:
        try:
            options = suites.options(suite, name)
            for method in options["method"]:  # each alone, for a list stops at the first that is unknown
                resolve([method], options["target"])
            expand(Request(**options))
        except UserError as error:
            raise UserError(f"comparison {name!r}: {error}") from error

    return check


def _base(suite: Suite) -> Check:
    def check() -> None:
        folder = _model(suite, suite.base, "base")
        if folder is None:
            return
        if suite.library == "open_clip":
            refuse_code(folder)
            if not (file := folder / "open_clip_config.json").is_file():
                raise UserError(f"{file}: is missing; open_clip reads a base by it")
        else:
            configured(folder)

    return check


def _expert(suite: Suite, task: TaskSpec) -> Check:
    return lambda: _model(suite, task.expert, f"expert of {task.task!r}")


def _model(suite: Suite, where: str, what: str) -> Path | None:
    """The folder of a model on this machine, with readable weights of the pinned hashes; None on the hub."""
    if on_hub(where):
        return None
    if not locate(where).is_dir():
        raise UserError(f"{what}: {where!r} is neither a folder nor a hub id such as owner/name")
    found = Sources(suite, None).model(where, repositories.model_files(suite, where))
    if repositories.ADAPTER not in found.files:
        LazyCheckpoint(readable(found.folder, found.files))
    return found.folder


def _data(suite: Suite, task: TaskSpec) -> Iterator[Check]:
    if isinstance(task, TextTask):
        yield lambda: prompt.read(task.prompt)
    spec = task.dataset
    if on_hub(spec.path):
        return
    for split in (spec.train_split, spec.eval_split):
        yield partial(_split, suite, task, split)


def _split(suite: Suite, task: TaskSpec, split: str) -> None:
    path = task.dataset.path
    if not locate(path).is_dir():
        raise UserError(
            f"data set of {task.task!r}: {path!r} is neither a folder nor a hub id such as owner/name"
        )
    arguments = Sources(suite, None).arguments(task, split)
    if isinstance(task, ImageTask):
        rows, classes = data.open_images(task, split, arguments), task.class_names
    else:
        assert isinstance(task, TextTask)
        read = prompt.read(task.prompt)
        rows, classes = data.open_texts(task, read, split, arguments), read.choices or []
    _classes(rows, task, split, len(classes))


def _classes(rows: Dataset, task: TaskSpec, split: str, given: int) -> None:
    feature = rows.features[task.dataset.label_column]
    if given and isinstance(feature, ClassLabel) and feature.num_classes != given:
        raise UserError(
            f"{data.located(task, split)} has {feature.num_classes} classes, the suite names {given}; "
            "correct the class names"
        )


def _lock(suite: Suite, given: Path | None) -> None:
    """Whether what comes from the hub is pinned, by a lock of this suite."""
    named = [*lock.models_of(suite), *(t.dataset.path for t in suite.tasks if on_hub(t.dataset.path))]
    if not named:
        return
    path = given or lock.default_path(suite)
    if not path.exists():
        others = f" and {len(named) - 1} more" if len(named) > 1 else ""
        raise UserError(
            f"{named[0]}{others} are taken for hub ids, for no such folder is here, and no lock pins them; "
            f"run 'epmq pin {suite.name}', or give the folders"
        )
    lock.refuse_other(lock.read(path), suite, path)
