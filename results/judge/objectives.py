"""Layer objectives beside a golden run's: how likely a change is where nothing but the processor changed.

Rounding is chaotic through the layers: the last bit of a product decides a code that is nearly halfway, and
where later layers see the outputs of earlier ones, all that follows differs. So a layer's objective is tested
on its own only where its inputs do not depend on earlier roundings (``source`` merged or expert), and for the
other cells the mean over layers alone. Both against the spread of the logarithm of the objective, which
``python -m benchmarks.studies.replay`` measures and ``spread.json`` holds, with Student's t of few degrees of
freedom for the heavy tails that single codes make.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from results.store.records import Record

SPREAD: Final = Path(__file__).parent / "spread.json"
FREEDOM: Final = 4  # degrees of freedom: tails about as heavy as the replays' are
ROUND_OFF: Final = 1e-12  # objectives below it are round-off of float64, not quantisation error


@dataclass(frozen=True)
class Change:
    """The objective of one layer, or the geometric mean over a cell's, before and now.

    ``spread`` is the standard deviation of log(now / golden) without a change of the code; None where the
    change is shown and not tested.
    """

    quantity: str
    golden: float
    now: float
    spread: float | None

    @property
    def ratio(self) -> float:
        """log(now / golden), of values not below round-off."""
        return math.log(max(self.now, ROUND_OFF) / max(self.golden, ROUND_OFF))

    @property
    def pvalues(self) -> tuple[float, float]:
        """The p-values that it rose and that it fell; raises AssertionError where it is not tested."""
        from scipy.special import stdtr

        assert self.spread is not None
        t = self.ratio / self.spread
        return float(stdtr(FREEDOM, -t)), float(stdtr(FREEDOM, t))


def changes(old: Record, new: Record) -> list[Change]:
    """Every layer's change, and the mean's where the cell has a layer whose objective is not round-off."""
    now = {layer.name: layer.objective for layer in new.layers}
    spread = spreads(old)
    own = spread["layer"] if inputs_are_fixed(old) else None
    found = [
        Change(f"objective {layer.name}", layer.objective, now[layer.name], own)
        for layer in old.layers
        if layer.name in now
    ]
    real = [change for change in found if max(change.golden, change.now) > ROUND_OFF]
    if real:
        golden, value = (
            math.exp(fmean(math.log(max(x, ROUND_OFF)) for x in side))
            for side in ([change.golden for change in real], [change.now for change in real])
        )
        of_mean = max(spread["mean"], spread["layer"] / math.sqrt(len(real)))  # measured on dozens of layers
        found.append(Change(f"objective, mean of {len(real)} layers", golden, value, of_mean))
    return found


def lost_layers(old: Record, new: Record) -> Iterator[tuple[str, float]]:
    """Layers of the golden record that the new one lacks, with their objectives."""
    names = {layer.name for layer in new.layers}
    return ((layer.name, layer.objective) for layer in old.layers if layer.name not in names)


def inputs_are_fixed(record: Record) -> bool:
    """Whether no layer's inputs depend on the rounding of another."""
    return record.bits is None or source(record) in ("merged", "expert")


def source(record: Record) -> str:
    """Where the inputs of the last calibration pass come from; the default where the record does not say."""
    names = [name for name in record.axes if name.split(".")[-1] == "source"]
    return str(record.axes[max(names, key=len)]) if names else "quantised"


def spreads(record: Record) -> dict[str, float]:
    """The standard deviation of a layer's log objective, and of their mean, as replays have it."""
    kind = "fixed inputs" if inputs_are_fixed(record) else "quantised inputs"
    measured: dict[str, float] = _measured()[kind]
    return measured


@cache
def _measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SPREAD.read_text("utf-8"))["spread"]
    return found
