"""What computing a cell gave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.workbench.base import Answers
from epmq.refinement.descent import Curve
from epmq.walk import LayerReport

Place = Literal["before", "after"]  # of a refinement: the first pass, the last pass


@dataclass(frozen=True)
class Trial:
    """A setting that was tried, its held-out distance (None where it is no number), and what it took."""

    setting: dict[str, Any]
    held_out: float | None
    seconds: float


@dataclass(frozen=True)
class Choice:
    """The setting that was chosen, and all that were tried."""

    setting: dict[str, Any]
    trials: list[Trial]


@dataclass
class Outcome:
    """What computing a cell gave, in a form that travels between processes.

    Attributes:
        answers: per task, what the model said and what is right.
        seconds: by phase. Cells that are evaluated together share the time of their pass evenly.
        curves: of each refinement, ``"before"`` or ``"after"``, how its loss went.
        choice: what was chosen on held-out calibration samples, where anything was.
        peak_memory: resident bytes of the process so far (it never falls from one cell to the next).
    """

    answers: dict[str, Answers] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    curves: dict[Place, Curve] = field(default_factory=dict)
    choice: Choice | None = None
    warnings: set[str] = field(default_factory=set)
    peak_memory: int = 0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add what the block takes to a phase."""
        start = time.perf_counter()
        yield
        self.spend(phase, time.perf_counter() - start)

    def spend(self, phase: str, seconds: float) -> None:
        """Add to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
