"""The comparison with the paper as Markdown for people, and as CSV and JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from results.paper import ledger
from results.paper.claims import READINGS, Finding, Verdict
from results.paper.compare import Comparison, Line, fields
from results.tables.formats import Table, Text, csv_text, escape_markdown, json_text, markdown

_CSV = (
    *("section", "suite", "rehearsal", "merge", "bits", "method", "quantity", "ours", "low", "high"),
    *("published", "difference", "tolerance", "status", "note", "source"),
)


def to_markdown(comparison: Comparison) -> str:
    """The comparison as GitHub's Markdown."""
    return "\n".join(_parts(comparison))


def _parts(comparison: Comparison) -> Iterator[str]:
    manifest, paper = comparison.manifest, ledger.paper()
    yield f"# {escape_markdown(manifest.suite)} version {manifest.suite_version} beside the paper\n"
    yield from (f"> **{escape_markdown(mark)}**\n" for mark in comparison.marks)
    yield f"Paper: {paper.title} (arXiv {paper.arxiv}, {paper.date}). All values are in percent.\n"
    if headlines := [line for line in comparison.lines if line.section == "headline"]:
        yield "## Headline numbers\n"
        yield _headlines(headlines)
    if bounds := [line for line in comparison.lines if line.section == "bound"]:
        yield "## Published full-precision bounds\n"
        yield _bounds(bounds)
    if comparison.lines:
        known = ledger.disagreement(manifest.suite)
        yield (
            "A match agrees to 0.05 points; within noise is up to the tolerance: the largest of 0.5 points, "
            f"the known disagreement between public full-precision reproductions ({known:.2f} on this suite) "
            "and the half-width of the binomial 95 % interval of our average.\n"
        )
    yield "## Claims\n"
    yield _summary(comparison)
    for verdict in comparison.verdicts:
        yield f"### {verdict.claim.id}: {verdict.overall}\n"
        yield f"> {escape_markdown(verdict.claim.text)}\n"
        yield f"{escape_markdown(verdict.rule)}\n"
        yield _findings(verdict)


def _headlines(lines: Sequence[Line]) -> str:
    headers = ["merge", "method", "bits", "ours", "paper", "difference", "tolerance", "status"]
    rows = [[_merge(line), line.method, str(line.bits), *_numbers(line), line.status] for line in lines]
    notes = dict.fromkeys(line.note for line in lines if line.note)
    return "\n".join([_table(headers, rows, words=3), *(f"In the abstract: {note}.\n" for note in notes)])


def _merge(line: Line) -> str:
    if line.merge_stated:
        return line.merge or ""
    return f"{line.merge} (not stated)" if line.merge else "not stated"


def _bounds(lines: Sequence[Line]) -> str:
    headers = ["control", "merge", "published by", "ours", "published", "difference", "tolerance", "status"]
    rows = [
        [line.method, line.merge or "", line.source, *_numbers(line), line.status, _worst(line)]
        for line in lines
    ]
    return _table([*headers, "largest task difference"], rows, words=3)


def _numbers(line: Line) -> list[str]:
    difference = "" if line.difference is None else f"{line.difference:+.2f}"
    return [_number(line.ours), _number(line.published), difference, _number(line.tolerance)]


def _worst(line: Line) -> str:
    if line.worst_task is None:
        return ""
    task, difference, known = line.worst_task
    return f"{task} {difference:+.1f} (sources differ by {known:.1f})"


def _summary(comparison: Comparison) -> str:
    headers = ["claim", *(f"{name} ({words})" for name, words in READINGS.items()), "overall"]
    rows = [
        [verdict.claim.id, *(verdict.readings[name] for name in READINGS), verdict.overall]
        for verdict in comparison.verdicts
    ]
    return _table(headers, rows, words=len(headers))


def _findings(verdict: Verdict) -> str:
    if not verdict.findings:
        return "The run lacks the cells that this needs.\n"
    headers = ["method", "merge", "bits", "quantity", "numbers behind it", "value", "95 % interval", "passes"]
    rows = [
        [
            finding.method,
            finding.merge or "",
            str(finding.bits),
            finding.quantity,
            finding.note,
            _value(finding),
            _interval(finding),
            "yes" if finding.passed else "no",
        ]
        for finding in verdict.findings
    ]
    return _table(headers, rows, words=5)


def _value(finding: Finding) -> str:
    return f"{finding.value:g}" if finding.low is None else f"{finding.value:+.2f}"


def _interval(finding: Finding) -> str:
    return "" if finding.low is None else f"{finding.low:+.2f} to {finding.high:+.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    return markdown(Table("", headers, [[Text(cell) for cell in row] for row in rows], words))


def to_csv(comparison: Comparison) -> str:
    """Every published number and every test of a claim as one row of CSV."""
    same = {"suite": comparison.manifest.suite, "rehearsal": comparison.manifest.rehearsal}
    lines = [
        {**same, "quantity": "average", **{name: value for name, value in vars(line).items() if name in _CSV}}
        for line in comparison.lines
    ]
    findings = [
        {
            **same,
            **{name: value for name, value in vars(finding).items() if name in _CSV},
            "section": verdict.claim.id,
            "ours": finding.value,
            "status": "passes" if finding.passed else "fails",
        }
        for verdict in comparison.verdicts
        for finding in verdict.findings
    ]
    return csv_text(_CSV, [*lines, *findings])


def to_json(comparison: Comparison) -> str:
    """Everything, the numbers of each task and layer behind the claims included."""
    return json_text(fields(comparison))


FORMATS: dict[str, Callable[[Comparison], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json}
