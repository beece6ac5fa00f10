"""A folder that is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from epmq.errors import UserError

_REMEDY = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EACCES: "change its permissions or choose another folder",
    errno.EROFS: "choose a folder that can be written",
}


def refuse_taken(folder: Path) -> None:
    """Refuse a folder that is there already, or that cannot be made; raises UserError."""
    if os.path.lexists(folder):
        raise UserError(f"{folder}: is there already; choose another folder, or move it away")
    nearest = nearest_there(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be made in {nearest}; choose a folder that can be written")


def nearest_there(path: Path) -> Path:
    """The nearest of the folders above a path that exists."""
    return next(above for above in path.absolute().parents if above.exists())


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write to, which becomes ``folder`` at the end of the block.

    Where the block raises, or is killed, ``folder`` is not there. What an exception left is removed; what a
    kill left beside it is called ``.NAME.*.unfinished``.

    Raises:
        UserError: ``folder`` is there already, or the disk refuses.
    """
    refuse_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(".unfinished", f".{folder.name}.", folder.parent))
        try:
            yield work
            _flush(work)
            for path in (*work.iterdir(), work):  # as whoever made it wants it, not as a temporary file
                path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
            if os.path.lexists(folder):  # made by somebody else meanwhile; a rename would replace it if empty
                raise UserError(f"{folder}: is there already; choose another folder, or move it away")
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or (errno.ENOSPC if "os error 28" in str(error) else 0)
        reason = os.strerror(number) if number else " ".join(str(error).split())[:200]
        remedy = _REMEDY.get(number, "check the path or choose another folder")
        raise UserError(f"{folder}: cannot be written ({reason}); {remedy}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(folder: Path) -> None:
    """Make the folder's files durable before it gets its name."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
