"""``epmq pin | check-suite``: what a suite names, resolved and locked, or only looked at."""

from __future__ import annotations

import argparse
import sys
from typing import Any

# What needs the hub's client is imported by the command itself, for it takes seconds.
from benchmarks.cli.paths import given_path, home
from benchmarks.cli.screen import one_line, show
from benchmarks.suites import load as suites
from epmq.errors import UserError


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    pin = commands.add_parser(
        "pin",
        help="resolve a suite's models and data sets to commits and hashes, in a lock file",
        description="Resolves every model and data set that the suite names on the hub to its newest commit, "
        "counts the samples, and writes the lock that runs are held to. Data sets are downloaded, weights "
        "are not. After an interruption, run the same command again.",
    )
    pin.add_argument("suite", type=home, help="a suite's name (see 'epmq list') or the path of a suite file")
    pin.add_argument(
        "--lock",
        type=given_path,
        metavar="FILE",
        help="where to write it (default: with the code, of a suite of your own in the cache)",
    )
    pin.set_defaults(command=_pin)
    check = commands.add_parser(
        "check-suite",
        help="say everything that is missing or wrong in a suite; exit status 2 if anything is",
        description="A line for each thing that is missing or wrong in a suite: fields, names, folders, "
        "samples, numbers of classes, pins. Nothing is downloaded or computed.",
    )
    check.add_argument("suite", type=home, metavar="FILE", help="a suite's name or the path of a suite file")
    check.add_argument("--lock", type=given_path, metavar="FILE", help="lock file (default: the suite's own)")
    check.set_defaults(command=_check)


def _pin(options: argparse.Namespace) -> int:
    from benchmarks.sources import lock, pin

    suite = suites.load(options.suite)
    path = options.lock or lock.default_path(suite)
    if not lock.models_of(suite) and not any(suites.on_hub(task.dataset.path) for task in suite.tasks):
        raise UserError(f"{suite.name} needs nothing of the hub; there is nothing to pin")
    old = lock.read(path) if path.exists() else None
    new = pin.pin(suite, path)
    for line in pin.moved(old, new) if old else []:
        show(f"{line}\n")
    print(f"{len(new.models)} models and {len(new.datasets)} data sets are pinned in {path}", file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> int:
    from benchmarks.own.check import findings

    found = findings(options.suite, options.lock)
    for line in found:
        show(f"{one_line(line)}\n")
    print(f"{options.suite}: {len(found) or 'nothing'} to mend", file=sys.stderr)
    return 2 if found else 0
