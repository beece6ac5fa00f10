"""What a command writes to the screen, or to whatever stands in its place."""

from __future__ import annotations

import os
import sys

from results.store.files import os_errors

_HEAD, _TAIL = 400, 250  # letters of an error that are kept


def show(text: str) -> None:
    """Write text to standard output, all of it, with what its encoding lacks as an escape.

    Raises:
        UserError: it cannot be written, as on a full disk.
        BrokenPipeError: nobody reads on.
    """
    if sys.stdout is None:  # closed before the command began
        return
    try:
        encoding = sys.stdout.encoding or "utf-8"
        written = text.encode(encoding, "backslashreplace").decode(encoding)
        with os_errors("standard output", "be written"):
            sys.stdout.write(written)
            sys.stdout.flush()
    except BaseException:
        _drop_output()
        raise


def _drop_output() -> None:
    """Send what is still in the buffer nowhere, or Python complains of it once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def one_line(text: str) -> str:
    """An error on one line of printable letters, whatever it quotes; the middle of a long one is left out."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= _HEAD + _TAIL else f"{line[:_HEAD]} ... {line[-_TAIL:]}"
