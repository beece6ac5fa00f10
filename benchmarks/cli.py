"""The command line: ``epmq run | table | check | list``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

# What needs torch is imported by the commands that need it, for it takes seconds.
from benchmarks import suites
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.spec import QuantSpec
from results.check import check
from results.errors import ResultError
from results.folder import RunFolder
from results.tables import FORMATS, render, save

CALIBRATION_AXES = {f.name: f.default for f in fields(Calibration) if f.name != "target"}
SPEC_AXES = {f.name: f.default for f in fields(QuantSpec) if f.name != "bits"}
MERGE_OPTIONS = ("scale", "keep")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 a regression was found, 2 bad input."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options))
    except (UserError, ResultError) as error:
        print("epmq: error:", *str(error).split(), file=sys.stderr)  # on one line, whatever it quotes
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
    _add_run(commands)
    table = commands.add_parser("table", help="print the comparison table of a results folder")
    table.add_argument("folder", type=Path, metavar="DIR")
    table.add_argument("--format", default="md", help=f"one of {', '.join(FORMATS)} (default md)")
    table.add_argument("--save", action="store_true", help="also write every format into DIR")
    table.set_defaults(command=_table)
    compare = commands.add_parser(
        "check", help="compare a run with a golden run; exit status 1 on a regression"
    )
    compare.add_argument("folder", type=Path, metavar="DIR")
    compare.add_argument("--golden", type=Path, required=True, metavar="DIR")
    compare.set_defaults(command=_check)
    listing = commands.add_parser("list", help="list suites, merges, methods and controls")
    listing.add_argument("pattern", nargs="?", default="*", help="shell-style pattern over method names")
    listing.add_argument("--json", action="store_true", help="machine-readable")
    listing.set_defaults(command=_list)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="compute the cells of a comparison that a results folder lacks",
        description="Cross-product of merges, methods, targets and bits, with the controls. What is not "
        "given comes from the suite's named comparison. After an interruption, run the same command again.",
    )
    run.add_argument("suite", help="a suite's name (see 'epmq list') or the path of a suite file")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="results folder, made if missing")
    run.add_argument(
        "--comparison", default="default", help="the suite's comparison to start from (default: default)"
    )
    run.add_argument("--merge", nargs="+", metavar="NAME")
    run.add_argument(
        "--method", nargs="+", metavar="NAME", help="roundings or familiar names; patterns allowed"
    )
    run.add_argument("--target", nargs="+", metavar="TARGET", help="of roundings: merged, expert")
    run.add_argument("--bits", nargs="+", type=int, metavar="N", help="2 to 8")
    run.add_argument("--controls", nargs="*", metavar="NAME", help="see 'epmq list'; no name leaves them out")
    run.add_argument("--samples", type=int, metavar="N", help="calibration samples per task")
    run.add_argument("--seed", type=int, default=0, help="draw of the calibration samples (default 0)")
    axes = run.add_argument_group("axes that the paper leaves open (defaults in parentheses)")
    for name, default in {**CALIBRATION_AXES, **SPEC_AXES}.items():
        _add_axis(axes, name, default)
    axes.add_argument("--scale", type=float, metavar="X", help="factor on the task vectors (0.3)")
    axes.add_argument("--keep", type=float, metavar="X", help="TIES: share of entries kept (0.2)")
    run.set_defaults(command=_run)


def _add_axis(group: Any, name: str, default: Any) -> None:
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        group.add_argument(flag, action="store_true", default=None, help="(off)")
    else:
        kind = int if default is None else type(default)
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=f"({default})")


def _run(options: argparse.Namespace) -> int:
    suite = suites.load(options.suite)
    chosen = suites.options(suite, options.comparison)
    chosen |= {name: getattr(options, name) for name in chosen if getattr(options, name) is not None}
    from benchmarks.cells import Request
    from benchmarks.runner import run

    request = Request(
        **chosen,
        seed=options.seed,
        merge_options=_given(options, MERGE_OPTIONS),
        calibration=_given(options, CALIBRATION_AXES),
        spec=_given(options, SPEC_AXES),
    )
    asked = {k: v for k, v in vars(options).items() if k not in ("command", "out") and v is not None}
    folder = run(suite, request, options.out, asked)
    _report_problems(folder)
    print(
        f"{len(folder.records())} cells in {folder.path}; 'epmq table {folder.path}' prints them",
        file=sys.stderr,
    )
    return 0


def _given(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _table(options: argparse.Namespace) -> int:
    folder = RunFolder.open(options.folder)
    text = render(folder, options.format)
    _report_problems(folder)
    print(text, end="")
    if options.save:
        print("saved: " + " ".join(str(path) for path in save(folder)), file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> int:
    report = check(RunFolder.open(options.folder), RunFolder.open(options.golden))
    print(report.render(), end="")
    return int(report.failed)


def _report_problems(folder: RunFolder) -> None:
    for problem in folder.problems:
        print(f"epmq: warning: {folder.path}/{problem}", file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    import baselines
    from baselines.recipes import familiar
    from benchmarks.cells import CONTROLS
    from epmq.merge import known

    roundings = [baselines.get(name) for name in baselines.names()]
    methods = [{"name": r.name, "summary": r.summary, "reference": r.reference} for r in roundings]
    methods += [
        {"name": r.name, "summary": r.summary, "reference": "arXiv:2605.16882"} for r in familiar().values()
    ]
    listed: dict[str, list[dict[str, str]]] = {
        "methods": [row for row in methods if fnmatchcase(row["name"], options.pattern)]
    }
    if not listed["methods"]:
        raise UserError(f"no method matches {options.pattern!r}; 'epmq list' shows all")
    if options.pattern == "*":
        listed = {
            "suites": [{"name": n, "summary": suites.load(n).description} for n in suites.names()],
            "merges": [{"name": n, "summary": _first_line(f.__doc__)} for n, f in known().items()],
            **listed,
            "controls": [{"name": n, "summary": s} for n, s in CONTROLS.items()],
        }
    print(json.dumps(listed, indent=2) if options.json else _as_text(listed))
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
