"""Claims C1 to C5, each with a verdict from the cells of a run and the numbers behind it.

E-PMQ has two readings here (see ``READINGS``), and each gets a verdict of its own. A claim is tested once for
every merge, number of bits, setting and score that the run has (text suites have two scores, of generated and
of ranked answers); its verdict for a reading is

- supported: every test passes,
- not supported: a test fails and none passes,
- mixed: some pass and some fail,
- cannot tell: no test fails, and the run has too few samples or draws for some,
- not measured: the records lack what the test is on,
- not run: the run lacks the cells.

Overall a claim has the verdict that its readings share, and is mixed where they differ; a reading that was
not run or not measured does not count. ``RULES`` says when a single test passes. Intervals count draws of the
calibration samples where a run has several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from results.analysis.analysis import Analysis
from results.paper import ledger
from results.paper.deviations import coupling
from results.paper.findings import READINGS, Finding, combined
from results.paper.gains import ablations, gain, together
from results.paper.losses import no_loss
from results.paper.rules import RULES

_TESTS: dict[str, Callable[[Analysis], Iterator[Finding]]] = {
    "C1": gain,
    "C2": ablations,
    "C3": coupling,
    "C4": no_loss,
    "C5": together,
}


@dataclass(frozen=True)
class Verdict:
    """A claim, the rule of its tests, its verdict by reading and overall, and the tests."""

    claim: ledger.Claim
    rule: str
    findings: tuple[Finding, ...]
    readings: dict[str, str] = field(default_factory=dict)
    overall: str = "not run"


def judge(analysis: Analysis) -> list[Verdict]:
    """The verdict on each claim.

    Raises:
        UserError: the samples of a cell cannot be used.
    """
    return [_verdict(claim, analysis) for claim in ledger.claims()]


def _verdict(claim: ledger.Claim, analysis: Analysis) -> Verdict:
    places = list(READINGS)
    findings = tuple(sorted(_TESTS[claim.id](analysis), key=lambda finding: places.index(finding.reading)))
    readings = {
        reading: combined([finding for finding in findings if finding.reading == reading])
        for reading in READINGS
    }
    found = set(readings.values())
    known = found - {"not run", "not measured"} or found - {"not run"} or found
    overall = known.pop() if len(known) == 1 else "mixed"
    return Verdict(claim, RULES[claim.id], findings, readings, overall)
