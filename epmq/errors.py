"""The one exception for bad input."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the file, key or field, what was expected and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'gptq' or 'rtn'?"`` or the whole list when nothing is near."""
    options = sorted(known)
    if not options:
        return "; there is none"
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "; known: " + ", ".join(options)


def choose(field: str, value: str, known: Iterable[str]) -> None:
    """Raise :class:`UserError` unless ``value`` is one of ``known``."""
    options = list(known)
    if value not in options:
        raise UserError(f"{field} {value!r} is unknown{nearest(value, options)}")
