"""Pinning: resolves what a suite names on the hub to commits, hashes and counts, in its lock file."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import datasets
from datasets import load_dataset
from pydantic import ValidationError
from tqdm.auto import tqdm

from benchmarks.sources import lock as locks
from benchmarks.sources import resolve
from benchmarks.sources.data import located, refuse_other_columns
from benchmarks.sources.fetch import Sources, label_counts
from benchmarks.sources.lock import DatasetLock, Lock, RepoLock, SplitLock
from benchmarks.suites import prompt
from benchmarks.suites.forms import ImageTask, Suite, TaskSpec, TextTask
from benchmarks.suites.load import fingerprint, on_hub
from epmq.errors import UserError
from results.store.files import write_atomically


def lock_for_run(suite: Suite, path: Path | None, *, unpinned: bool) -> Lock | None:
    """The lock of a run: the one at ``path`` (by default the suite's own), made now if there is none.

    ``None`` if the suite needs nothing of the hub, or for an unpinned run.

    Raises:
        UserError: the lock is another suite's, or cannot be made.
    """
    hub_data = any(on_hub(task.dataset.path) for task in suite.tasks)
    if unpinned or not (hub_data or locks.models_of(suite)):
        return None
    path = path or locks.default_path(suite)
    if not path.exists():
        return pin(suite, path)
    lock = locks.read(path)
    locks.refuse_other(lock, suite, path)
    return lock


def pin(suite: Suite, path: Path) -> Lock:
    """Resolve every model and data set of a suite and write its lock.

    Every finished part is kept beside the lock, so that a pin that was interrupted goes on. Data sets are
    downloaded, for their samples are counted; weights are not.

    Raises:
        UserError: the lock cannot be written, or a part cannot be resolved or is not what the suite says.
    """
    _refuse_unwritable(path)
    models, tasks = locks.models_of(suite), [t for t in suite.tasks if on_hub(t.dataset.path)]
    partial = path.with_name(f"{path.name}.partial")
    done = _resumed(partial, suite)
    with tqdm(total=len(models) + len(tasks), desc=f"pinning {suite.name}", unit="part") as bar:
        for name in [*models, *(task.task for task in tasks)]:
            bar.set_postfix_str(name)
            if name in models and name not in done.models:
                found = resolve.model(name, resolve.model_files(suite, name))
                done = done.model_copy(update={"models": {**done.models, name: found}})
            elif name not in models and name not in done.datasets:
                task = next(t for t in tasks if t.task == name)
                done = done.model_copy(
                    update={"datasets": {**done.datasets, name: counted(suite, done, task)}}
                )
            write_atomically(partial, _text(done))
            bar.update()
    write_atomically(path, _text(done))
    partial.unlink()
    return done


def _refuse_unwritable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); give --lock FILE") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(
            f"{path.parent}: cannot be written; give --lock FILE, a place for the lock that can be"
        )


def _resumed(partial: Path, suite: Suite) -> Lock:
    """The parts that an interrupted pin of this suite finished; none if there was no such pin."""
    empty = Lock(
        suite=suite.name,
        suite_version=suite.version,
        fingerprint=fingerprint(suite),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models={},
        datasets={},
    )
    if not partial.exists():
        return empty
    try:
        found = Lock.model_validate_json(partial.read_bytes())
    except ValidationError:
        found = None
    if found is None or found.fingerprint != empty.fingerprint or found.suite_version != suite.version:
        print(f"epmq: {partial}: is of another version of the suite; pinning from the start", file=sys.stderr)
        return empty
    return found


def counted(suite: Suite, lock: Lock, task: TaskSpec) -> DatasetLock:
    """A task's data set with its used splits counted.

    Raises:
        UserError: it lacks a column, or its samples or labels are not what the suite says.
    """
    spec, found = task.dataset, resolve.data(task.dataset)
    entry = DatasetLock(
        **found.repo.model_dump(),
        config=spec.config,
        format=found.format,
        features=found.features,
        splits={name: SplitLock(files=files, samples=0, labels={}) for name, files in found.splits.items()},
    )
    sources = Sources(suite, lock.model_copy(update={"datasets": {task.task: entry}}))
    splits = {name: _count(task, name, split, sources) for name, split in entry.splits.items()}
    return entry.model_copy(update={"splits": splits})


def _count(task: TaskSpec, name: str, split: SplitLock, sources: Sources) -> SplitLock:
    spec, where = task.dataset, located(task, name)
    try:
        rows = load_dataset(**sources.arguments(task, name))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{where} cannot be read: {error.__cause__ or error}; is its format still the same?"
        ) from error
    refuse_other_columns(task, rows.column_names, where)
    expected = {spec.train_split: spec.train_size, spec.eval_split: spec.eval_size}[name] or len(rows)
    if len(rows) != expected:
        raise UserError(f"{where} has {len(rows)} samples, the suite says {expected}; it is another version")
    labels = label_counts(rows, spec.label_column, scores=isinstance(task, TextTask))
    if isinstance(task, TextTask):
        prompt.read(task.prompt).check(rows[spec.label_column][:], where)
    elif isinstance(task, ImageTask) and not 0 <= min(labels) <= max(labels) < len(task.class_names):
        classes = f"the suite has {len(task.class_names)} classes"
        raise UserError(f"{where} has labels {min(labels)} to {max(labels)}, {classes}")
    return split.model_copy(update={"samples": len(rows), "labels": labels})


def moved(old: Lock, new: Lock) -> list[str]:
    """What differs between two locks of a suite, one line per repository."""
    pairs: list[tuple[str, RepoLock | None, RepoLock | None]] = [
        *((name, old.models.get(name), new.models.get(name)) for name in sorted({*old.models, *new.models})),
        *(
            (name, old.datasets.get(name), new.datasets.get(name))
            for name in sorted({*old.datasets, *new.datasets})
        ),
    ]
    return [_change(name, before, after) for name, before, after in pairs if before != after]


def _change(name: str, before: RepoLock | None, after: RepoLock | None) -> str:
    if before is None or after is None:
        return f"{name}: {'new' if before is None else 'gone'}"
    bytes_differ = {file.sha256 for file in before.files.values()} != {
        file.sha256 for file in after.files.values()
    }
    what = "other bytes" if bytes_differ else "the same bytes"
    return f"{name}: {before.id} {before.revision[:12]} -> {after.id} {after.revision[:12]}, {what}"


def _text(lock: Lock) -> bytes:
    return (lock.model_dump_json(indent=1) + "\n").encode()
