"""The results folders of a board, opened together: each whole, and all of one version of each suite."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.store import origin
from results.store.folder import read_apart
from results.store.records import Record
from results.store.submission import FORM, Submission, read_form


@dataclass(frozen=True)
class Run:
    """A results folder under its name, with the form of its contribution if it is one."""

    name: str
    analysis: Analysis
    form: Submission | None

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.analysis.folder.path


def opened(folders: Sequence[Path]) -> list[Run]:
    """The folders as runs, by name; one that is named twice comes once.

    Raises:
        UserError: there is none, one cannot be read, is damaged, empty, a rehearsal, or of another suite than
            its name says; two have one name, are of different versions of a suite, or hold one key for
            different cells.
    """
    paths = {os.path.realpath(folder): folder for folder in folders}
    if not paths:
        raise UserError("a board needs results folders; give at least one DIR")
    runs = [_run(Path(real).name, folder) for real, folder in sorted(paths.items())]
    names: dict[str, Run] = {}
    for run in runs:
        _refuse_unusable(run)
        if run.name in names:
            other = names[run.name].path
            raise UserError(f"{run.path}: has the name of {other}, by which reports are linked; rename one")
        names[run.name] = run
    _refuse_apart(runs)
    for run in runs:  # last, for it reads every file
        _refuse_changed(run)
    return [names[name] for name in sorted(names)]


def _run(name: str, folder: Path) -> Run:
    analysis = Analysis.open(folder)
    return Run(name, analysis, read_form(folder) if os.path.lexists(folder / FORM) else None)


def _refuse_unusable(run: Run) -> None:
    manifest = run.analysis.manifest
    if manifest.rehearsal:
        raise UserError(f"{run.path}: is a rehearsal on made-up stand-ins, no result; leave it out")
    if complaint := origin.complaint(manifest):
        raise UserError(f"{run.path}: {complaint}; leave it out")
    if run.analysis.problems:
        raise UserError(f"{run.path}/{run.analysis.problems[0]}; restore the file or run again")
    if not run.analysis.records:
        raise UserError(f"{run.path}: holds no result; run its cells, or leave it out")


def _refuse_apart(runs: Sequence[Run]) -> None:
    of_suite: dict[str, Run] = {}
    cells: dict[str, tuple[Run, Record]] = {}
    for run in runs:
        manifest = run.analysis.manifest
        other = of_suite.setdefault(manifest.suite, run)
        versions = [each.analysis.manifest.suite_version for each in (other, run)]
        if versions[0] != versions[1]:
            raise UserError(
                f"{run.path}: is of {manifest.suite} version {versions[1]}, {other.path} of version "
                f"{versions[0]}; leave out the older one"
            )
        if read_apart(manifest, other.analysis.manifest):
            raise UserError(
                f"{run.path}: its {manifest.suite} reads other tasks, data, models or prompts than that of "
                f"{other.path}; leave one out"
            )
        for record in run.analysis.records:
            first, same = cells.setdefault(f"{manifest.suite} {record.key}", (run, record))
            if _made(same) != _made(record):
                raise UserError(
                    f"{run.path}: its cell {record.key} ({record.method}) was made otherwise than that of "
                    f"{first.path} ({same.method}), and a key is of one cell; restore the wrong one"
                )


def _refuse_changed(run: Run) -> None:
    """Compare every record and every file of samples with its hash."""
    for record in run.analysis.records:
        if record.record_sha256 != record.digest():
            raise UserError(
                f"{run.path}/records.jsonl: record {record.key} is not what its hash says; restore the file "
                f"('epmq verify {run.path}' tells all)"
            )
        found = hashlib.sha256(run.analysis.folder.samples_bytes(record.key)).hexdigest()
        if found != record.samples_sha256:
            raise UserError(
                f"{run.path}/samples/{record.key}.npz: is not the file that its record names; restore it "
                f"('epmq verify {run.path}' tells all)"
            )


def _made(record: Record) -> tuple[object, ...]:
    made = (record.kind, record.merge, record.merge_options, record.method, record.target, record.bits)
    sizes = {task: (result.metric, result.samples) for task, result in record.tasks.items()}
    return (*made, record.axes, record.seed, record.device, record.dtype, sizes)
