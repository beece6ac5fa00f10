"""A replica of the Hugging Face hub on a loopback port, for the real clients; see ``Hub``."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub import protocol, store
from tests.hub.faults import KINDS, Fault, FaultKind
from tests.hub.protocol import Asked, Reply

CLIENTS = (
    "HF_",
    "HUGGING_FACE_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "DATASETS_",
)  # settings of theirs, not to inherit


@dataclass(frozen=True)
class Served:
    """One request and how it was answered: ``sent`` bytes of body, ``fault`` if one was scripted."""

    method: str
    path: str
    status: int
    file: str | None
    range: str | None
    sent: int
    fault: FaultKind | None


class Hub:
    """Serves the repositories in folders (``tests.hub.content`` has functions that fill one) until closed.

    >>> with Hub(folder) as hub:
    ...     subprocess.run([...], env=hub.env(tmp_path / "cache"), check=True)
    ...     assert "openai/clip-vit-base-patch32/tf_model.h5" not in hub.downloaded()

    Folders are read once, when the replica starts, and never written: any number of replicas may share them.
    Clients read the endpoint when they are imported, so they belong in a process of their own, started with
    ``env``. A pattern is matched (``fnmatch``) against a request's path, as in ``*/model.safetensors`` or
    ``/api/datasets/ylecun/*``. A download is two requests of one path, HEAD and GET.
    """

    def __init__(self, *folders: Path, port: int = 0) -> None:
        self.repos = {(repo.kind, repo.id): repo for folder in folders for repo in store.load(folder)}
        self.served: list[Served] = []
        self.closing = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(self, port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def env(self, cache: Path, timeout: int = 60) -> dict[str, str]:
        """A client process's environment: this endpoint, a cache folder, seconds to wait for an answer."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(CLIENTS)}
        settings = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_ETAG_TIMEOUT": str(timeout),
            "HF_HUB_DOWNLOAD_TIMEOUT": str(timeout),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # would ask a host on the internet
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # likewise
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**inherited, **settings}

    def fail(
        self, pattern: str, kind: FaultKind, times: int = sys.maxsize, seconds: float = 0, method: str = "*"
    ) -> None:
        """Spoils the next ``times`` answers to requests whose path and method match.

        ``500``: that status. ``429``: that status, and to retry after ``seconds``. ``stall``: no answer for
        ``seconds`` (0: for ever), then the connection closes. ``cut``: half a file's bytes, then the
        connection closes (GET). ``corrupt``: one byte of a file is another, its hash as before (GET).
        ``wrong-hash``: the hash in a file's headers is not the file's.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is unknown; kinds are {', '.join(KINDS)}")
        with self._lock:
            self._faults.append(Fault(pattern, kind, times, seconds, method))

    def head(self, repo: str) -> str:
        """The SHA of ``main``; a repository is ``models/OWNER/NAME`` or ``datasets/OWNER/NAME``."""
        return self._repo(repo).head

    def read(self, repo: str, path: str) -> bytes:
        """A file of ``main``."""
        found = self._repo(repo)
        return found.commits[found.head][path].data

    def commit(self, repo: str, changes: Mapping[str, bytes]) -> str:
        """A new commit on ``main`` with these files added or changed; older commits stay. Returns its SHA."""
        return self._repo(repo).commit(changes)

    def replace(self, repo: str, path: str, data: bytes) -> None:
        """Changes a file of ``main`` under the same commit SHA, which an honest hub cannot do."""
        found = self._repo(repo)
        found.commits[found.head][path] = store.blob(path, data)

    def downloaded(self) -> set[str]:
        """Files, as ``OWNER/NAME/PATH``, of which bytes were sent."""
        return {one.file for one in list(self.served) if one.file and one.sent and one.status in (200, 206)}

    def forget(self) -> None:
        """Empties the log and drops the faults; commits and replaced files stay."""
        with self._lock:
            self._faults.clear()
            self.served.clear()

    def close(self) -> None:
        self.closing.set()  # frees stalled requests
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repo(self, repo: str) -> store.Repo:
        kind, _, name = repo.partition("/")
        return self.repos[kind, name]

    def answer(self, asked: Asked) -> tuple[Reply, Fault | None]:
        """The protocol's answer, spoiled by the oldest fault that concerns it."""
        reply = protocol.answer(self.repos, asked)
        with self._lock:
            fault = next((fault for fault in self._faults if fault.concerns(asked, reply)), None)
            if fault is None:
                return reply, None
            fault.left -= 1
        return fault.spoil(reply), fault


class _Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True  # a thread waits on each connection that a client keeps open

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client may leave when it likes
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        asked = self._asked()
        reply, fault = self.server.hub.answer(asked)
        if fault is not None and fault.kind == "stall":
            self._log(asked, reply, 0, fault)
            self.server.hub.closing.wait(fault.seconds or None)
            self._hang_up()
            return
        cut = fault is not None and fault.kind == "cut"
        sent = b"" if asked.method == "HEAD" else reply.body[: len(reply.body) // 2] if cut else reply.body
        self._log(asked, reply, len(sent), fault)
        self._send(reply, sent)
        if cut:
            self._hang_up()

    do_HEAD = do_POST = do_GET  # noqa: N815, the base class's names

    def _asked(self) -> Asked:
        url = urlsplit(self.path)
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        return Asked(
            self.command,
            unquote(url.path),
            parse_qs(url.query),
            parse_qs(form),
            self.headers.get("Host", ""),
            self.headers.get("Range"),
        )

    def _log(self, asked: Asked, reply: Reply, sent: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        served = Served(asked.method, asked.path, reply.status, reply.file, asked.range, sent, kind)
        self.server.hub.served.append(served)

    def _send(self, reply: Reply, sent: bytes) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(sent)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, the base class's name
        """Requests are kept in ``Hub.served``, not printed."""
