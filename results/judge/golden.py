"""Golden runs: where they are kept, and how one is replaced, which needs a reason.

``results/committed/golden/<suite>/v<suite version>-<device>/`` holds one run: a results folder, and beside
its records ``history.jsonl``, one line per update: when, why, from which commit, and what moved.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.judge.check import check
from results.judge.verify import verify
from results.store.files import os_errors, read_bounded, write_atomically
from results.store.folder import RunFolder
from results.store.records import Record

_MAX_HISTORY = 1 << 25  # bytes


def locate(path: Path, run: Analysis) -> Path:
    """The golden folder for a run: ``path`` itself if it is one, else its place under the root ``path``.

    Raises:
        UserError: the run has no records, or records of several device classes, so that it has no one place.
    """
    if (path / "manifest.json").exists():
        return path
    devices = sorted({record.device for record in run.records})
    if len(devices) != 1:
        found = ", ".join(devices) or "none"
        raise UserError(
            f"{run.folder.path}: needs records of one device class, not {found}; run on one device"
        )
    return path / run.manifest.suite / f"v{run.manifest.suite_version}-{devices[0]}"


def update(run: Analysis, path: Path, reason: str) -> tuple[Path, dict[str, object]]:
    """Make a run the golden one of its suite version and device; returns its folder and the history entry.

    Records, samples and manifest are copied; the golden folder is replaced as a whole. The entry says what
    moved against the golden run that was there.

    Raises:
        UserError: there is no reason, or the run is a rehearsal, damaged, incomplete, not pinned, or made
            from code that was not committed.
    """
    reason = " ".join(reason.split())
    if not reason:
        raise UserError("a golden run is only replaced for a reason; say it with --reason TEXT")
    _refuse_unfit(run)
    target = locate(path, run)
    replaced = target.exists()
    moves = _moves(run, Analysis.open(target)) if replaced else []
    entry: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "reason": reason,
        "git_commit": run.manifest.environment.get("git_commit"),
        "cells": len(run.records),
        "replaced": replaced,
        "moved": moves,
    }
    with os_errors(target, "write the golden run there"):
        history = target / "history.jsonl"
        before = read_bounded(history, _MAX_HISTORY) if history.exists() else b""
        line = json.dumps(entry, sort_keys=True, allow_nan=False).encode() + b"\n"
        _replace(run.folder, run.records, target, before + line)
    return target, entry


def _moves(run: Analysis, old: Analysis) -> object:
    """What moves by replacing the golden run ``old``; refuses that of another suite or version."""
    held, new = (f"{x.manifest.suite} version {x.manifest.suite_version}" for x in (old, run))
    if held != new:
        raise UserError(f"{old.folder.path}: holds {held}, the run is of {new}; give another --golden")
    if old.manifest.suite_sha256 not in (None, run.manifest.suite_sha256):
        raise UserError(
            f"{old.folder.path}: the {held} there reads other tasks, data, models or prompts than the run's; "
            "give the suite another version or another name"
        )
    return check(run, old).as_json()["moves"]


def _refuse_unfit(run: Analysis) -> None:
    """Raise a UserError for a run that may not become golden."""
    records, problems, folder = run.records, run.problems, run.folder
    missing = {cell.key for cell in folder.manifest.cells} - {record.key for record in records}
    unpinned = [record.key for record in records if not record.pinned]
    dirty = folder.manifest.environment.get("git_dirty")
    faults = {
        "is a rehearsal: its numbers are no results": folder.manifest.rehearsal,
        f"is damaged: {(problems or [''])[0]}": bool(problems),
        "holds no records": not records,
        f"is incomplete: {len(missing)} cells that it was asked for are missing": bool(missing),
        f"is not pinned: cell {(unpinned or [''])[0]}": bool(unpinned),
        "was made from code that is not committed, or git could not say": dirty is not False,
    }
    for fault, found in faults.items():
        if found:
            raise UserError(f"{folder.path}: {fault}; a golden run needs a clean, complete, pinned run")
    failures = [failure for point in verify(run).points for failure in point.failures]
    if failures:
        raise UserError(f"{folder.path}: fails 'epmq verify': {failures[0]}; run again")


def _replace(folder: RunFolder, records: list[Record], target: Path, history: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        (new / "samples").mkdir(parents=True)
        for name in ("manifest.json", "records.jsonl"):
            shutil.copyfile(folder.path / name, new / name)
        for record in records:
            (new / "samples" / f"{record.key}.npz").write_bytes(folder.samples_bytes(record.key))
        write_atomically(new / "history.jsonl", history)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
