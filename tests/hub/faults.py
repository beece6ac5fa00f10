"""What can be made to go wrong at the replica, by path and count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from tests.hub.protocol import Asked, Reply

FaultKind = Literal["500", "429", "stall", "cut", "corrupt", "wrong-hash"]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass
class Fault:
    """A fault, ``left`` more times; kinds as in ``Hub.fail``."""

    pattern: str
    kind: FaultKind
    left: int
    seconds: float
    method: str

    def concerns(self, asked: Asked, reply: Reply) -> bool:
        """Whether this answer is one that the fault can spoil."""
        if self.left <= 0 or not (
            fnmatchcase(asked.path, self.pattern) and fnmatchcase(asked.method, self.method)
        ):
            return False
        if self.kind in ("cut", "corrupt"):
            return asked.method == "GET" and reply.file is not None and len(reply.body) > 1
        return self.kind != "wrong-hash" or "ETag" in reply.headers

    def spoil(self, reply: Reply) -> Reply:
        """The answer with the fault in it; ``stall`` and ``cut`` are left to the connection."""
        if self.kind in ("500", "429"):
            waits = {"Retry-After": str(int(self.seconds))} if self.kind == "429" else {}
            return Reply(int(self.kind), b"scripted fault", {**waits, "X-Error-Message": "scripted fault"})
        if self.kind == "corrupt":
            middle = len(reply.body) // 2
            flipped = bytes([reply.body[middle] ^ 0xFF])
            return replace(reply, body=reply.body[:middle] + flipped + reply.body[middle + 1 :])
        if self.kind == "wrong-hash":
            hashes = {
                name: _another(reply.headers[name])
                for name in ("ETag", "X-Linked-Etag")
                if name in reply.headers
            }
            return replace(reply, headers={**reply.headers, **hashes})
        return reply


def _another(etag: str) -> str:
    """A hash of the same length that is not this one."""
    return etag.translate(str.maketrans("0123456789abcdef", "fedcba9876543210"))
