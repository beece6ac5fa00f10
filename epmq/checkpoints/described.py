"""What JSON files beside weights say, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import from_json

from epmq.errors import UserError


def json_object(file: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file; nesting without end is refused, too.

    Raises:
        UserError: it cannot be read, or is something else; ``remedy`` ends the line.
    """
    try:
        found = from_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: is no JSON object; {remedy}")
    return found
