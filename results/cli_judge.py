"""``epmq check``: a run beside a golden run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from results.check import check
from results.folder import RunFolder


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
    compare = commands.add_parser(
        "check", help="compare a run with a golden run; exit status 1 on a regression"
    )
    compare.add_argument("folder", type=Path, metavar="DIR")
    compare.add_argument("--golden", type=Path, required=True, metavar="DIR")
    compare.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    report = check(RunFolder.open(options.folder), RunFolder.open(options.golden))
    print(report.render(), end="")
    return int(report.failed)
