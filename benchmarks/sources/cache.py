"""Where decoded images, merged and converted weights are kept: ``EPMQ_CACHE``, or a folder at home.

Everything in it can be deleted at any time; it is made again when it is needed, and where it is damaged.
Nothing in it is written through a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from epmq.errors import UserError


def folder(kind: str) -> Path:
    """The cache's folder of a kind (``images``, ``merged``, ``converted``, ``models``), made if missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        root = Path(os.environ.get("EPMQ_CACHE") or "~/.cache/epmq").expanduser().absolute()
    except RuntimeError as error:
        raise UserError("there is no home folder for a cache; set EPMQ_CACHE to a folder") from error
    try:
        (root / kind).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root / kind}: cannot be made ({error.strerror}); set EPMQ_CACHE to another folder"
        ) from error
    return root / kind


@contextmanager
def errors(place: Path) -> Iterator[None]:
    """Turn what a disk refuses inside the block into a ``UserError`` that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(
            f"{place}: the cache cannot be used there ({reason}); free some space, delete what is there, or "
            "set EPMQ_CACHE to another folder"
        ) from error
