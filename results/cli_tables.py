"""``epmq table``: the comparison table of a results folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from results.folder import RunFolder
from results.tables import FORMATS, render, save


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
    table = commands.add_parser("table", help="print the comparison table of a results folder")
    table.add_argument("folder", type=Path, metavar="DIR")
    table.add_argument("--format", default="md", help=f"one of {', '.join(FORMATS)} (default md)")
    table.add_argument("--save", action="store_true", help="also write every format into DIR")
    table.set_defaults(command=_table)


def _table(options: argparse.Namespace) -> int:
    folder = RunFolder.open(options.folder)
    text = render(folder, options.format)
    report_problems(folder)
    print(text, end="")
    if options.save:
        print("saved: " + " ".join(str(path) for path in save(folder)), file=sys.stderr)
    return 0


def report_problems(folder: RunFolder) -> None:
    """Say on standard error which lines of a folder were skipped."""
    for problem in folder.problems:
        print(f"epmq: warning: {folder.path}/{problem}", file=sys.stderr)
