"""Tests of claims: what one is, how those of a reading make a verdict, and which cells are E-PMQ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from results.analysis.analysis import Analysis, Score
from results.analysis.groups import Group, pairs
from results.store.records import Record

READINGS: Final = {"epmq": "A, experts' weights", "epmq-features": "B, experts' features"}
FLOOR: Final = 0.5  # points: a smaller gain, or difference to a published number, counts for nothing

Outcome = Literal["passes", "fails", "cannot tell", "not measured"]


@dataclass(frozen=True)
class Finding:
    """One test of a claim. ``value`` with its 95 % interval is in the unit that ``quantity`` names.

    ``score`` is what the test is on. Findings that share an ``either`` are one test, which any of them
    passes. ``details`` holds the numbers behind it, one entry per task or layer.
    """

    reading: str
    method: str
    merge: str | None
    bits: int | None
    quantity: str
    value: float
    outcome: Outcome
    low: float | None = None
    high: float | None = None
    note: str = ""
    score: Score = "generated"
    either: str = ""
    details: tuple[dict[str, object], ...] = ()


def combined(findings: Sequence[Finding]) -> str:
    """The verdict of a reading: what its tests, one for each ``either``, say together."""
    alternatives: dict[str, list[Outcome]] = {}
    for number, finding in enumerate(findings):
        alternatives.setdefault(finding.either or str(number), []).append(finding.outcome)
    order: tuple[Outcome, ...] = ("passes", "cannot tell", "fails", "not measured")
    found = {next(one for one in order if one in some) for some in alternatives.values()}
    found = found - {"not measured"} or found
    if not found:
        return "not run"
    if {"passes", "fails"} <= found:
        return "mixed"
    if "fails" in found:
        return "not supported"
    one = "cannot tell" if "cannot tell" in found else found.pop()
    return "supported" if one == "passes" else one


def epmq(analysis: Analysis, rounding: str | None = None) -> Iterator[tuple[str, Group]]:
    """Yield the groups that are E-PMQ as the paper has it, anchored, with the reading each is of."""
    for group in analysis.groups:
        first = group[0]
        if (first.kind, first.target) != ("method", "expert") or not first.axes.get("anchor"):
            continue
        if rounding in (None, first.rounding):
            yield reading_of(first), group


def reading_of(record: Record) -> str:
    """The reading of a cell on the expert target."""
    return "epmq-features" if record.axes.get("mixing") else "epmq"


def is_plain(rounding: str | None) -> Callable[[Record], bool]:
    """Whether a record is the rounding without E-PMQ."""
    return lambda record: (record.kind, record.target, record.rounding) == ("method", "merged", rounding)


def found(
    analysis: Analysis,
    reading: str,
    group: Group,
    quantity: str,
    value: float,
    outcome: Outcome,
    **more: object,
) -> Finding:
    """A finding on a group of cells."""
    first = group[0]
    finding = Finding(reading, analysis.name(group), first.merge, first.bits, quantity, value, outcome)
    return replace(finding, **more)  # type: ignore[arg-type]


def of_difference(
    analysis: Analysis,
    reading: str,
    sides: tuple[Group, Group],
    quantity: str,
    judged: Callable[[float, float], Outcome],
    notes: Sequence[str] = (),
    either: str = "",
) -> Iterator[Finding]:
    """Findings on the paired difference of two groups in points, one for each score that both have.

    ``judged`` turns the ends of a 95 % interval into an outcome; the note says how many draws there are, and
    where single draws come out otherwise.
    """
    for score in analysis.scores(*sides):
        value, low, high = (100 * x for x in analysis.difference(*sides, score)[:3])
        outcome = judged(low, high)
        alone = []
        for a, b in pairs(*sides):
            ends = analysis.difference((a,), (b,), score)[1:3]
            alone.append(judged(*(100 * end for end in ends)))
        note = "; ".join([*filter(None, notes), draws(alone, outcome)])
        yield found(
            analysis,
            reading,
            sides[0],
            f"{quantity}, points" + suffix(score),
            value,
            outcome,
            low=low,
            high=high,
            note=note,
            score=score,
            either=either and f"{either} {score}",
        )


def suffix(score: Score) -> str:
    """What a quantity says of its score: nothing of the one that every suite has."""
    return f" ({score})" if score != "generated" else ""


def draws(alone: Sequence[Outcome], together: Outcome) -> str:
    """How many draws there are, and what those say that alone say something else than all together."""
    if len(alone) == 1:
        return "one draw"
    others = {one: alone.count(one) for one in sorted(set(alone)) if one != together}
    if not others:
        return f"{len(alone)} draws, alike"
    words = ", ".join(f"{one} under {count}" for one, count in others.items())
    return f"{len(alone)} draws; depends on the draw: alone, {words}"


def above_nothing(low: float, high: float) -> Outcome:
    """Whether a 95 % interval in points is above 0, or ends below what counts for anything."""
    return "passes" if low > 0 else "fails" if high < FLOOR else "cannot tell"


def reaching(needed: float) -> Callable[[float, float], Outcome]:
    """Whether an interval is above 0 and reaches ``needed`` points."""
    return lambda low, high: "fails" if high < needed else "passes" if low > 0 else "cannot tell"
