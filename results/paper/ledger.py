"""The paper's ledger: its headline numbers and claims, and published full-precision results, with sources.

The data is in ``results/paper/``. All values are percent; nothing there was computed or guessed by us.
"""

from __future__ import annotations

import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

FOLDER = Path(__file__).parent


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Paper(_Form):
    """The paper that the numbers and claims are of."""

    title: str
    arxiv: str
    date: str
    licence: str


class Headline(_Form):
    """A pair of averages that the abstract states. ``merge`` is None where it does not say which.

    ``merge_note`` and ``bits_note`` hold the ledger's words where merge or bits are not stated.
    """

    id: str
    suite: str
    merge: str | None
    merge_note: str
    bits: int
    bits_note: str
    baseline: str
    baseline_value: float
    epmq_value: float
    source: str

    @property
    def gain(self) -> float:
        """The paper's E-PMQ minus its baseline, in points."""
        return self.epmq_value - self.baseline_value

    @property
    def note(self) -> str:
        """What the abstract does not state, in words; empty where it states all."""
        notes = {"merge": self.merge_note, "bits": self.bits_note}
        return "; ".join(f"{name} {note}" for name, note in notes.items() if note)


class Claim(_Form):
    """A claim, and how it can be checked."""

    id: str
    text: str
    check: str
    source: str


class Quantity(NamedTuple):
    """A full-precision result that more than one source may give: the control, its merge and its scale."""

    method: str
    merge: str | None
    scale: float | None


# the names under which the sources give a quantity: the control, and the merge that it is of
_NAMES: dict[str, tuple[str, str | None]] = {
    "pre-trained (zero-shot)": ("zero-shot", None),
    "Pre-trained": ("zero-shot", None),
    "fine-tuned individual experts": ("experts", None),
    "Fine-tuned (STL)": ("experts", None),
    "Simple Averaging": ("merged", "simple-average"),
    "Simple Average": ("merged", "simple-average"),
    "Task Arithmetic": ("merged", "task-arithmetic"),
    "Ties-Merging": ("merged", "ties"),
    "RegMean": ("regmean", "simple-average"),
    "RegMean++": ("regmean++", "simple-average"),
}


class Bound(_Form):
    """One published full-precision result. ``suspect``: its average disagrees with its own row."""

    suite: str
    kind: str
    method: str
    params: dict[str, float | str]
    per_task: dict[str, float]
    average: float
    average_is: str
    average_recomputed: float | None
    source: str
    suspect: bool
    note: str

    @property
    def value(self) -> float:
        """The average: from the row's tasks where there are any (more digits), else as published."""
        return self.average if self.average_recomputed is None else self.average_recomputed

    @property
    def quantity(self) -> Quantity | None:
        """What this is a result of; None where it is not one of those that are compared."""
        if self.method not in _NAMES:
            return None
        scale = self.params.get("scaling_factor")
        return Quantity(*_NAMES[self.method], None if scale is None else float(scale))

    @property
    def age(self) -> int:
        """0 for the newer software generation, 1 where the source does not say, 2 for the older one."""
        return 0 if "newer" in self.note else 2 if "older" in self.note else 1


def headlines() -> list[Headline]:
    """The paper's headline numbers."""
    return [Headline(**entry) for entry in _read("headline.json")["headline"]]


def paper() -> Paper:
    """Which paper it is."""
    return Paper(**_read("headline.json")["paper"])


def claims() -> list[Claim]:
    """The paper's claims C1 to C4, and C5, our wording of its thesis."""
    return [Claim(**entry) for entry in _read("claims.json")["claims"]]


@cache
def bounds() -> tuple[Bound, ...]:
    """Every published full-precision result, in the order of its file."""
    return tuple(Bound(**entry) for entry in _read("bounds.json")["entries"])


def suites() -> set[str]:
    """The suites that the paper's headline numbers are of."""
    return {entry.suite for entry in headlines()}


def repeats(suite: str) -> dict[Quantity, list[Bound]]:
    """The usable entries of a suite by quantity, the newest software generation first.

    Suspect entries are left out. Task arithmetic counts per scaling factor; an entry whose source does not
    state the factor is a quantity of its own.
    """
    found: dict[Quantity, list[Bound]] = defaultdict(list)
    for bound in bounds():
        if bound.suite == suite and not bound.suspect and bound.quantity is not None:
            found[bound.quantity].append(bound)
    return {quantity: sorted(entries, key=lambda entry: entry.age) for quantity, entries in found.items()}


def disagreement(suite: str) -> float:
    """The known disagreement between public full-precision reproductions of a suite, in points.

    It is the largest spread (highest minus lowest average) of a quantity that ``repeats`` holds more than
    once: on clip-vit-b32-8 zero-shot and experts (2024 tables, newer files), simple average, task arithmetic
    0.3 (2024 tables, FeatCal's constants) and RegMean++; on clip-vit-l14-8 zero-shot, experts and RegMean++;
    on the suites of 20 tasks zero-shot and experts, whose sources are of one software generation; on
    flan-t5-base-glue8 zero-shot (table, text). 0 where nothing is published twice.
    """
    spreads = [_spread([entry.value for entry in entries]) for entries in repeats(suite).values()]
    return max(spreads, default=0.0)


def task_disagreement(suite: str, task: str) -> float:
    """The same for one task of the suite, in points."""
    spreads = [
        _spread([entry.per_task[task] for entry in entries if task in entry.per_task])
        for entries in repeats(suite).values()
    ]
    return max(spreads, default=0.0)


def _spread(values: list[float]) -> float:
    return max(values) - min(values) if values else 0.0


@cache
def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return data
