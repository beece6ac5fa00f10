"""A run beside the paper as tables, which Markdown and the report's page show alike."""

from __future__ import annotations

from collections.abc import Sequence

from results.paper.claims import Verdict
from results.paper.compare import BesidePaper, Line
from results.paper.findings import READINGS, Finding
from results.tables.formats import Table, Text

_NUMBERS = ("ours", "published", "difference", "tolerance", "status")


def headline_table(beside: BesidePaper) -> Table | None:
    """The paper's headline numbers with ours beside them; None where it has none on the suite."""
    rows = [
        [Text(_merge(line)), Text(line.method), _bits(line.bits), *_numbers(line), Text(line.note)]
        for line in beside.lines
        if line.section == "headline"
    ]
    headers = ("merge", "method", "bits", *_NUMBERS, "in the abstract")
    return _table("The paper's headline numbers, in percent", headers, rows)


def _merge(line: Line) -> str:
    if line.merge_stated:
        return line.merge or ""
    return f"{line.merge} (not stated)" if line.merge else "not stated"


def bounds_table(beside: BesidePaper) -> Table | None:
    """The published full-precision bounds with ours beside them; None where there are none."""
    rows = [
        [Text(line.merge or ""), Text(line.method), *_numbers(line), _worst_task(line), Text(line.source)]
        for line in beside.lines
        if line.section == "bound"
    ]
    headers = ("merge", "control", *_NUMBERS, "largest task difference", "source")
    return _table("Published full-precision bounds, in percent", headers, rows)


def _table(caption: str, headers: Sequence[str], rows: Sequence[Sequence[Text]]) -> Table | None:
    return Table(caption, headers, rows, words=2, heading=1) if rows else None


def _numbers(line: Line) -> list[Text]:
    return [
        _number(line.ours, ".2f"),
        _number(line.published, ".2f"),
        _number(line.difference, "+.2f"),
        _number(line.tolerance, ".2f"),
        Text(line.status),
    ]


def _worst_task(line: Line) -> Text:
    if line.worst_task is None:
        return Text("")
    task, difference, known = line.worst_task
    return Text(f"{task} {difference:+.1f} (sources differ by {known:.1f})", sort=abs(difference))


def _number(value: float | None, form: str) -> Text:
    return Text("") if value is None else Text(format(value, form), sort=value)


def _bits(bits: int | None) -> Text:
    return Text(str(bits or "full"), sort=bits or 99)


def claims_table(beside: BesidePaper) -> Table:
    """The verdict on each claim, by reading and overall."""
    headers = ["claim", *(f"{name} ({words})" for name, words in READINGS.items()), "overall"]
    rows = [
        [Text(x) for x in (verdict.claim.id, *(verdict.readings[name] for name in READINGS), verdict.overall)]
        for verdict in beside.verdicts
    ]
    return Table("Claims: C1 to C4 are the paper's, C5 is ours", headers, rows, words=len(headers))


def findings_table(verdict: Verdict) -> Table | None:
    """The tests of a claim with the numbers behind them; None where none could be made."""
    if not verdict.findings:
        return None
    headers = (
        "method",
        "merge",
        "quantity",
        "numbers behind it",
        "outcome",
        "bits",
        "value",
        "95 % interval",
    )
    rows = [
        [
            Text(finding.method),
            Text(finding.merge or ""),
            Text(finding.quantity),
            Text(finding.note),
            Text(finding.outcome),
            _bits(finding.bits),
            _number(finding.value, ".4g" if finding.low is None else "+.2f"),
            Text(_interval(finding)),
        ]
        for finding in verdict.findings
    ]
    return Table(f"Tests of {verdict.claim.id}", headers, rows, words=5)


def _interval(finding: Finding) -> str:
    return "" if finding.low is None else f"{finding.low:+.2f} to {finding.high:+.2f}"
