"""One table as Markdown, LaTeX or HTML, and rows of fields as CSV or JSON. Names are escaped here only."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from pydantic import JsonValue
from tabulate import tabulate


@dataclass(frozen=True)
class Text:
    """A cell for people: ``strong`` in bold, then ``text``, then significance stars; sorted by ``sort``."""

    text: str
    strong: str = ""
    stars: int = 0
    sort: float | str | None = None

    @property
    def plain(self) -> str:
        """The cell without marks."""
        return self.strong + self.text

    @property
    def order(self) -> float | str:
        """What a reader's table sorts this cell by: a number, or the text."""
        return self.plain if self.sort is None else self.sort


@dataclass(frozen=True)
class Table:
    """A table for people: its first ``words`` columns hold words, the others numbers.

    The column ``heading`` says what its row is about.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Text]]
    words: int
    heading: int = 0
    notes: Sequence[str] = field(default=())

    @property
    def starred(self) -> set[int]:
        """The columns that hold stars."""
        return {index for row in self.rows for index, cell in enumerate(row) if cell.stars}


def markdown(table: Table) -> str:
    """The table as GitHub's Markdown, its notes above it, ending in a line break."""
    cells = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    headers = [escape_markdown(header) for header in table.headers]
    align = ["left"] * table.words + ["right"] * (len(headers) - table.words)
    text = tabulate(cells, headers, tablefmt="pipe", disable_numparse=True, colalign=align)
    return "".join(f"**{escape_markdown(note)}**\n\n" for note in table.notes) + text + "\n"


def escape_markdown(name: str) -> str:
    """The text with what Markdown and HTML would read as marks escaped."""
    return re.sub(r"([\\`*_|<>&~]|\](?=[(\[:]))", r"\\\1", name)


def _markdown_cell(cell: Text) -> str:
    strong = f"**{cell.strong}**" if cell.strong else ""
    return strong + escape_markdown(cell.text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\^{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "<": "{<}",
    ">": "{>}",
    **{mark: f"\\{mark}" for mark in "&%$#_"},
}
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?")
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def latex(table: Table) -> str:
    """The table for LaTeX's booktabs, its notes as its first lines, ending in a line break."""
    lines = [r"\begin{tabular}{" + "l" * table.words + "r" * (len(table.headers) - table.words) + "}"]
    lines.append(r"\toprule")
    lines += [
        rf"\multicolumn{{{len(table.headers)}}}{{l}}{{{escape_latex(note)}}} \\" for note in table.notes
    ]
    lines += [_latex_line([Text(header) for header in table.headers]), r"\midrule"]
    lines += [_latex_line(row) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escape_latex(name: str) -> str:
    """The text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in name)


def _latex_line(row: Sequence[Text]) -> str:
    line = " & ".join(_latex_cell(cell) for cell in row) + r" \\"
    return re.sub(r"^( *)([\[*])", r"\1{\2}", line)  # else an argument of the line break before it


def _latex_cell(cell: Text) -> str:
    strong = rf"\textbf{{{escape_latex(cell.strong)}}}" if cell.strong else ""
    stars = f"$^{{{'*' * cell.stars}}}$" if cell.stars else ""
    return strong + _MINUS.sub("$-$", escape_latex(cell.text)) + stars


def html(table: Table) -> str:
    """The table as one HTML element of ASCII characters, ending in a line break."""
    text = environment().get_template("table.html").module.table(table)  # type: ignore[attr-defined]
    return str(text).encode("ascii", "xmlcharrefreplace").decode() + "\n"


def csv_text(names: Sequence[str], rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as CSV with a heading; None is an empty cell.

    A text that a spreadsheet would take for a formula has an apostrophe before it; numbers have none.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writerow({name: _no_formula(name) for name in names})
    writer.writerows({name: _no_formula(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _no_formula(value: object) -> object:
    if not isinstance(value, str) or not value.lstrip().startswith(("=", "+", "-", "@")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"


def json_text(value: object) -> str:
    """The value as indented JSON, ending in a line break."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


FOR_PEOPLE: dict[str, Callable[[Table], str]] = {"md": markdown, "latex": latex, "html": html}


@cache
def environment() -> Environment:
    """The templates of a wing of ``results``, with escaping on and unknown names refused."""
    return Environment(
        loader=ChoiceLoader([PackageLoader(f"results.{wing}") for wing in ("tables", "report", "board")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )


def flat(value: JsonValue, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for every entry of nested objects; a list is one entry."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from flat(entry, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list):
        yield prefix, " ".join(str(entry) for entry in value)
    else:
        yield prefix, "none" if value is None else str(value)
