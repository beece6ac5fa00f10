"""The comparison with the paper as Markdown for people, and as CSV and JSON for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from results.paper import ledger
from results.paper.compare import BesidePaper, Line, fields
from results.paper.findings import Finding
from results.paper.tables import bounds_table, claims_table, findings_table, headline_table
from results.tables.formats import csv_text, escape_markdown, json_text, markdown

_CSV = (
    *("section", "suite", "rehearsal", "merge", "bits", "method", "quantity", "ours", "low", "high"),
    *("published", "difference", "tolerance", "status", "note", "source"),
)


def to_markdown(beside: BesidePaper) -> str:
    """The comparison as GitHub's Markdown."""
    return "\n".join(_parts(beside))


def _parts(beside: BesidePaper) -> Iterator[str]:
    manifest, paper = beside.manifest, ledger.paper()
    yield f"# {escape_markdown(manifest.suite)} version {manifest.suite_version} beside the paper\n"
    yield from (f"> **{escape_markdown(mark)}**\n" for mark in beside.marks)
    yield f"Paper: {paper.title} (arXiv {paper.arxiv}, {paper.date}). All values are in percent.\n"
    if headlines := headline_table(beside):
        yield f"## Headline numbers\n\n{markdown(headlines)}"
    if bounds := bounds_table(beside):
        yield f"## Published full-precision bounds\n\n{markdown(bounds)}"
    if beside.lines:
        known = ledger.disagreement(beside.suite)
        yield (
            "A match agrees to 0.05 points; within noise is up to the tolerance: the largest of 0.5 points, "
            f"the known disagreement between public full-precision reproductions ({known:.2f} on this suite) "
            "and the half-width of the binomial 95 % interval of our average.\n"
        )
    yield f"## Claims\n\n{markdown(claims_table(beside))}"
    for verdict in beside.verdicts:
        yield f"### {verdict.claim.id}: {verdict.overall}\n"
        yield f"> {escape_markdown(verdict.claim.text)}\n"
        yield f"{escape_markdown(verdict.rule)}\n"
        findings = findings_table(verdict)
        yield markdown(findings) if findings else "The run lacks the cells that this needs.\n"


def to_csv(beside: BesidePaper) -> str:
    """Every published number and every test of a claim as one row of CSV."""
    same = {"suite": beside.manifest.suite, "rehearsal": beside.manifest.rehearsal}
    lines = [{**same, "quantity": "average", **_csv_fields(line)} for line in beside.lines]
    findings = [
        {
            **same,
            **_csv_fields(finding),
            "section": verdict.claim.id,
            "ours": finding.value,
            "status": finding.outcome,
        }
        for verdict in beside.verdicts
        for finding in verdict.findings
    ]
    return csv_text(_CSV, [*lines, *findings])


def _csv_fields(entry: Line | Finding) -> dict[str, object]:
    return {name: value for name, value in asdict(entry).items() if name in _CSV}


def to_json(beside: BesidePaper) -> str:
    """Everything, the numbers of each task and layer behind the claims included."""
    return json_text(fields(beside))


FORMATS: dict[str, Callable[[BesidePaper], str]] = {"md": to_markdown, "csv": to_csv, "json": to_json}
