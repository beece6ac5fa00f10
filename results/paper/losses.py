"""Claim C4: no task of E-PMQ is worse, by more than a margin, than the same rounding without it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from results.analysis.analysis import Analysis, Score
from results.analysis.groups import Group, pairs
from results.analysis.stats import NORMAL_95, Ranked, hierarchical_bootstrap, paired_counts
from results.paper.findings import Finding, Outcome, draws, epmq, found, is_plain

MARGIN: Final = 3.0  # points: a larger loss on a task is one that matters


class Task(NamedTuple):
    """The change of one task in points with its 95 % interval."""

    name: str
    points: float
    low: float
    high: float

    @property
    def outcome(self) -> Outcome:
        if self.low >= -MARGIN:
            return "passes"
        return "fails" if self.high < -MARGIN else "cannot tell"

    @property
    def visible(self) -> float:
        """The smallest loss in points that the samples could have ruled out, had there been no change."""
        return self.points - self.low


def no_loss(analysis: Analysis) -> Iterator[Finding]:
    """Test every task of E-PMQ against the same rounding without it, see ``RULES``."""
    for reading, group in epmq(analysis):
        other = analysis.partner(group, is_plain(group[0].rounding))
        if other is not None:
            for score in analysis.scores(group, other):
                yield _finding(analysis, reading, (group, other), score)


def _finding(analysis: Analysis, reading: str, sides: tuple[Group, Group], score: Score) -> Finding:
    tasks = _tasks(analysis, sides, score)
    alone = [together(_tasks(analysis, ((a,), (b,)), score)) for a, b in pairs(*sides)]
    outcome = together(tasks)
    worst, blind = min(tasks, key=lambda task: task.points), max(tasks, key=lambda task: task.visible)
    lost = [f"{task.name} {task.points:+.1f}" for task in tasks if task.outcome == "fails"]
    notes = [
        ", ".join(lost) or f"smallest change: {worst.name} {worst.points:+.1f}",
        f"smallest loss that could have been ruled out: {blind.visible:.1f} ({blind.name})",
        "underpowered" if outcome == "cannot tell" and blind.visible > MARGIN else "",
        draws(alone, outcome),
    ]
    return found(
        analysis,
        reading,
        sides[0],
        f"tasks not shown to keep up with {sides[1][0].method}"
        + (f" ({score})" if score != "generated" else ""),
        sum(task.outcome != "passes" for task in tasks),
        outcome,
        note="; ".join(filter(None, notes)),
        score=score,
        details=tuple({**task._asdict(), "outcome": task.outcome} for task in tasks),
    )


def together(tasks: list[Task]) -> Outcome:
    """Every task has to pass: an intersection-union test, each at its own level (Berger 1982)."""
    outcomes = {task.outcome for task in tasks}
    return "fails" if "fails" in outcomes else "cannot tell" if "cannot tell" in outcomes else "passes"


def _tasks(analysis: Analysis, sides: tuple[Group, Group], score: Score) -> list[Task]:
    """The change of each task, its interval over samples and draws; never narrower than ``_adjusted``."""
    runs = [[analysis.outcomes(record, score) for record in pair] for pair in pairs(*sides)]
    found = []
    for task in sorted(runs[0][0]):
        ours, others = ([{task: run[side][task]} for run in runs] for side in (0, 1))
        value, low, high, _ = hierarchical_bootstrap(ours, others)
        if not isinstance(ours[0][task], Ranked):
            counts = np.mean([paired_counts(a, b)[0] for a, b in zip(ours, others, strict=True)], axis=0)
            bounds = _adjusted(*counts)
            low, high = min(low, bounds[0]), max(high, bounds[1])
        found.append(Task(task, *(100 * x for x in (value, low, high))))
    return found


def _adjusted(lost: float, alike: float, gained: float) -> tuple[float, float]:
    """Agresti and Min's 95 % interval (2005) of a paired difference of shares.

    Half a sample is added to each cell of the table of pairs, so that few samples without a discordant pair
    do not look like certainty, as they do to a bootstrap.
    """
    n = lost + alike + gained + 2
    b, c = gained + 0.5, lost + 0.5
    value = (b - c) / n
    half = NORMAL_95 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return value - half, value + half
