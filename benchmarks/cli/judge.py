"""``epmq check | golden | compare``: a run beside a golden run, and beside the paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.cli.paths import given_path
from benchmarks.cli.screen import show
from benchmarks.cli.tables import report_problems
from results.analysis.analysis import Analysis
from results.judge import golden
from results.judge.check import RATE, check
from results.judge.junit import junit
from results.paper.compare import compare
from results.paper.text import FORMATS
from results.store.files import os_errors, write_atomically
from results.tables.formats import json_text

_GOLDEN = "a golden run, or the folder of all: then that of the run's suite, version and device"


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    _add_check(commands)
    _add_golden(commands)
    _add_compare(commands)


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check", help="compare a run with a golden run; exit status 1 on a regression"
    )
    parser.add_argument("folder", type=given_path, metavar="DIR")
    parser.add_argument("--golden", type=given_path, required=True, metavar="DIR", help=_GOLDEN)
    parser.add_argument(
        "--rate",
        type=float,
        default=RATE,
        metavar="P",
        help="false-alarm rate of all tests together (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--junit", type=given_path, metavar="FILE", help="also write JUnit XML, for CI")
    parser.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    analysis = Analysis.open(options.folder)
    reference = Analysis.open(golden.locate(options.golden, analysis))
    report = check(analysis, reference, rate=options.rate)
    report_problems(analysis)
    if options.junit:
        _write(options.junit, junit(report, f"epmq check {analysis.manifest.suite}"))
    show(json_text(report.as_json()) if options.json else report.render())
    return int(report.failed)


def _add_golden(commands: Any) -> None:
    parser = commands.add_parser("golden", help="keep golden runs")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    update = actions.add_parser(
        "update",
        help="make a run the golden one; needs a reason, which is recorded with what moved",
        description="Refuses a rehearsal and a run that is damaged, incomplete, not pinned or made from code "
        "that is not committed.",
    )
    update.add_argument("folder", type=given_path, metavar="DIR")
    update.add_argument("--golden", type=given_path, required=True, metavar="DIR", help=_GOLDEN)
    update.add_argument("--reason", required=True, metavar="TEXT")
    update.set_defaults(command=_update)


def _update(options: argparse.Namespace) -> int:
    path, entry = golden.update(Analysis.open(options.folder), options.golden, options.reason)
    moved = entry["moved"]
    assert isinstance(moved, list)
    done = f"replaced; {len(moved)} quantities moved" if entry["replaced"] else "recorded"
    show(f"{path}: {entry['cells']} golden cells {done}; the reason is in history.jsonl\n")
    return 0


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="put a run beside the paper: its numbers, bounds and claims")
    parser.add_argument("folder", type=given_path, metavar="DIR")
    parser.add_argument("--format", choices=FORMATS, default="md", help="(%(default)s)")
    parser.add_argument("--out", type=given_path, metavar="FILE", help="write it there, not to the screen")
    parser.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    analysis = Analysis.open(options.folder)
    text = FORMATS[options.format](compare(analysis))
    report_problems(analysis)
    if options.out:
        _write(options.out, text.encode())
    else:
        show(text)
    return 0


def _write(path: Path, data: bytes) -> None:
    with os_errors(path, "write it"):
        write_atomically(path, data)
