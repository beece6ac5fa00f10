"""``epmq report | board``: one self-contained HTML page of a results folder, and one over many."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import results
from benchmarks.cli.paths import given_path
from benchmarks.cli.tables import report_problems
from epmq.errors import UserError
from results.analysis.analysis import Analysis

if TYPE_CHECKING:  # matplotlib and torch-free listings, which the other commands need not wait for
    from baselines.catalogue import Entry
    from results.board.about import About, Registered

RESULTS = Path(results.__file__).parent
KEPT = ("committed/runs", "community")  # below it, in a checkout
PACKAGES = ("epmq", "baselines")  # of this repository, whose sources a board carries along


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    page = commands.add_parser("report", help="write one self-contained HTML page of a results folder")
    page.add_argument("folder", type=given_path, metavar="DIR")
    page.add_argument("--out", type=given_path, metavar="FILE", help="default DIR/report.html")
    page.add_argument(
        "--figures",
        action="store_true",
        help="also write every figure into DIR/figures, as SVG and PNG, with its data as CSV",
    )
    page.set_defaults(command=_report)
    board = commands.add_parser(
        "board",
        help="write a leaderboard over many results folders: a row a method, a column a suite",
        description="One page with rank intervals from the paired bootstrap, the frontier of accuracy "
        "against bits per weight, filters, and the report of every run beside it.",
    )
    board.add_argument(
        "folders",
        type=given_path,
        nargs="*",
        metavar="DIR",
        help="results folders (in a checkout: all committed and community ones)",
    )
    board.add_argument(
        "--out", type=given_path, default=Path("runs", "board"), metavar="FOLDER", help="(%(default)s)"
    )
    board.set_defaults(command=_board)


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


def _board(options: argparse.Namespace) -> int:
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out}: is no folder; choose another --out")
    folders = options.folders or kept()
    from results.board.board import board  # matplotlib and scipy, which the other commands need not wait for
    from results.board.folder import save

    made = board(folders, registered())
    save(made, options.out, lambda path: print(f"saved: {path}", file=sys.stderr))
    return 0


def kept() -> list[Path]:
    """The committed and community results folders of a checkout.

    Raises:
        UserError: there is none, as where epmq is installed from a wheel.
    """
    found = [path.parent for part in KEPT for path in sorted((RESULTS / part).glob("*/manifest.json"))]
    if not found:
        raise UserError(
            "this installation holds no committed results; give results folders: epmq board DIR..."
        )
    return found


def registered() -> Registered:
    """What is registered, with the sources of what this repository defines."""
    from baselines import catalogue
    from results.board.about import Registered

    methods = [*catalogue.roundings(), *catalogue.methods(), *catalogue.controls()]
    return Registered(_told(methods), _told(catalogue.merges()))


def _told(entries: Iterable[Entry]) -> dict[str, About]:
    from results.board.about import About

    found = {}
    for each in entries:
        code, source = _source(each.module)
        found[each.name] = About(each.name, each.family, each.summary, each.reference, code, source)
    return found


def _source(module: str) -> tuple[str, Path | None]:
    """The file of a module by its path in the repository; of another package's, the module's name."""
    if module.split(".")[0] not in PACKAGES:
        return module, None
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return module, None
    path = Path(spec.origin)
    name = module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
    return name, path
