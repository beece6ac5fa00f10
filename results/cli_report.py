"""``epmq report``: figures and one self-contained HTML page of a results folder."""

from __future__ import annotations

from typing import Any


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
