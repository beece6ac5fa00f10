"""Repositories of the replica: files by commit, with the hashes that the hub states for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

KINDS = ("models", "datasets")
LFS = {".bin", ".h5", ".jpg", ".msgpack", ".parquet", ".png", ".safetensors", ".tar"}
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS)).encode()


def git_hash(data: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file's content; large ones are kept outside git (``lfs``), which holds a pointer to them."""

    data: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_hash(self.pointer if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def described(self, hash_name: str) -> dict[str, Any]:
        """Size and, for LFS, the hash of the content, under the name that an endpoint uses for it."""
        if not self.lfs:
            return {"size": len(self.data)}
        lfs = {hash_name: self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return {"size": len(self.data), "lfs": lfs}


Files = dict[str, Blob]


@dataclass
class Repo:
    """Commits of one branch, ``main``: their files by SHA, oldest first."""

    kind: str
    id: str
    commits: dict[str, Files] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    def commit(self, changes: Mapping[str, bytes]) -> str:
        """Adds a commit with these files added or changed; its SHA follows from content and parent."""
        parent = self.head if self.commits else ""
        files = {**self.commits.get(parent, {}), **{p: blob(p, data) for p, data in changes.items()}}
        content = "".join(f"{path} {files[path].oid}\n" for path in sorted(files))
        sha = hashlib.sha1(f"{self.kind} {self.id}\nparent {parent}\n{content}".encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or a SHA names, if there is one."""
        sha = self.head if revision in ("main", "refs/heads/main") else revision
        return sha if sha in self.commits else None


def blob(path: str, data: bytes) -> Blob:
    return Blob(data, PurePosixPath(path).suffix in LFS)


def load(folder: Path) -> Iterator[Repo]:
    """The repositories ``{models,datasets}/OWNER/NAME/`` below a folder, each with two commits."""
    for kind in KINDS:
        for home in sorted(path for path in (folder / kind).glob("*/*") if path.is_dir()):
            repo = Repo(kind, home.relative_to(folder / kind).as_posix())
            repo.commit({".gitattributes": ATTRIBUTES})  # the hub's own first commit
            files = (path for path in sorted(home.rglob("*")) if path.is_file())
            repo.commit({path.relative_to(home).as_posix(): path.read_bytes() for path in files})
            yield repo
