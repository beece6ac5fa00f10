"""``epmq table | diff``: the comparison table of a results folder, and two folders cell by cell."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.cli.paths import given_path
from benchmarks.cli.screen import show
from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.tables import diff as diffs
from results.tables.columns import GROUPS
from results.tables.comparison import FORMATS, render, save
from results.tables.selection import Selection


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    table = commands.add_parser("table", help="print the comparison table of a results folder")
    table.add_argument("folder", type=given_path, metavar="DIR")
    table.add_argument("--format", default="md", help=f"one of {', '.join(FORMATS)} (default md)")
    table.add_argument(
        "--save", action="store_true", help="also write the whole table, in every format, into DIR"
    )
    for name in ("method", "merge", "target", "bits", "task"):
        table.add_argument(
            f"--{name}", nargs="+", default=[], metavar="PATTERN", help=f"only these, as 'x*' ({name})"
        )
    table.add_argument(
        "--columns", nargs="+", default=[], metavar="GROUP", help=f"of {', '.join(GROUPS)}, all"
    )
    table.add_argument(
        "--sort", metavar="COLUMN", help="a heading, best first; COLUMN:asc or :desc to choose"
    )
    table.set_defaults(command=_table)
    compare = commands.add_parser("diff", help="compare two results folders cell by cell")
    compare.add_argument("before", type=given_path, metavar="DIR")
    compare.add_argument("after", type=given_path, metavar="DIR")
    compare.add_argument("--task", nargs="+", default=[], metavar="PATTERN", help="only these tasks, as 'x*'")
    compare.add_argument("--format", default="md", help=f"one of {', '.join(diffs.FORMATS)} (default md)")
    compare.set_defaults(command=_diff)


def _table(options: argparse.Namespace) -> int:
    selection = Selection(
        methods=options.method,
        merges=options.merge,
        targets=options.target,
        bits=options.bits,
        tasks=options.task,
        columns=options.columns,
        sort=options.sort,
    )
    if options.save and selection != Selection([], [], [], [], [], []):
        raise UserError("--save writes the whole table; leave out what selects and sorts")
    analysis = Analysis.open(options.folder)
    text = render(analysis, options.format, selection)
    saved = save(analysis) if options.save else []
    report_problems(analysis)
    show(text)
    if saved:
        print("saved: " + " ".join(str(path) for path in saved), file=sys.stderr)
    return 0


def _diff(options: argparse.Namespace) -> int:
    before, after = Analysis.open(options.before), Analysis.open(options.after)
    text = diffs.render(diffs.diff(before, after, options.task), options.format)
    for analysis in (before, after):
        report_problems(analysis)
    show(text)
    return 0


def report_problems(analysis: Analysis) -> None:
    """Say on standard error which lines of a folder were skipped."""
    for problem in analysis.problems:
        print(f"epmq: warning: {analysis.folder.path}/{problem}", file=sys.stderr)
