"""Fills the pages with what records and code say: ``python -m docs.tools.fill`` (``--check`` only compares).

In README.md, docs/*.md and the embedded suites' README.md, comments that no reader sees hold queries (see
docs/tools/records.py):

    <!--= QUERY-->68.3<!--/-->                a number inside a sentence; never at the start of a line
    <!--? QUERY > QUERY-->                    what a sentence states; also ``<``, or a number on the right
    <!--table WORDS-->...<!--/table-->        a table (see docs/tools/tables.py), on lines of their own
    <!--commands-->...<!--/commands-->        the reference of the command line
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.tools.commands import reference
from docs.tools.records import ROOT, text, value
from docs.tools.tables import table
from epmq.errors import UserError

NUMBER = re.compile(r"<!--= (?P<query>[^>]+?)-->(?P<old>[^<\n]*)<!--/-->")
TABLE = re.compile(r"<!--table (?P<words>.+?)-->\n.*?<!--/table-->", re.DOTALL)
COMMANDS = re.compile(r"<!--commands-->\n.*?<!--/commands-->", re.DOTALL)
STATEMENT = re.compile(r"<!--\? (?P<left>.+?) (?P<sign>[<>]) (?P<right>.+?)-->")
OPENING = re.compile(r"<!--(=|\?|table\b|commands\b)")
LINE_START = re.compile(r"^\s*(?:[-*+]\s+|\d+\.\s+|>\s*)*<!--[=?]", re.MULTILINE)


def pages() -> list[Path]:
    """Every page with numbers: README.md, those of docs, and the cards of the embedded suites."""
    cards = sorted((ROOT / "benchmarks" / "embedded").glob("*/README.md"))
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *cards]


def filled(page: str) -> str:
    """The page with every number, table and reference made anew.

    Raises:
        UserError: a query has no answer, or a marker is malformed or where Markdown would break.
    """
    if LINE_START.search(page):
        raise UserError("a marker starts a line, where Markdown takes it for a block of HTML; move a word")
    marked = sum(len(pattern.findall(page)) for pattern in (NUMBER, TABLE, COMMANDS, STATEMENT))
    if marked != len(OPENING.findall(page)):
        raise UserError("a marker is not closed or not well formed; see docs/tools/fill.py")
    page = NUMBER.sub(lambda m: f"<!--= {m['query']}-->{text(m['query'])}<!--/-->", page)
    page = TABLE.sub(
        lambda m: f"<!--table {m['words']}-->\n\n{table(m['words'].split())}\n\n<!--/table-->", page
    )
    return COMMANDS.sub(lambda m: f"<!--commands-->\n\n{reference()}\n\n<!--/commands-->", page)


def untrue(page: str) -> Iterator[str]:
    """The statements of a page that the records do not bear out, with both sides' values."""
    holds: dict[str, Callable[[float, float], bool]] = {"<": float.__lt__, ">": float.__gt__}
    for found in STATEMENT.finditer(page):
        left, right = (_side(found[side]) for side in ("left", "right"))
        if not holds[found["sign"]](left, right):
            yield f"{found['left']} {found['sign']} {found['right']}: {left:.2f} and {right:.2f}"


def _side(words: str) -> float:
    try:
        return float(words)
    except ValueError:
        return float(value(words))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; exit status 1 where a page is not what records and code say, 2 where a query is no use."""
    about = (__doc__ or "").partition(":")[0]
    parser = argparse.ArgumentParser(prog="python -m docs.tools.fill", description=about)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    wrong = unanswered = 0
    for path in pages():
        old, name = path.read_text("utf-8"), path.relative_to(ROOT)
        try:
            new = filled(old)
            false = list(untrue(old))
        except UserError as error:  # other pages are filled all the same
            print(f"{name}: {error}", file=sys.stderr)
            unanswered += 1
            continue
        for statement in false:
            print(f"{name}: no longer true: {statement}", file=sys.stderr)
        wrong += len(false)
        if new != old:
            print(f"{name}: {'differs from' if options.check else 'now says what is in'} records and code")
            wrong += options.check
            if not options.check:
                path.write_text(new, "utf-8")
    return 2 if unanswered else int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
