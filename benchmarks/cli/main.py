"""The command line, ``epmq COMMAND``: each module of ``COMMANDS`` adds its own."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NoReturn

# What needs torch is imported by the commands that need it, for it takes seconds.
from benchmarks.cli import folder, home, judge, pin, quantise, report, run, tables
from benchmarks.cli.screen import one_line, show
from benchmarks.suites import any_lm
from benchmarks.suites import load as suites
from epmq.errors import UserError

COMMANDS = (run, quantise, pin, tables, judge, report, folder, home)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 a regression was found, 2 bad input.

    130 and 141 are those of an interrupted command, and of one whose output nobody reads on.
    """
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options))
    except BrokenPipeError:
        return 128 + signal.SIGPIPE  # as a shell tells of a command that its reader left
    except UserError as error:
        print("epmq: error:", one_line(str(error)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "epmq: interrupted; finished cells are kept, run the same command again to go on", file=sys.stderr
        )
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="epmq", description="A benchmark suite for post-merge quantisation.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_to(commands)
    listing = commands.add_parser("list", help="list suites, merges, methods and controls")
    listing.add_argument("pattern", nargs="?", default="*", help="shell-style pattern over method names")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(command=_list)
    return parser


def _list(options: argparse.Namespace) -> int:
    from baselines import catalogue

    methods = [*catalogue.roundings(), *catalogue.methods()]
    listed = {"methods": [each.row for each in methods if fnmatchcase(each.name, options.pattern)]}
    if not listed["methods"]:
        raise UserError(f"no method matches {options.pattern!r}; 'epmq list' shows all")
    if options.pattern == "*":
        listed = {
            "suites": [
                *({"name": n, "summary": suites.load(n).description} for n in suites.names()),
                {"name": any_lm.NAME, "summary": "any Llama-like model, its experts and their tasks"},
            ],
            "merges": [each.row for each in catalogue.merges()],
            **listed,
            "controls": [each.row for each in catalogue.controls()],
            "refinements": [each.row for each in catalogue.trained()],
        }
    show((json.dumps(listed, indent=2) if options.json else _as_text(listed)) + "\n")
    return 0


def _as_text(listed: dict[str, list[dict[str, str]]]) -> str:
    """A block for each kind, its rows in columns as wide as they need to be over all blocks."""
    shown = ("name", "family", "needs", "reference")
    width = {key: max(len(row.get(key, "")) for rows in listed.values() for row in rows) for key in shown}

    def line(row: dict[str, str]) -> str:
        columns = [f"{row[key]:<{width[key]}}" for key in shown if key in row]
        return "  " + "  ".join([*columns, row["summary"]])

    return "\n\n".join("\n".join([title, *map(line, rows)]) for title, rows in listed.items())


if __name__ == "__main__":
    sys.exit(main())
