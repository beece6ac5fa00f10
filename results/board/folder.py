"""A board as a folder: its page, each run's report, and the sources that its rows are made by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from results.board.board import Board
from results.board.figures import frontiers
from results.board.page import page
from results.figures.files import Drawing, drawings, drawn
from results.report import page as reports
from results.store.files import os_errors, read_followed, write_atomically

PAGE = "index.html"
_MAX_SOURCE = 1 << 20  # bytes


def save(board: Board, folder: Path, say: Callable[[str], None]) -> Path:
    """Write the board into ``folder``, made if missing, and return its page, which comes last.

    A run's report is always made anew from its records: one that a stranger's folder holds is never taken.

    Args:
        board: what to write.
        folder: where.
        say: is told of each file that is written.

    Raises:
        UserError: the folder cannot be written, or a run's samples cannot be used.
    """
    for about in [*board.registered.methods.values(), *board.registered.merges.values()]:
        if about.source is not None:
            with os_errors(about.source, "read a method's source"):
                source = read_followed(about.source, _MAX_SOURCE)
            _write(folder / "source" / f"{about.code}.txt", source)
    for run in board.runs:
        report = folder / "runs" / run.name / "report.html"
        with os_errors(report, "write the report there"):
            report.parent.mkdir(parents=True, exist_ok=True)
        reports.save(run.analysis, drawings(run.analysis), report)
        say(str(report))
    figures = [Drawing(data, drawn(data, "svg")) for data in frontiers(board.standings)]
    _write(folder / PAGE, page(board, figures).encode())
    say(str(folder / PAGE))
    return folder / PAGE


def _write(path: Path, data: bytes) -> None:
    with os_errors(path, "write the board there"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
