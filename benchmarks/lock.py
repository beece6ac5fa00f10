"""A suite's lock: every model and data set by commit and file hash, with counts of samples and labels."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileLock(_Strict):
    """A file's SHA-256 and its size in bytes."""

    sha256: Sha256
    size: Count


class RepoLock(_Strict):
    """A repository at a commit, and those of its files that a run reads, by path."""

    id: str
    revision: str
    files: dict[str, FileLock]


class SplitLock(_Strict):
    """A split's number of samples and how many have each label."""

    samples: Count
    labels: dict[int, Count]


class DatasetLock(RepoLock):
    """A data set at a commit: the splits that a suite uses, by name."""

    config: str | None
    splits: dict[str, SplitLock]


class Lock(_Strict):
    """What ``epmq pin`` writes: models by the id or path that the suite gives, data sets by task."""

    suite: str
    suite_version: int
    fingerprint: Sha256
    created: str
    models: dict[str, RepoLock]
    datasets: dict[str, DatasetLock]
