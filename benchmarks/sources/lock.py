"""A suite's lock: every model and data set by commit and file hash, with counts of samples and labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from benchmarks.sources import cache
from benchmarks.suites.forms import PACKAGE, Suite
from benchmarks.suites.load import fingerprint, names, on_hub
from benchmarks.suites.strict import Strict, first_complaint
from epmq.errors import UserError
from results.store.files import read_followed

FOLDER = PACKAGE / "sources" / "locks"
MAX_BYTES = 1 << 26  # of a lock
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
# Builders of ``datasets`` that read data alone; that of pandas would unpickle, and so run, what it reads.
FORMATS = ("parquet", "arrow", "json", "csv", "text", "imagefolder", "webdataset")


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"{name[:60]!r} is none of {', '.join(FORMATS)}")
    return name


def _inside(path: str) -> str:
    if not path or path.startswith("/") or ".." in path.split("/") or not path.isprintable():
        raise ValueError(f"{path[:60]!r} is no path inside a repository")
    return path


InRepository = Annotated[str, AfterValidator(_inside)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Format = Annotated[str, AfterValidator(_known_format)]


class FileLock(Strict):
    """A file's SHA-256 and its size in bytes."""

    sha256: Sha256
    size: Count

    @classmethod
    def of(cls, path: Path) -> FileLock:
        """Those of a file that is here."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(sha256=found, size=path.stat().st_size)


class RepoLock(Strict):
    """A repository at a commit, and those of its files that a run reads, by path."""

    id: str
    revision: Commit
    files: dict[InRepository, FileLock]


class SplitLock(Strict):
    """A split's files, its number of samples, how many have each label (a real one: its nearest integer)."""

    files: list[InRepository]
    samples: Count
    labels: dict[int, Count]


class DatasetLock(RepoLock):
    """A data set at a commit: the splits that a suite uses, by name.

    Attributes:
        format: the builder of ``datasets`` that reads the files, such as ``parquet`` or ``webdataset``.
        features: the columns as the data set's card declares them; ``None`` leaves them to the files.
    """

    config: str | None
    format: Format
    features: dict[str, Any] | None
    splits: dict[str, SplitLock]


class Lock(Strict):
    """What ``epmq pin`` writes: models by the id that the suite gives, data sets by task."""

    suite: str
    suite_version: int
    fingerprint: Sha256
    created: str
    models: dict[str, RepoLock]
    datasets: dict[str, DatasetLock]


def default_path(suite: Suite) -> Path:
    """Where a suite's lock is: of a bundled suite with the code, of others in the cache.

    A rehearsal's (repositories made up) is there by name, that of a suite of anybody's by what it says.
    """
    if suite.rehearsal:
        return cache.folder("locks") / f"{suite.name.rpartition('/')[2]}.json"
    return FOLDER / f"{suite.name}.json" if suite.name in names() else lock_path(suite)


def models_of(suite: Suite) -> list[str]:
    """The hub ids of a suite's models, base first."""
    return list(dict.fromkeys(x for x in (suite.base, *(t.expert for t in suite.tasks)) if on_hub(x)))


def read(path: Path) -> Lock:
    """A lock file; raises UserError for one that cannot be read or is not of this form."""
    try:
        return Lock.model_validate_json(read_followed(path, MAX_BYTES))
    except OSError as error:
        raise UserError(f"{path}: cannot read the lock: {error.strerror}; check --lock") from error
    except ValidationError as error:
        remedy = "restore the lock or run 'epmq pin' again"
        raise UserError(f"{path}: {first_complaint(error)}; {remedy}") from error


def refuse_other(lock: Lock, suite: Suite, path: Path) -> None:
    """Refuse a lock that is not of this version of this suite.

    Raises:
        UserError: naming what differs.
    """
    mine = {"suite": suite.name, "suite_version": suite.version, "fingerprint": fingerprint(suite)}
    for field, wanted in mine.items():
        if (found := getattr(lock, field)) != wanted:
            raise UserError(
                f"{path}: {field} is {str(found)[:12]!r}, the suite's is {str(wanted)[:12]!r}; give the lock "
                f"of this suite or run 'epmq pin {suite.name}' again"
            )
    data = {t.task: (t.dataset.path, t.dataset.config) for t in suite.tasks if on_hub(t.dataset.path)}
    locked = {task: (entry.id, entry.config) for task, entry in lock.datasets.items()}
    if set(lock.models) != set(models_of(suite)) or locked != data:
        differ = sorted(set(lock.models) ^ set(models_of(suite))) or [
            t for t in data if locked.get(t) != data[t]
        ]
        raise UserError(
            f"{path}: the lock and the suite name other repositories ({', '.join(differ) or 'data sets'}); "
            f"run 'epmq pin {suite.name}' again"
        )

    for task in suite.tasks:
        entry = lock.datasets.get(task.task)
        wanted = {task.dataset.train_split, task.dataset.eval_split}
        if entry is not None and (absent := sorted(wanted - entry.splits.keys())):
            raise UserError(
                f"{path}: the splits of {task.task} lack {absent[0]!r}; run 'epmq pin {suite.name}' again"
            )


def lock_path(suite: Suite) -> Path:
    """Where the lock of a suite that is not bundled is: in the cache, by what the suite says."""
    digest = hashlib.sha256(suite.model_dump_json().encode()).hexdigest()
    return cache.folder("locks") / f"{suite.name.rpartition('/')[2]}-{digest[:16]}.json"
