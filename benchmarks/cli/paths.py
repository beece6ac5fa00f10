"""Paths as a command is given them."""

from __future__ import annotations

from pathlib import Path

from epmq.errors import UserError


def given_path(text: str) -> Path:
    """A path with ``~`` as the home folder, which a shell leaves alone in quotes and after ``=``.

    Raises:
        UserError: it is empty, holds a NUL, or there is no such home.
    """
    if not text or "\0" in text:
        raise UserError(f"path {text!r} names nothing; give a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder; give the whole path") from error


def home(text: str) -> str:
    """A name or a path; a path that begins with ``~`` as :func:`given_path`."""
    return str(given_path(text)) if text.startswith("~") or "\0" in text else text
