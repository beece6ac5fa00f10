"""A run beside the paper: its headline numbers, the published full-precision bounds, and its claims.

All values are points (percent). A difference to a published number is

- a match: the two agree to the digit that is printed (0.05 points),
- within noise: not above the tolerance, the largest of 0.5 points, the known disagreement between public
  full-precision reproductions of the suite (``ledger.disagreement``) and the half-width of the binomial 95 %
  interval of our average,
- a mismatch: above it,
- not run: there is no such cell in the run.

Where the abstract does not say which merge a number is of, it stands beside every merge that the run has at
those bits, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from results.analysis.analysis import Analysis, average
from results.analysis.groups import Group
from results.analysis.rows import mean_tasks
from results.analysis.stats import NORMAL_95, standard_error
from results.paper import ledger
from results.paper.claims import Verdict, judge
from results.paper.findings import FLOOR, READINGS
from results.store import origin
from results.store.records import Manifest, TaskResult

_PRINTED = 0.05


@dataclass(frozen=True)
class Line:
    """One published number with ours beside it, in points; None is "not run".

    ``merge_stated`` is False where the abstract does not say which merge its number is of. ``worst_task`` is
    the task that differs most, where the source gives the tasks: its name, the difference, and the known
    disagreement between public reproductions of that task.
    """

    section: str
    suite: str
    merge: str | None
    bits: int | None
    method: str
    published: float
    note: str
    source: str
    merge_stated: bool = True
    ours: float | None = None
    difference: float | None = None
    tolerance: float | None = None
    status: str = "not run"
    worst_task: tuple[str, float, float] | None = None


@dataclass(frozen=True)
class BesidePaper:
    """A run beside the paper; ``lines`` is empty for a suite that nothing is published on."""

    manifest: Manifest
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def suite(self) -> str:
        """The bundled suite that the run is of, or rehearses; empty where it is of none."""
        return suite_of(self.manifest)

    @property
    def is_the_papers(self) -> bool:
        """Whether the paper has numbers on the run's suite."""
        return self.suite in ledger.suites()

    @property
    def marks(self) -> list[str]:
        """What a reader must know before any number."""
        marks = []
        if self.manifest.rehearsal:
            marks.append(
                "REHEARSAL: made-up stand-ins took the place of checkpoints or data; no number is a result."
            )
        if self.is_the_papers:
            return marks
        if self.manifest.suite in ledger.suites():
            marks.append(
                f"Not known to be the paper's suite: it is called {self.manifest.suite}, and "
                + (
                    "these results do not tell what their suite reads"
                    if self.manifest.suite_sha256 is None
                    else "reads other tasks, data, models or prompts"
                )
                + ". No number of the paper stands beside it."
            )
        else:
            marks.append(
                f"Not the paper's suite: the abstract gives no number on {self.manifest.suite}. The claims "
                "are tested on it all the same; the verdicts say nothing about the paper's own numbers."
            )
        return marks


def suite_of(manifest: Manifest) -> str:
    """The bundled suite that a run is of, by what it reads; of a rehearsal by name; empty for none."""
    return manifest.suite if manifest.rehearsal else origin.suite_of(manifest.suite_sha256) or ""


def compare(analysis: Analysis) -> BesidePaper:
    """Put a run beside the paper.

    Raises:
        UserError: the samples of a cell cannot be used.
    """
    lines = [*_headline_lines(analysis), *_bound_lines(analysis)]
    return BesidePaper(analysis.manifest, tuple(lines), tuple(judge(analysis)))


def status(difference: float, tolerance: float) -> str:
    """The status of a difference to a published number, both in points."""
    if abs(difference) <= _PRINTED:
        return "match"
    return "within noise" if abs(difference) <= tolerance else "mismatch"


def tolerance(suite: str, tasks: dict[str, TaskResult]) -> float:
    """The difference in points up to which an average of ``tasks`` counts as within noise."""
    return max(FLOOR, ledger.disagreement(suite), 100 * NORMAL_95 * standard_error(tasks))


def _headline_lines(analysis: Analysis) -> Iterator[Line]:
    suite = suite_of(analysis.manifest)
    for entry in ledger.headlines():
        if entry.suite != suite:
            continue
        methods = {entry.baseline: entry.baseline_value, **dict.fromkeys(READINGS, entry.epmq_value)}
        for merge in _merges(analysis, entry):
            for method, value in methods.items():
                named = ("headline", entry.suite, merge, entry.bits, method, value, entry.note, entry.source)
                line = Line(*named, merge_stated=entry.merge is not None)
                found = [group for group in analysis.groups if _is_method(group, method, merge, entry.bits)]
                yield from (_beside(replace(line, method=analysis.name(group)), group) for group in found)
                if not found:
                    yield line


def _merges(analysis: Analysis, entry: ledger.Headline) -> Sequence[str | None]:
    """The merges that a headline number stands beside: its own, or all that were run at its bits."""
    if entry.merge is not None:
        return [entry.merge]
    firsts = [group[0] for group in analysis.groups if group[0].kind == "method"]
    return sorted({first.merge for first in firsts if first.merge and first.bits == entry.bits}) or [None]


def _is_method(group: Group, method: str, merge: str | None, bits: int) -> bool:
    first = group[0]
    return (first.kind, first.method, first.merge, first.bits) == ("method", method, merge, bits)


def _bound_lines(analysis: Analysis) -> Iterator[Line]:
    suite = suite_of(analysis.manifest)
    for quantity, entries in ledger.repeats(suite).items():
        newest = entries[0]
        name = quantity.method if quantity.scale is None else f"{quantity.method} {quantity.scale:g}"
        line = Line("bound", suite, quantity.merge, None, name, newest.value, newest.note, newest.source)
        found = [group for group in analysis.groups if _is_control(group, quantity)]
        yield _with_worst_task(_beside(line, found[0]), found[0], newest) if found else line


def _is_control(group: Group, quantity: ledger.Quantity) -> bool:
    first = group[0]
    named = (first.kind, first.method, first.merge) == ("control", quantity.method, quantity.merge)
    return named and (quantity.scale is None or first.merge_options.get("scale") == quantity.scale)


def _beside(line: Line, group: Group) -> Line:
    """The line with the group's mean over its seeds beside the published number."""
    ours = 100 * average(group)
    difference, allowed = ours - line.published, tolerance(line.suite, mean_tasks(group))
    return replace(
        line, ours=ours, difference=difference, tolerance=allowed, status=status(difference, allowed)
    )


def _with_worst_task(line: Line, group: Group, bound: ledger.Bound) -> Line:
    values = {
        task: 100 * result.value for task, result in mean_tasks(group).items() if task in bound.per_task
    }
    differences = {task: value - bound.per_task[task] for task, value in values.items()}
    if not differences:
        return line
    task = max(differences, key=lambda name: abs(differences[name]))
    return replace(line, worst_task=(task, differences[task], ledger.task_disagreement(bound.suite, task)))


def fields(beside: BesidePaper) -> dict[str, object]:
    """The comparison for programs."""
    manifest = beside.manifest
    return {
        "suite": manifest.suite,
        "suite_version": manifest.suite_version,
        "suite_sha256": manifest.suite_sha256,
        "rehearsal": manifest.rehearsal,
        "the_papers_suite": beside.is_the_papers,
        "paper": ledger.paper().model_dump(),
        "disagreement": ledger.disagreement(beside.suite),
        "lines": [asdict(line) for line in beside.lines],
        "claims": [
            {
                **verdict.claim.model_dump(),
                "rule": verdict.rule,
                "verdict": verdict.overall,
                "readings": verdict.readings,
                "findings": [asdict(finding) for finding in verdict.findings],
            }
            for verdict in beside.verdicts
        ],
    }
