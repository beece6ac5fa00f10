"""What a run was made with, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue


def flat(value: JsonValue, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for every entry of nested objects; a list is one entry."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from flat(entry, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list):
        yield prefix, " ".join(str(entry) for entry in value)
    else:
        yield prefix, "none" if value is None else str(value)
