"""A checkpoint folder on a suite, with the suite's own heads and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm.auto import tqdm

from benchmarks.export import answers
from benchmarks.run.executors import open_workbench
from benchmarks.run.outcome import Outcome
from benchmarks.run.runner import arrays, results_of
from benchmarks.suites.forms import Suite
from benchmarks.workbench.base import Setting
from epmq.checkpoints.lazy import sha256
from epmq.errors import UserError
from epmq.packed.reading import Checkpoint, fitting, note
from results.analysis.stats import standard_error
from results.store.folder import RunFolder
from results.store.records import Record, TaskResult


@dataclass(frozen=True)
class Evaluated:
    """What a checkpoint scored; ``comparison`` is with a record, where one is known."""

    tasks: dict[str, TaskResult]
    record: Record | None
    comparison: answers.Comparison | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = ["task", "metric", "value", "±", "samples"] + (["record"] if self.record else [])
        rows = [self._row(name, {name: task}) for name, task in self.tasks.items()]
        table = tabulate([*rows, self._row("average", self.tasks)], head, "github", disable_numparse=True)
        lines = [table, *(f"note: {note}" for note in self.notes)]
        if self.comparison is not None:
            lines.append(str(self.comparison))
        return "\n\n".join(lines) + "\n"

    def _row(self, name: str, tasks: dict[str, TaskResult]) -> list[str]:
        value = sum(task.value for task in tasks.values()) / len(tasks)
        metrics = {task.metric for task in tasks.values()}
        row = [name, metrics.pop() if len(metrics) == 1 else "", f"{100 * value:.2f}"]
        row += [f"{100 * standard_error(tasks):.2f}", str(sum(task.samples for task in tasks.values()))]
        if self.record is not None:
            known = self.record.tasks.get(name)
            row.append(f"{100 * (self.record.average if known is None else known.value):.2f}")
        return row


def evaluate(
    suite: Suite, folder: Path, setting: Setting, record: tuple[RunFolder, Record] | None = None
) -> Evaluated:
    """Score a checkpoint on every task of a suite.

    Args:
        folder: of a checkpoint in any format that :class:`epmq.packed.reading.Checkpoint` reads.
        record: compare the answers with this record's, sample by sample; without it with the hashes that
            ``epmq.json`` holds, where the folder is an export.

    Raises:
        UserError: the folder is damaged or of another model, or its record is of another suite.
    """
    checkpoint, about = Checkpoint(folder), note(folder)
    notes = _intact(checkpoint, about)
    if record is not None and record[1].suite != suite.name:
        raise UserError(f"{record[0].path}: is of {record[1].suite}, not of {suite.name}; give its own suite")
    workbench = open_workbench(suite, setting)
    tower = workbench.tower
    tower.load_all(fitting(checkpoint, tower))
    done = Outcome()
    for task in tqdm(suite.tasks, desc="evaluating", leave=False, delay=2):
        (done.answers[task.task],) = workbench.answers([tower], task)
    correct, found = arrays(done)
    given: Mapping[str, Any] = {**correct, **found}
    tasks = results_of(done)
    if record is not None:
        run, line = record
        where = f"cell {line.key} of {run.path}"
        return Evaluated(tasks, line, answers.by_sample(given, run.samples(line.key), where), notes)
    known = about.get("answers_sha256")
    if not isinstance(known, dict) or about.get("suite") != suite.name:
        return Evaluated(tasks, None, None, notes)
    where = f"its record, cell {str(about.get('record'))[:16]} of {suite.name}"
    return Evaluated(tasks, None, answers.by_hash(given, known, where), notes)


def _intact(checkpoint: Checkpoint, about: Mapping[str, Any]) -> tuple[str, ...]:
    """Compare an export's weights with the hash beside them; raises UserError where they differ."""
    known = about.get("weights_sha256")
    if known is None:
        return ("the folder is no export of epmq, so that no record is known",)
    if sha256(checkpoint.path) != known:
        raise UserError(
            f"{checkpoint.path}: is not the file that epmq.json names by hash; it was changed or damaged, "
            "export it again"
        )
    return ()
