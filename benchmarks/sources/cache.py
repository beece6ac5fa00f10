"""Where decoded images, merged and converted weights are kept: ``EPMQ_CACHE``, or a folder at home.

Everything in it can be deleted at any time; it is made again when it is needed.
"""

from __future__ import annotations

import os
from pathlib import Path

from epmq.errors import UserError


def folder(kind: str) -> Path:
    """The cache's folder of a kind (``images``, ``merged``, ``converted``), made if missing.

    Raises:
        UserError: it cannot be made.
    """
    root = Path(os.environ.get("EPMQ_CACHE") or Path.home() / ".cache" / "epmq").absolute()
    try:
        (root / kind).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root / kind}: cannot be made ({error.strerror}); set EPMQ_CACHE to another folder"
        ) from error
    return root / kind
