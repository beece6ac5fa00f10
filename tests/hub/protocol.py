"""The hub's answers, as pure functions: what ``huggingface_hub`` and ``datasets`` ask for, and no more."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from tests.hub.store import Blob, Files, Repo

DATE = "2024-01-01T00:00:00.000Z"
PAGE = 50  # entries of a tree listing on one page; the hub's own is longer
LARGE_FILES_HOST = (
    "localhost"  # where answers of 127.0.0.1 send clients for LFS files: another host, like the hub's
)

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)(?:/(?P<verb>[a-z-]+)(?:/(?P<rest>.+))?)?"
)
RESOLVE = re.compile(
    r"(?:/(?P<kind>datasets))?/(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)"
)


@dataclass(frozen=True)
class Asked:
    """A request: its path is decoded, and so are query and form."""

    method: str
    path: str
    query: Mapping[str, list[str]] = field(default_factory=dict)
    form: Mapping[str, list[str]] = field(default_factory=dict)
    host: str = ""
    range: str | None = None


@dataclass(frozen=True)
class Reply:
    """An answer; ``file`` names the repository's file that it is about, as ``OWNER/NAME/PATH``."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None


def answer(repos: Mapping[tuple[str, str], Repo], asked: Asked) -> Reply:
    """The hub's answer to a request."""
    if match := RESOLVE.fullmatch(asked.path):
        repo = repos.get((match["kind"] or "models", match["id"]))
        return _resolve(repo, match["rev"], match["path"], asked) if repo else _missing("Repo")
    if match := API.fullmatch(asked.path):
        repo = repos.get((match["kind"], match["id"]))
        verb = VERBS.get(match["verb"] or "revision")
        if repo is None or verb is None:
            return _missing("Repo")
        return _of_commit(verb, repo, match["rest"] or "main", asked)
    return _missing("Repo")


def _missing(what: str, commit: str | None = None) -> Reply:
    headers = {"X-Error-Code": f"{what}NotFound", "X-Error-Message": f"{what} not found"}
    return Reply(404, b"", {**headers, **({"X-Repo-Commit": commit} if commit else {})})


def _json(content: object, **headers: str) -> Reply:
    return Reply(200, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})


def _of_commit(verb: Verb, repo: Repo, rest: str, asked: Asked) -> Reply:
    """Splits ``REVISION[/PATH]``: clients quote the slashes in a revision, which are decoded by now."""
    parts = rest.split("/")
    length = 3 if parts[0] == "refs" else 1
    sha = repo.resolve("/".join(parts[:length]))
    return verb(repo, sha, "/".join(parts[length:]), asked) if sha else _missing("Revision")


def _info(repo: Repo, sha: str, path: str, asked: Asked) -> Reply:
    siblings: list[dict[str, Any]] = [{"rfilename": name} for name in repo.commits[sha]]
    if asked.query.get("blobs"):
        for entry, blob in zip(siblings, repo.commits[sha].values(), strict=True):
            entry.update(blobId=blob.oid, **blob.described("sha256"))
    facts = {
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": sha,
        "lastModified": DATE,
        "createdAt": DATE,
    }
    state = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return _json({"_id": repo.id, **facts, **state, "siblings": siblings})


def _commits(repo: Repo, sha: str, path: str, asked: Asked) -> Reply:
    shas = list(repo.commits)
    shown = reversed(shas[: shas.index(sha) + 1])
    return _json(
        [{"id": sha, "title": "upload", "message": "", "authors": [], "date": DATE} for sha in shown]
    )


def _entry(path: str, blob: Blob | None, sha: str, expand: bool) -> dict[str, Any]:
    """A file, or a folder for no blob, as the tree and paths-info endpoints state it."""
    if blob is None:
        entry = {"type": "directory", "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": blob.oid, "path": path, **blob.described("oid")}
    return {**entry, "lastCommit": {"id": sha, "title": "upload", "date": DATE}} if expand else entry


def _below(files: Files, folder: str, recursive: bool) -> dict[str, Blob | None]:
    """Files and folders (None) below a folder, or in it only."""
    prefix = f"{folder}/" if folder else ""
    found: dict[str, Blob | None] = {}
    for path in sorted(path for path in files if path.startswith(prefix)):
        parts = path.removeprefix(prefix).split("/")
        deepest = len(parts) if recursive else 1
        found.update({prefix + "/".join(parts[:n]): None for n in range(1, len(parts)) if n <= deepest})
        if len(parts) <= deepest:
            found[path] = files[path]
    return found


def _flag(given: Mapping[str, list[str]], name: str) -> bool:
    return given.get(name, ["false"])[0].lower() in ("true", "1")


def _tree(repo: Repo, sha: str, path: str, asked: Asked) -> Reply:
    entries = list(_below(repo.commits[sha], path, _flag(asked.query, "recursive")).items())
    if path and not entries:
        return _missing("Entry", sha)
    start = int(asked.query.get("cursor", ["0"])[0])
    page = entries[start : start + PAGE]
    headers = {}
    if start + PAGE < len(entries):
        query = urlencode({**{name: v[0] for name, v in asked.query.items()}, "cursor": start + PAGE})
        headers["Link"] = f'<http://{asked.host}{quote(asked.path)}?{query}>; rel="next"'
    expand = _flag(asked.query, "expand")
    return _json([_entry(name, blob, sha, expand) for name, blob in page], **headers)


def _paths_info(repo: Repo, sha: str, path: str, asked: Asked) -> Reply:
    every = _below(repo.commits[sha], "", recursive=True)
    wanted = [name for name in asked.form.get("paths", []) if name in every]
    return _json([_entry(name, every[name], sha, _flag(asked.form, "expand")) for name in wanted])


def _resolve(repo: Repo, revision: str, path: str, asked: Asked) -> Reply:
    """A file's metadata and bytes; LFS files are sent from another host, where the first answer points to."""
    sha = repo.resolve(revision)
    if sha is None:
        return _missing("Revision")
    blob = repo.commits[sha].get(path)
    if blob is None:
        return _missing("Entry", sha)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    name = f"{repo.id}/{path}"
    host, _, port = asked.host.partition(":")
    if blob.lfs and host != LARGE_FILES_HOST:
        linked = {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        location = f"http://{LARGE_FILES_HOST}:{port}{quote(asked.path)}"
        return Reply(302, b"", {**headers, **linked, "Location": location}, name)
    return _ranged(blob.data, headers, name, asked.range)


def _ranged(data: bytes, headers: dict[str, str], name: str, wanted: str | None) -> Reply:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if match is None:
        return Reply(200, data, headers, name)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"}, name)
    part = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
    return Reply(206, data[first : last + 1], {**headers, **part}, name)


Verb = Callable[[Repo, str, str, Asked], Reply]
VERBS: dict[str, Verb] = {"revision": _info, "tree": _tree, "paths-info": _paths_info, "commits": _commits}
