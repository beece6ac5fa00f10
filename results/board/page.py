"""The page of a board: one file that fetches nothing, readable without its script, which filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from urllib.parse import quote

from results.analysis.ranks import RESAMPLES
from results.board.about import About, address
from results.board.board import Board
from results.board.cells import Method, Setting
from results.board.runs import Run
from results.board.standings import Standing
from results.board.words import bits_words, grid_words, machine_words, merge_words, samples_words
from results.figures.files import Drawing
from results.report.parts import picture, policy, resource
from results.tables.formats import csv_text, environment

WING = "results.board"
FILTERS = {
    "merge": "Merge",
    "bits": "Bits",
    "grid": "Grid",
    "samples": "Calibration samples a task",
    "machine": "Computed on",
}


@dataclass(frozen=True)
class Link:
    """A text that may lead somewhere."""

    text: str
    to: str | None


@dataclass(frozen=True)
class Line:
    """A row: a method with its links, and what it did by suite (None: not run there)."""

    method: Method
    about: About
    links: Sequence[Link]
    standings: Sequence[Standing | None]

    @property
    def ranked(self) -> bool:
        """Whether it is the usual form of its name."""
        return any(each is not None and each.cell.ranked for each in self.standings)

    @property
    def ahead(self) -> bool:
        """Whether it is on a frontier."""
        return any(each is not None and each.frontier for each in self.standings)


@dataclass(frozen=True)
class Section:
    """The rows of a setting under its words, which filters choose by."""

    words: Mapping[str, str]
    links: Sequence[Link]
    lines: Sequence[Line]


def page(board: Board, figures: Sequence[Drawing]) -> str:
    """The page as HTML, with the pictures that were drawn of the board."""
    style = resource("report.css") + resource("board.css", WING)
    script = resource("board.js", WING)
    sections = [_section(board, setting) for setting in board.settings]
    never = [Line(Method(a.name, None, ""), a, _links(a), [None] * len(board.suites)) for a in board.never]
    return (
        environment()
        .get_template("board.html")
        .render(
            board=board,
            sections=sections,
            never=never,
            filters={
                name: (title, list(dict.fromkeys(section.words[name] for section in sections)))
                for name, title in FILTERS.items()
            },
            families=sorted({line.about.family for line in [*chain(*(s.lines for s in sections)), *never]}),
            pictures=[picture(figure) for figure in figures],
            runs=[(run, len(run.analysis.records), report_of(run), _of_form(run)) for run in board.runs],
            report_of=report_of,
            resamples=RESAMPLES,
            csv=f"data:text/csv;charset=utf-8,{quote(table(board))}",
            version=version("epmq"),
            style=style,
            script=script,
            policy=policy(style, script),
        )
        + "\n"
    )


def report_of(run: Run) -> str:
    """Where a run's report is, from the page."""
    return f"runs/{quote(run.name, safe='')}/report.html"


def source_of(about: About) -> str | None:
    """Where the source of a method is, from the page; None where the board has none."""
    return None if about.source is None else f"source/{quote(about.code)}.txt"


def table(board: Board) -> str:
    """All rows as CSV: fractions at full precision, one line for each cell."""
    fields = [dict(_fields(each)) for each in board.standings]
    return csv_text(list(fields[0]), fields)


def _fields(standing: Standing) -> Iterator[tuple[str, object]]:
    cell, ranks = standing.cell, standing.ranks
    yield "suite", cell.suite
    yield "method", cell.method.name
    yield "variant", cell.method.variant
    yield "target", cell.method.target
    yield "kind", cell.method.kind
    yield "merge", cell.setting.merge
    yield "merge_options", " ".join(f"{name}={value}" for name, value in cell.setting.options)
    yield "bits", cell.setting.bits
    yield "grid", grid_words(cell.setting, ())
    yield "samples", cell.setting.samples
    yield "device", cell.setting.device
    yield "dtype", cell.setting.dtype
    yield "seeds", "+".join(map(str, cell.draws))
    yield "average", cell.average
    yield "standard_error", cell.standard_error
    yield "spread", cell.spread
    yield "bits_per_weight", cell.bits_per_weight
    yield "rank_low", ranks and ranks.low
    yield "rank_high", ranks and ranks.high
    yield "ranked", ranks and ranks.of
    yield "frontier", int(standing.frontier)
    yield "runs", " ".join(run.name for run in cell.runs)


def _section(board: Board, setting: Setting) -> Section:
    words = {
        "merge": merge_words(setting),
        "bits": bits_words(setting),
        "grid": grid_words(setting, board.settings),
        "samples": samples_words(setting),
        "machine": machine_words(setting),
    }
    merge = board.registered.merges.get(setting.merge or "")
    lines = [
        Line(method, about, _links(about), [by_suite.get(suite) for suite in board.suites])
        for method, by_suite in board.rows(setting)
        for about in [board.about(method.name)]
    ]
    return Section(words, _links(merge) if merge else [], lines)


def _links(about: About) -> list[Link]:
    """A method's paper and source, each as words where there is no address."""
    found = [Link(about.reference, address(about.reference))] if about.reference else []
    if source := source_of(about):
        found.append(Link("source", source))
    elif about.code:
        found.append(Link(about.code, address(about.code)))
    return found


def _of_form(run: Run) -> list[Link]:
    if run.form is None:
        return []
    form = run.form
    return [
        Link(", ".join(form.authors), None),
        Link(form.reference, address(form.reference)),
        Link(form.code, address(form.code)),
    ]
