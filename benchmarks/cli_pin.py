"""``epmq pin``: resolves what a suite names to commits and hashes, and writes its lock file."""

from __future__ import annotations

from typing import Any


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
