"""Claim C3: whether rounding towards the experts trades the rounding's deviation for the experts'."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Final, NamedTuple

from results.analysis.analysis import Analysis
from results.analysis.groups import pairs
from results.paper.findings import Finding, Outcome, draws, epmq, found, is_plain
from results.store.records import LayerResult, Record

NOTHING: Final = 1e-6  # of the merging deviation: a smaller rounding deviation is that of no rounding
_RATIOS: Final = ("E/M", "R/M", "cos")


class _Ratios(NamedTuple):
    """Deviations of a layer: E / M, R / M, and the cosine of rounding and what the centre leaves."""

    expert: float
    rounding: float
    cosine: float


class _LayerPair(NamedTuple):
    """A layer's ratios under E-PMQ and under GPTQ."""

    name: str
    ours: _Ratios
    gptq: _Ratios

    @property
    def trades_off(self) -> bool:
        return self.ours.expert < self.gptq.expert and self.ours.rounding > self.gptq.rounding

    def as_detail(self, seed: int) -> dict[str, object]:
        ours = zip(_RATIOS, self.ours, strict=True)
        gptq = zip((f"gptq {name}" for name in _RATIOS), self.gptq, strict=True)
        return {"layer": self.name, "seed": seed, **dict(ours), **dict(gptq), "trades off": self.trades_off}


def coupling(analysis: Analysis) -> Iterator[Finding]:
    """Test at how many layers the two deviations trade off, see ``RULES``."""
    for reading, group in epmq(analysis):
        other = analysis.partner(group, is_plain(group[0].rounding or "gptq"))
        if other is not None:
            both = pairs(group, other)
            yield _finding(analysis, reading, both, [_layers(a, b) for a, b in both])


def _finding(
    analysis: Analysis,
    reading: str,
    both: Sequence[tuple[Record, Record]],
    by_draw: Sequence[Sequence[_LayerPair]],
) -> Finding:
    group = tuple(record for record, _ in both)
    layers = [layer for draw in by_draw for layer in draw]
    if not all(by_draw):
        note = "the records do not hold the deviations of a rounding from its centre and from its targets"
        return found(analysis, reading, group, "layers that trade off", 0, "not measured", note=note)
    alone: list[Outcome] = [
        "passes" if 2 * sum(layer.trades_off for layer in draw) > len(draw) else "fails" for draw in by_draw
    ]
    outcome = alone[0] if len(set(alone)) == 1 else "cannot tell"
    means = [
        [fmean(column) for column in zip(*side, strict=True)]
        for side in ([layer.ours for layer in layers], [layer.gptq for layer in layers])
    ]
    shown = zip(_RATIOS, *means, strict=True)
    notes = [f"{name} {ours:.2f}, {both[0][1].method} {plain:.2f}" for name, ours, plain in shown]
    return found(
        analysis,
        reading,
        group,
        f"layers of {len(by_draw[0])} that trade off",
        sum(layer.trades_off for layer in layers) / len(by_draw),
        outcome,
        note="; ".join([*notes, draws(alone, outcome)]),
        details=tuple(
            layer.as_detail(pair[0].seed) for pair, draw in zip(both, by_draw, strict=True) for layer in draw
        ),
    )


def _layers(ours: Record, gptq: Record) -> list[_LayerPair]:
    """The layers that both cells have deviations of."""
    others = {layer.name: ratios(layer) for layer in gptq.layers}
    found = [(layer.name, ratios(layer), others.get(layer.name)) for layer in ours.layers]
    return [_LayerPair(name, a, b) for name, a, b in found if a is not None and b is not None]


def ratios(layer: LayerResult) -> _Ratios | None:
    """The ratios of a layer; None where a deviation is missing, or experts or rounding change nothing."""
    E, C, M = layer.expert_deviation, layer.centre_deviation, layer.merging_deviation
    R = layer.rounding_deviation
    if E is None or C is None or M is None or R is None or not layer.experts_differ or R <= NOTHING * M:
        return None
    return _Ratios(E / M, R / M, (E - C - R) / (2 * math.sqrt(C * R)) if C > 0 else 0.0)
