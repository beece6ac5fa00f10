"""The paper's claims C1 to C4, each with a verdict from the cells of a run and the numbers behind it.

E-PMQ has two readings here (see ``READINGS``), and each gets a verdict of its own. A claim is tested once for
every merge, number of bits and setting that the run has; its verdict for a reading is

- supported: every test passes,
- not supported: none passes,
- mixed: some pass,
- not run: the run lacks the cells.

Overall a claim has the verdict that its readings share, and is mixed where they differ; a reading that was
not run does not count. ``RULES`` says when a single test passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final, NamedTuple

from results.analysis.analysis import Analysis, average
from results.analysis.groups import Group, pairs
from results.analysis.stats import holm, score, task_pvalues
from results.paper import ledger
from results.store.records import LayerResult, Record

READINGS: Final = {"epmq": "A, experts' weights", "epmq-features": "B, experts' features"}
LEVEL: Final = 0.05
FLOOR: Final = 0.5  # points within which a difference to a published number counts for nothing


# by claim, what is tested and when a test passes: what a verdict is shown with
RULES: Final = {
    "C1": (
        "C1: E-PMQ minus GPTQ on the same merge, bits, grid, calibration seed and test samples, in "
        "points.\n\n"
        "Passes where the paired 95 % interval is above 0. On a suite, merge and bits that the abstract "
        "gives numbers for, the size counts too: the interval must reach the paper's gain less 0.5 "
        "points."
    ),
    "C2": (
        "C2: E-PMQ minus each of its ablations, in points: without the expert target (GPTQ), without "
        "the anchor.\n\n"
        "Passes where the paired 95 % interval is above 0, so that what was left out had its share in "
        "the gain. Counts as not run where one of the two ablations is missing."
    ),
    "C3": (
        "C3: whether the quantisation deviation can be lowered without raising the expert-relative one.\n\n"
        "With the squared deviations of a layer, Q = ||W_m X - Q X||^2, E = sum_t ||W_t X - Q X||^2 and "
        "M = sum_t ||W_t X - W_m X||^2, each cell on its own inputs and so relative to its own M: if "
        "the two were independent, GPTQ, which lowers Q, would lower E as well. They trade off at a "
        "layer where E-PMQ has the lower E / M and the higher Q / M of the two. Passes where they do so "
        "at more than half of the layers (one-sided sign test at 5 %). E is measured against the "
        "experts' weights, which reading A aims at; reading B aims at the experts' features, and no "
        "deviation from those is recorded.\n\n"
        "The note gives the means over layers of E / M, of Q / M and of the cosine (E - M - Q) / (2 "
        "sqrt(M Q)): near 0 where rounding errors ignore the experts, negative where they are spent on "
        "undoing the merge."
    ),
    "C4": (
        "C4: every task of E-PMQ against the same rounding without E-PMQ (the merged target).\n\n"
        "A task loses more than noise where McNemar's exact one-sided test (Spearman: the paired "
        "bootstrap's) says so at 5 %, under Holm's adjustment over all tasks, seeds and cells of a "
        "reading. Passes where no task does under any seed."
    ),
}


@dataclass(frozen=True)
class Finding:
    """One test of a claim. ``value`` with its 95 % interval is in the unit that ``quantity`` names.

    ``details`` holds the numbers behind it, one entry per task or layer.
    """

    reading: str
    method: str
    merge: str | None
    bits: int | None
    quantity: str
    value: float
    passed: bool
    low: float | None = None
    high: float | None = None
    note: str = ""
    details: tuple[dict[str, object], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim of the paper, the rule of its tests, its verdict by reading and overall, and the tests."""

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
    test, places = _TESTS[claim.id], list(READINGS)
    findings = tuple(sorted(test(analysis), key=lambda finding: places.index(finding.reading)))
    readings = {
        reading: _combined([finding.passed for finding in findings if finding.reading == reading])
        for reading in READINGS
    }
    known = {verdict for verdict in readings.values() if verdict != "not run"}
    overall = "not run" if not known else known.pop() if len(known) == 1 else "mixed"
    return Verdict(claim, RULES[claim.id], findings, readings, overall)


def _combined(passed: Sequence[bool]) -> str:
    if not passed:
        return "not run"
    return "supported" if all(passed) else "mixed" if any(passed) else "not supported"


def gain(analysis: Analysis) -> Iterator[Finding]:
    """Test E-PMQ against GPTQ, see ``RULES``."""
    for reading, group in _epmq(analysis, rounding="gptq"):
        if (other := analysis.partner(group, _is_plain("gptq"))) is None:
            continue
        value, low, high = (100 * x for x in analysis.difference(group, other)[:3])
        stated = paper_gain(group[0])
        note = "" if stated is None else f"the paper's gain: {stated:+.1f}"
        passed = low > 0 and (stated is None or high >= stated - FLOOR)
        yield _finding(analysis, reading, group, "minus gptq, points", value, passed, (low, high), note)


def paper_gain(record: Record) -> float | None:
    """The paper's E-PMQ minus GPTQ for a cell's suite, merge and bits, in points, if it gives one."""
    for entry in ledger.headlines():
        if (entry.suite, entry.bits) == (record.suite, record.bits) and entry.merge in (None, record.merge):
            return entry.gain
    return None


def ablations(analysis: Analysis) -> Iterator[Finding]:
    """Test E-PMQ against each of its ablations, see ``RULES``."""
    for reading, group in _epmq(analysis, rounding="gptq"):
        without = {
            "minus no expert target (gptq), points": analysis.partner(group, _is_plain("gptq")),
            "minus no anchor, points": analysis.partner(group, _is_unanchored(reading)),
        }
        for quantity, other in without.items():
            if other is None or None in without.values():
                continue
            value, low, high = (100 * x for x in analysis.difference(group, other)[:3])
            averages = (100 * average(cells) for cells in (group, other))
            note = "{:.1f} against {:.1f}".format(*averages)
            yield _finding(analysis, reading, group, quantity, value, low > 0, (low, high), note)


def coupling(analysis: Analysis) -> Iterator[Finding]:
    """Test at how many layers the two deviations trade off, see ``RULES``."""
    from scipy.stats import binomtest

    for reading, group in _epmq(analysis, rounding="gptq"):
        other = analysis.partner(group, _is_plain("gptq"))
        layers = [] if other is None else _layers(pairs(group, other))
        if not layers:
            continue
        trades = sum(layer.trades_off for layer in layers)
        passed = bool(binomtest(trades, len(layers), alternative="greater").pvalue < LEVEL)
        means = [
            [fmean(column) for column in zip(*side, strict=True)]
            for side in ([layer.ours for layer in layers], [layer.gptq for layer in layers])
        ]
        shown = zip(_RATIOS, *means, strict=True)
        note = "; ".join(f"{name} {ours:.2f}, gptq {gptq:.2f}" for name, ours, gptq in shown)
        quantity = f"layers of {len(layers)} that trade off"
        details = [layer.as_detail() for layer in layers]
        yield _finding(analysis, reading, group, quantity, trades, passed, None, note, details)


class _Ratios(NamedTuple):
    """Deviations of a layer as ``_RATIOS`` names them: E / M, Q / M and their cosine."""

    expert: float
    quantisation: float
    cosine: float


_RATIOS: Final = ("E/M", "Q/M", "cos")


class _LayerPair(NamedTuple):
    """A layer's ratios, means over seeds, under E-PMQ and under GPTQ."""

    name: str
    ours: _Ratios
    gptq: _Ratios

    @property
    def trades_off(self) -> bool:
        return self.ours.expert < self.gptq.expert and self.ours.quantisation > self.gptq.quantisation

    def as_detail(self) -> dict[str, object]:
        ours = zip(_RATIOS, self.ours, strict=True)
        gptq = zip((f"gptq {name}" for name in _RATIOS), self.gptq, strict=True)
        return {"layer": self.name, **dict(ours), **dict(gptq), "trades off": self.trades_off}


def _layers(records: Sequence[tuple[Record, Record]]) -> list[_LayerPair]:
    """The layers that both cells have deviations of under every seed."""
    layers = []
    for name in [layer.name for layer in records[0][0].layers]:
        sides = [[_deviations(_layer(pair[side], name)) for pair in records] for side in (0, 1)]
        ours, gptq = ([ratios for ratios in side if ratios is not None] for side in sides)
        if len(ours) == len(gptq) == len(records):
            means = (_Ratios(*map(fmean, zip(*side, strict=True))) for side in (ours, gptq))
            layers.append(_LayerPair(name, *means))
    return layers


def _layer(record: Record, name: str) -> LayerResult | None:
    return next((layer for layer in record.layers if layer.name == name), None)


def _deviations(layer: LayerResult | None) -> _Ratios | None:
    """The ratios of a layer; None where a deviation is missing or there is none to share."""
    if layer is None:
        return None
    E, Q, M = layer.expert_deviation, layer.quantisation_deviation, layer.merging_deviation
    if E is None or Q is None or M is None or Q < 0 or not layer.experts_differ:
        return None
    return _Ratios(E / M, Q / M, (E - M - Q) / (2 * math.sqrt(M * Q)) if Q else 0.0)


def no_loss(analysis: Analysis) -> Iterator[Finding]:
    """Test every task of E-PMQ against the same rounding without it, see ``RULES``."""
    for reading in READINGS:
        compared = [
            (group, other)
            for its_reading, group in _epmq(analysis)
            if its_reading == reading
            and (other := analysis.partner(group, _is_plain(group[0].rounding))) is not None
        ]
        tests = [
            (index, task, before.seed, 100 * (score(a[task]) - score(b[task])), pvalue)
            for index, (group, other) in enumerate(compared)
            for after, before in pairs(group, other)
            for a, b in [(analysis.outcomes(after), analysis.outcomes(before))]
            for task, pvalue in task_pvalues(a, b, alternative="less").items()
        ]
        adjusted = holm([test[-1] for test in tests])
        for index, (group, other) in enumerate(compared):
            details = [
                {"task": task, "seed": seed, "points": points, "p": float(p), "loses": bool(p < LEVEL)}
                for (place, task, seed, points, _), p in zip(tests, adjusted, strict=True)
                if place == index
            ]
            changes = [(points, task) for place, task, _, points, _ in tests if place == index]
            lost = [
                f"{task} {points:+.1f}"
                for (points, task), detail in zip(changes, details, strict=True)
                if detail["loses"]
            ]
            worst, task = min(changes, key=lambda change: change[0])
            note = ", ".join(lost) or f"smallest change: {task} {worst:+.1f}"
            quantity = f"tasks that lose to {other[0].method}"
            yield _finding(analysis, reading, group, quantity, len(lost), not lost, None, note, details)


_TESTS: dict[str, Callable[[Analysis], Iterator[Finding]]] = {
    "C1": gain,
    "C2": ablations,
    "C3": coupling,
    "C4": no_loss,
}


def _epmq(analysis: Analysis, rounding: str | None = None) -> Iterator[tuple[str, Group]]:
    """Yield the groups that are E-PMQ as the paper has it, anchored, with the reading each is of."""
    for group in analysis.groups:
        first = group[0]
        if (first.kind, first.target) != ("method", "expert") or not first.axes.get("anchor"):
            continue
        if rounding in (None, first.rounding):
            yield _reading(first), group


def _reading(record: Record) -> str:
    return "epmq-features" if record.axes.get("mixing") else "epmq"


def _is_plain(rounding: str | None) -> Callable[[Record], bool]:
    return lambda record: (record.kind, record.target, record.rounding) == ("method", "merged", rounding)


def _is_unanchored(reading: str) -> Callable[[Record], bool]:
    def wanted(record: Record) -> bool:
        named = (record.kind, record.target, record.rounding) == ("method", "expert", "gptq")
        return named and record.axes.get("anchor") == 0 and _reading(record) == reading

    return wanted


def _finding(
    analysis: Analysis,
    reading: str,
    group: Group,
    quantity: str,
    value: float,
    passed: bool,
    interval: tuple[float, float] | None = None,
    note: str = "",
    details: Sequence[dict[str, object]] = (),
) -> Finding:
    first = group[0]
    low, high = interval or (None, None)
    found = (reading, analysis.name(group), first.merge, first.bits, quantity, value, passed, low, high, note)
    return Finding(*found, tuple(details))
