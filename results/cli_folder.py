"""``epmq verify | schema``: whether a results folder is what it says, and the form of its files."""

from __future__ import annotations

from typing import Any


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
