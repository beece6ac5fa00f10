"""``epmq report``: figures and one self-contained HTML page of a results folder."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.cli.paths import given_path
from benchmarks.cli.tables import report_problems
from results.analysis.analysis import Analysis


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
    page = commands.add_parser("report", help="write one self-contained HTML page of a results folder")
    page.add_argument("folder", type=given_path, metavar="DIR")
    page.add_argument("--out", type=given_path, metavar="FILE", help="default DIR/report.html")
    page.add_argument(
        "--figures",
        action="store_true",
        help="also write every figure into DIR/figures, as SVG and PNG, with its data as CSV",
    )
    page.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from results.figures import files  # matplotlib, which the other commands need not wait for
    from results.report import page

    analysis = Analysis.open(options.folder)
    report_problems(analysis)
    path = options.out or analysis.folder.path / "report.html"
    figures = files.drawings(analysis)
    page.save(analysis, figures, path)
    paths = [path, *(files.save(analysis.folder.path, figures) if options.figures else [])]
    print("saved: " + " ".join(str(path) for path in paths), file=sys.stderr)
    return 0
