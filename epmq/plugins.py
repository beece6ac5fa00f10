"""Entry points: how an installed package adds methods without a fork."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from epmq.errors import UserError


def load(group: str) -> list[Any]:
    """Import whatever installed packages name under an entry-point group: modules, or objects of theirs.

    Raises:
        UserError: a module cannot be imported, whatever the reason; it names the plug-in.
    """
    found = []
    for point in entry_points(group=group):
        try:
            found.append(point.load())
        except UserError:
            raise
        except Exception as error:  # a stranger's module may raise anything; it must not read as our fault
            plug_in = f"plug-in {point.name!r} ({point.value}, {group})"
            raise UserError(f"{plug_in} cannot be loaded: {error}; repair or uninstall it") from error
    return found
