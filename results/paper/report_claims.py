"""The tables of a report that put a run beside the paper."""

from __future__ import annotations

from collections.abc import Sequence

from results.paper.claims import Finding, Verdict
from results.paper.compare import Comparison, Line
from results.tables.formats import Table, Text

_NUMBERS = ("ours", "published", "difference", "tolerance", "status")


def headline_table(comparison: Comparison) -> Table | None:
    """The paper's headline numbers with ours beside them; None where it has none on the suite."""
    lines = [line for line in comparison.lines if line.section == "headline"]
    rows = [
        [
            Text(line.merge or "not stated"),
            Text(line.method),
            _bits(line.bits),
            *_numbers(line),
            Text(line.note),
        ]
        for line in lines
    ]
    return _table("The paper's headline numbers, in percent", ("merge", "method", "bits"), rows, ("note",))


def bounds_table(comparison: Comparison) -> Table | None:
    """The published full-precision bounds with ours beside them; None where there are none."""
    lines = [line for line in comparison.lines if line.section == "bound"]
    rows = [[*_words(line, ""), _bits(line.bits), *_numbers(line), Text(line.source)] for line in lines]
    caption = "Published full-precision bounds, in percent"
    return _table(caption, ("merge", "control", "bits"), rows, ("source",))


def _table(
    caption: str, words: Sequence[str], rows: Sequence[Sequence[Text]], more: Sequence[str]
) -> Table | None:
    if not rows:
        return None
    return Table(caption, [*words, *_NUMBERS, *more], rows, words=2, heading=1)


def _words(line: Line, no_merge: str) -> list[Text]:
    return [Text(line.merge or no_merge), Text(line.method)]


def _numbers(line: Line) -> list[Text]:
    return [
        _number(line.ours, ".2f"),
        _number(line.published, ".2f"),
        _number(line.difference, "+.2f"),
        _number(line.tolerance, ".2f"),
        Text(line.status),
    ]


def _number(value: float | None, form: str) -> Text:
    return Text("") if value is None else Text(format(value, form), sort=value)


def _bits(bits: int | None) -> Text:
    return Text(str(bits or "full"), sort=bits or 99)


def findings_table(verdict: Verdict) -> Table | None:
    """The tests of a claim with the numbers behind them; None where none could be made."""
    if not verdict.findings:
        return None
    headers = ("method", "merge", "quantity", "numbers behind it", "passes", "bits", "value", "95 % interval")
    rows = [
        [
            Text(finding.method),
            Text(finding.merge or ""),
            Text(finding.quantity),
            Text(finding.note),
            Text("yes" if finding.passed else "no"),
            _bits(finding.bits),
            _number(finding.value, "g" if finding.low is None else "+.2f"),
            Text(_interval(finding)),
        ]
        for finding in verdict.findings
    ]
    return Table(f"Tests of {verdict.claim.id}", headers, rows, words=5)


def _interval(finding: Finding) -> str:
    return "" if finding.low is None else f"{finding.low:+.2f} to {finding.high:+.2f}"
