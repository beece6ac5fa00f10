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
    import baselines
    from baselines import refinements
    from baselines.controls import CONTROLS
    from baselines.recipes import familiar
    from epmq.merging import known

    refined = refinements.names()
    roundings = [baselines.get(name) for name in baselines.names()]
    methods = [{"name": r.name, "summary": r.summary, "reference": r.reference} for r in roundings]
    methods += [{"name": r.name, "summary": r.summary, "reference": r.reference} for r in familiar().values()]
    listed: dict[str, list[dict[str, str]]] = {
        "methods": [row for row in methods if fnmatchcase(row["name"], options.pattern)]
    }
    if not listed["methods"]:
        raise UserError(f"no method matches {options.pattern!r}; 'epmq list' shows all")
    if options.pattern == "*":
        listed = {
            "suites": [
                *({"name": n, "summary": suites.load(n).description} for n in suites.names()),
                {"name": any_lm.NAME, "summary": "any Llama-like model, its experts and their tasks"},
            ],
            "merges": [{"name": n, "summary": _first_line(f.__doc__)} for n, f in known().items()],
            **listed,
            "controls": [{"name": r.name, "summary": r.summary} for r in CONTROLS.values()],
            "refinements": [{"name": r.name, "summary": r.summary} for r in map(refinements.get, refined)],
        }
    show((json.dumps(listed, indent=2) if options.json else _as_text(listed)) + "\n")
    return 0


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _as_text(listed: dict[str, list[dict[str, str]]]) -> str:
    width = max(len(row["name"]) for rows in listed.values() for row in rows)
    blocks = []
    for title, rows in listed.items():
        blocks.append("\n".join([title, *(f"  {row['name']:<{width}}  {row['summary']}" for row in rows)]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
