"""Repositories of the hub, through its own client: what they hold at a commit, and checked downloads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import HfApi, errors, hf_hub_download

# httpx's in version 1 of the client and httpx2's in version 2: only the client knows which library it uses.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.hf_api import RepoFile
from tqdm.auto import tqdm

from benchmarks.sources.lock import FileLock, RepoLock
from epmq.errors import UserError

Kind = Literal["model", "dataset"]
T = TypeVar("T")
JOBS = 8  # files at a time
WAITS = (2, 10)  # seconds before another try, after what the client itself does not try again
PASSING = {408, 429, 500, 502, 503, 504}
FAILURES: tuple[type[Exception], ...] = (HTTPError, errors.XetDownloadError, OSError)


@dataclass(frozen=True)
class Listing:
    """A repository at a commit: every file's size in bytes, and its SHA-256 where the hub has one."""

    id: str
    revision: str
    sizes: dict[str, int]
    hashes: dict[str, str]


def patiently(action: Callable[[], T], what: str, waits: Sequence[float] = WAITS) -> T:
    """The action's value, tried again after failures that pass; seconds between tries are ``waits``.

    Raises:
        UserError: it failed for good; ``what`` cannot be downloaded.
    """
    for wait in (*waits, None):
        try:
            return action()
        except FAILURES as error:
            if wait is None or not _passes(error):
                raise _complaint(error, what) from error
            time.sleep(wait)
    raise AssertionError


def _passes(error: Exception) -> bool:
    """Whether trying again can help, and the client has not done so already."""
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in PASSING
    if isinstance(error, OSError):  # of the client's own, only a body of another length has no error number
        return error.errno is None and not isinstance(error, FileNotFoundError | ConnectionError)
    return True


def _complaint(error: Exception, what: str) -> UserError:
    if isinstance(error, errors.GatedRepoError):
        remedy = "accept its terms on its page, then 'hf auth login'"
    elif isinstance(error, errors.RevisionNotFoundError):
        remedy = "the pinned commit is gone: run 'epmq pin' again and compare the locks"
    elif isinstance(error, errors.RepositoryNotFoundError):
        remedy = "it was moved, deleted or made private: correct the id in the suite, or 'hf auth login'"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        remedy = "the file was deleted: run 'epmq pin' again and compare the locks"
    else:
        remedy = "run the same command again to go on"
    cause = (
        error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ else error
    )
    reason = " ".join(str(cause).partition("\n")[0].split()) or type(cause).__name__
    return UserError(f"{what} cannot be downloaded ({reason}); {remedy}")


def listing(repo: str, kind: Kind, revision: str | None, waits: Sequence[float] = WAITS) -> Listing:
    """What a repository holds; downloads no file. ``revision``: a branch or commit, ``None`` for the newest.

    Raises:
        UserError: the hub cannot be reached or has no such repository.
    """
    api = HfApi()

    def ask() -> Listing:
        sha = api.repo_info(repo, repo_type=kind, revision=revision).sha
        assert sha is not None
        tree = api.list_repo_tree(repo, repo_type=kind, revision=sha, recursive=True)
        files = [file for file in tree if isinstance(file, RepoFile)]
        hashes = {file.path: file.lfs.sha256 for file in files if file.lfs}
        return Listing(repo, sha, {f.path: f.lfs.size if f.lfs else f.size for f in files}, hashes)

    return patiently(ask, f"{kind} {repo}", waits)


def described(found: Listing, kind: Kind, names: Iterable[str]) -> RepoLock:
    """A lock of some of a repository's files; those whose hash the hub lacks (small ones) are downloaded."""
    files = {}
    for name in names:
        if name in found.hashes:
            files[name] = FileLock(sha256=found.hashes[name], size=found.sizes[name])
        else:
            files[name] = FileLock.of(_download(found.id, kind, found.revision, name))
    return RepoLock(id=found.id, revision=found.revision, files=files)


def fetch(repo: RepoLock, kind: Kind) -> Path:
    """Download what the hub's cache lacks of a repository's files, check all of them; returns their folder.

    A file whose SHA-256 is wrong leaves the cache and is downloaded once more.

    Raises:
        UserError: a file cannot be downloaded, or is not the pinned one.
    """

    def one(name: str) -> Path:
        file, expected = _download(repo.id, kind, repo.revision, name), repo.files[name].sha256
        if FileLock.of(file).sha256 != expected:
            file.resolve().unlink()
            file.unlink(missing_ok=True)
            file = _download(repo.id, kind, repo.revision, name)
        if (found := FileLock.of(file).sha256) != expected:
            raise UserError(
                f"{kind} {repo.id}: file {name} of commit {repo.revision[:12]} has SHA-256 {found[:12]}..., "
                f"expected {expected[:12]}...: the hub serves other bytes than were pinned; try later, or "
                "run 'epmq pin' again and compare the locks"
            )
        return file

    with ThreadPoolExecutor(JOBS) as pool:
        bar = tqdm(
            pool.map(one, repo.files), desc=repo.id, total=len(repo.files), leave=False, delay=2, unit="file"
        )
        files = dict(zip(repo.files, bar, strict=True))
    name, file = next(iter(files.items()))
    return file.parents[len(Path(name).parts) - 1]


def _download(repo: str, kind: Kind, revision: str, name: str) -> Path:
    def ask() -> Path:
        return Path(hf_hub_download(repo, name, repo_type=kind, revision=revision))

    return patiently(ask, f"{kind} {repo}: file {name}")
