"""Claims on accuracy against another row: C1 (GPTQ), C2 (the ablations), C5 (two steps)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from results.analysis.analysis import Analysis
from results.analysis.groups import Group
from results.paper import ledger
from results.paper.findings import (
    FLOOR,
    Finding,
    above_nothing,
    epmq,
    is_plain,
    of_difference,
    reaching,
    reading_of,
)
from results.store import origin
from results.store.records import Record


def gain(analysis: Analysis) -> Iterator[Finding]:
    """Test E-PMQ against GPTQ (C1), see ``RULES``."""
    for reading, group in epmq(analysis, rounding="gptq"):
        if (other := analysis.partner(group, is_plain("gptq"))) is None:
            continue
        entry = headline(group[0])
        note = "" if entry is None else f"the paper's gain: {entry.gain:+.1f}"
        judged = above_nothing if entry is None else reaching(entry.gain - FLOOR)
        either = "" if entry is None or entry.merge else f"any merge of {entry.id}"
        yield from of_difference(analysis, reading, (group, other), "minus gptq", judged, [note], either)


def headline(record: Record) -> ledger.Headline | None:
    """The abstract's numbers for a cell's suite, merge and bits, if it gives any."""
    suite = origin.suite_of(record.suite_sha256)
    for entry in ledger.headlines():
        if (entry.suite, entry.bits) == (suite, record.bits) and entry.merge in (None, record.merge):
            return entry
    return None


def ablations(analysis: Analysis) -> Iterator[Finding]:
    """Test E-PMQ against each of its ablations (C2), see ``RULES``."""
    for reading, group in epmq(analysis, rounding="gptq"):
        without = {
            "minus no expert target (gptq)": analysis.partner(group, _damped_alike(group, is_plain("gptq"))),
            "minus no anchor": analysis.partner(group, _damped_alike(group, _is_unanchored(reading))),
        }
        for quantity, other in without.items():
            if other is not None and None not in without.values():
                yield from of_difference(analysis, reading, (group, other), quantity, above_nothing)


def together(analysis: Analysis) -> Iterator[Finding]:
    """Test E-PMQ against the same target in full precision and GPTQ after it (C5), see ``RULES``."""
    for reading, group in epmq(analysis, rounding="gptq"):
        if other := analysis.partner(group, _is_two_step(reading)):
            yield from of_difference(analysis, reading, (group, other), "minus two-step", above_nothing)


def _damped_alike(group: Group, suits: Callable[[Record], bool]) -> Callable[[Record], bool]:
    damping = group[0].axes.get("damping")
    return lambda record: suits(record) and record.axes.get("damping") == damping


def _is_unanchored(reading: str) -> Callable[[Record], bool]:
    def wanted(record: Record) -> bool:
        named = (record.kind, record.target, record.rounding) == ("method", "expert", "gptq")
        return named and record.axes.get("anchor") == 0 and reading_of(record) == reading

    return wanted


def _is_two_step(reading: str) -> Callable[[Record], bool]:
    def wanted(record: Record) -> bool:
        named = record.kind == "control" and record.method in ("two-step", "two-step-weights")
        return named and reading_of(record) == reading

    return wanted
