"""Files that survive being killed: atomic replacement, locks between processes, one-line errors.

A results folder may come from a stranger: a file of it is never opened through a link, and never a pipe or
a device, so that nothing outside the folder is read or written and no reader waits for ever.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from epmq.errors import UserError
from epmq.files import replacing

_REMEDY = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EPERM: "change its permissions or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.ELOOP: "put the file itself there",
}


@contextlib.contextmanager
def os_errors(path: Path | str, action: str) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``UserError`` that says what could not be done.

    A pipe that nobody reads is no error of the input, so a ``BrokenPipeError`` passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = _REMEDY.get(error.errno or 0, "check the path or choose another folder")
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
        raise UserError(f"{path}: cannot {action}: {reason}; {remedy}") from error


def refuse_link(path: Path) -> None:
    """Raise an ``OSError`` (ELOOP) where ``path`` is a symbolic link."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def read_followed(path: Path, limit: int) -> bytes:
    """As :func:`read_bounded`, but through links: of a file that the user named, not a stranger's folder."""
    return read_bounded(Path(os.path.realpath(path)), limit)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; raises an ``OSError`` for any other."""
    with _open_regular(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
    return data


def _open_regular(path: Path, mode: Literal["rb", "ab+"]) -> BinaryIO:
    access = os.O_RDONLY if mode == "rb" else os.O_RDWR | os.O_APPEND | os.O_CREAT
    descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(kind) else "it is not a regular file")
    return os.fdopen(descriptor, mode)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file ``path`` by ``data``: after a kill or a crash it holds the old bytes or the new."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(data)


@contextlib.contextmanager
def locked(path: Path, mode: Literal["rb", "ab+"]) -> Iterator[BinaryIO]:
    """Open ``path`` under an advisory lock: shared for "rb", exclusive for "ab+"."""
    with _open_regular(path, mode) as file:
        fcntl.flock(file, fcntl.LOCK_SH if mode == "rb" else fcntl.LOCK_EX)
        yield file  # closing the file releases the lock
