"""One run at a time writes to a folder of results: it holds ``.running``, which says who it is.

The claim is a ``flock``, so that the system drops it with the process, however that ends; what is left of a
process that was killed is taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from epmq.errors import UserError
from results.store.files import os_errors

NAME = ".running"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold ``folder``, made if missing, for the length of the block.

    Raises:
        UserError: another run holds it (the line says which), or it cannot be written.
    """
    with os_errors(folder, "write results there"):
        folder.mkdir(parents=True, exist_ok=True)
        claim = _claim(folder)
    try:
        yield
    finally:
        (folder / NAME).unlink(missing_ok=True)  # while it is held, so that nobody's new one is removed
        os.close(claim)


def refuse_held(folder: Path) -> None:
    """Refuse a folder that another run holds; writes nothing.

    Raises:
        UserError: with who holds it.
    """
    if not os.path.lexists(folder / NAME):
        return
    with os_errors(folder, "write results there"):
        descriptor = os.open(folder / NAME, _FLAGS)
        try:
            _hold(descriptor, folder)
        finally:
            os.close(descriptor)


def _claim(folder: Path) -> int:
    file = folder / NAME
    while True:
        descriptor = os.open(file, _FLAGS | os.O_CREAT, 0o666)
        try:
            _hold(descriptor, folder)
            if file.exists() and os.path.samestat(os.fstat(descriptor), file.stat()):
                now = datetime.now(UTC).isoformat(timespec="seconds")
                who = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, who.encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner removed it before it was held here


def _hold(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        said = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        who = said if said.isprintable() and said else "another process"
        raise UserError(
            f"{folder}: is being written by {who}; wait until it ends, or choose another --out"
        ) from error
