"""Where a run's models and data come from: bundled files, folders, or the hub at the commits of a lock."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features
from tqdm.auto import tqdm

from benchmarks.sources import hub, resolve
from benchmarks.sources.data import located
from benchmarks.sources.lock import FileLock, Lock
from benchmarks.suites.forms import PACKAGE, Suite, TaskSpec, TextTask
from benchmarks.suites.load import locate, on_hub
from epmq.errors import UserError


@dataclass(frozen=True)
class Fetched:
    """Files that are here and are the pinned ones.

    Attributes:
        revision: the commit SHA, or ``local:`` and one SHA-256 over the files' hashes.
        files: those asked for, by path in the folder.
    """

    folder: Path
    revision: str
    files: dict[str, FileLock]


class Sources:
    """A suite's models and data sets; what the lock pins is compared with it.

    Without a lock, repositories of the hub are taken at their newest commit.
    """

    def __init__(self, suite: Suite, lock: Lock | None) -> None:
        self._suite, self._lock = suite, lock
        self._data: dict[str, resolve.DataFiles] = {}
        self._folders: dict[str, Path] = {}

    def model(self, where: str, patterns: Sequence[str]) -> Fetched:
        """The files of a model that match: of a folder, or downloaded where the hub's cache lacks them.

        Raises:
            UserError: there is no such model, it cannot be downloaded, or a file is not the pinned one.
        """
        if not on_hub(where):
            return self._local(locate(where), patterns)
        if self._lock is None:
            repo = resolve.model(where, patterns)
        elif where in self._lock.models:
            repo = self._lock.models[where]
        else:
            raise UserError(f"model {where} is not in the lock; run 'epmq pin {self._suite.name}' again")
        files = {name: repo.files[name] for name in resolve.chosen(repo.files, patterns)}
        if not files:
            raise UserError(
                f"model {where} holds none of {', '.join(patterns)} at commit {repo.revision[:12]}"
            )
        return Fetched(hub.fetch(repo.model_copy(update={"files": files}), "model"), repo.revision, files)

    def _local(self, folder: Path, patterns: Sequence[str]) -> Fetched:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of a model; correct the suite")
        names = resolve.chosen((file.name for file in folder.iterdir() if file.is_file()), patterns)
        files = {}
        for name in tqdm(names, desc=f"hashing {folder.name}", leave=False, delay=2):
            files[name] = FileLock.of(folder / name)
            self._compare(folder / name, files[name].sha256)
        return Fetched(folder, f"local:{digest({name: file.sha256 for name, file in files.items()})}", files)

    def _compare(self, file: Path, found: str) -> None:
        """Refuse a file that is not the one whose SHA-256 the suite gives."""
        name = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else str(file)
        expected = self._suite.checkpoints.get(name, found)
        if found != expected:
            raise UserError(
                f"{file}: SHA-256 is {found[:12]}..., the suite pins {expected[:12]}...; get the file again"
            )

    def dataset_revision(self, task: TaskSpec) -> str | None:
        """The commit of a task's data set; ``None`` for a folder."""
        return self._files(task).repo.revision if on_hub(task.dataset.path) else None

    def arguments(self, task: TaskSpec, split: str) -> dict[str, Any]:
        """Arguments of ``datasets.load_dataset`` for a split.

        Those of a hub's data set name its checked files in the hub's cache, of the used splits alone:
        ``datasets`` would download every split, and does not compare hashes.

        Raises:
            UserError: the files cannot be downloaded or are not the pinned ones.
        """
        spec = task.dataset
        if not on_hub(spec.path):
            return {"path": str(locate(spec.path)), "name": spec.config, "split": split}
        found = self._files(task)
        if task.task not in self._folders:
            self._folders[task.task] = hub.fetch(found.repo, "dataset")
        folder = self._folders[task.task]
        return {
            "path": found.format,
            "data_files": {name: [str(folder / f) for f in files] for name, files in found.splits.items()},
            "features": Features.from_dict(found.features) if found.features else None,
            "split": split,
        }

    def _files(self, task: TaskSpec) -> resolve.DataFiles:
        if task.task not in self._data:
            self._data[task.task] = (
                resolve.data(task.dataset)
                if self._lock is None
                else resolve.DataFiles.of(self._lock.datasets[task.task])
            )
        return self._data[task.task]

    def verify(self, task: TaskSpec, split: str, rows: Dataset) -> None:
        """Compare a loaded split with the lock, if it is in one.

        Raises:
            UserError: naming the number of samples, or the labels whose numbers differ.
        """
        if self._lock is None or task.task not in self._lock.datasets:
            return
        locked = self._lock.datasets[task.task].splits[split]
        found = label_counts(rows, task.dataset.label_column, scores=isinstance(task, TextTask))
        where = located(task, split)
        remedy = "delete it from the cache of 'datasets' and run again"
        if len(rows) != locked.samples:
            raise UserError(f"{where} has {len(rows)} samples, the lock says {locked.samples}; {remedy}")
        if differ := [
            f"{k}: {found.get(k, 0)}, not {locked.labels.get(k, 0)}" for k in _differing(found, locked.labels)
        ]:
            raise UserError(
                f"{where}: samples per label differ from the lock ({'; '.join(differ[:3])}); {remedy}"
            )


def _differing(one: Mapping[int, int], other: Mapping[int, int]) -> list[int]:
    return sorted(label for label in {*one, *other} if one.get(label) != other.get(label))


def label_counts(rows: Dataset, column: str, *, scores: bool = False) -> dict[int, int]:
    """How many samples have each label; inputs are not read.

    Booleans count as 0 and 1, ``scores`` (real numbers, as similarities are) under the nearest integer.

    Raises:
        UserError: a label is no integer, or a score no finite number.
    """
    labels = np.asarray(rows.select_columns([column]).with_format("arrow")[:][column])
    if labels.dtype.kind not in ("iubf" if scores else "iub"):
        raise UserError(f"column {column!r} holds labels that are no integers; correct the suite")
    if not np.isfinite(labels).all():
        raise UserError(f"column {column!r} holds scores that are no numbers; correct the suite")
    return dict(sorted(Counter(np.rint(labels).astype(np.int64).tolist()).items()))


def digest(hashes: Mapping[str, str]) -> str:
    """One SHA-256 over the hashes of named files."""
    return hashlib.sha256(" ".join(f"{n}:{hashes[n]}" for n in sorted(hashes)).encode()).hexdigest()
