"""Where a folder's numbers come from, and the refusal of folders whose numbers come from elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from benchmarks.run.cells import Cell, Request
from benchmarks.sources import data
from benchmarks.suites.forms import Suite
from benchmarks.suites.load import identity
from benchmarks.workbench import code, environment
from benchmarks.workbench.base import Workbench
from benchmarks.workbench.machine import Machine
from epmq.errors import UserError
from results.store.files import os_errors
from results.store.folder import RunFolder
from results.store.records import Manifest


def refuse_unusable(out: Path, suite: Suite) -> None:
    """Refuse a folder that cannot be written or is another suite's, before anything large is opened.

    Raises:
        UserError: with the reason.
    """
    with os_errors(out, "write results there"):
        nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise OSError(errno.ENOTDIR, f"{nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        started = (out / "manifest.json").exists()
    if started:
        asked = Manifest(suite=suite.name, suite_version=suite.version, rehearsal=suite.rehearsal, created="")
        RunFolder.open(out, asked)


def manifest(
    workbench: Workbench, keyed: Mapping[str, Cell], request: Request, asked: dict[str, Any]
) -> Manifest:
    """What is asked for, with the code behind every cell, the environment and every revision."""
    suite, machine = workbench.suite, workbench.setting.machine
    return Manifest(
        suite=suite.name,
        suite_version=suite.version,
        suite_sha256=identity(suite, workbench.revisions),
        rehearsal=suite.rehearsal,
        asked={**asked, "cells": [_listed(key, cell) for key, cell in keyed.items()]},
        environment={**environment.describe(), "device": _device(machine), "dtype": machine.dtype},
        revisions=workbench.revisions,
        calibration=_calibration(workbench, request),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _device(machine: Machine) -> str:
    """The device in words: ``cpu``, or a GPU's name."""
    return torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else "cpu"


def _calibration(workbench: Workbench, request: Request) -> dict[str, str]:
    """Digest of every task's calibration rows; of seeds after the first, under ``TASK seed N``.

    Of several numbers of samples it is that of the largest, which begins with the smaller draws.
    """
    found = {}
    for number, seed in enumerate(request.seeds):
        for task in workbench.suite.tasks:
            name = f"{task.task} seed {seed}" if number else task.task
            found[name] = data.digest(workbench.sample_ids(task, max(request.samples), seed))
    return found


def _listed(key: str, cell: Cell) -> dict[str, JsonValue]:
    return {
        "key": key,
        "kind": cell.kind,
        "method": cell.method,
        "merge": cell.merge,
        "target": cell.target,
        "bits": cell.bits,
        "seed": cell.seed,
        "code": code_of(cell),
        **({} if cell.decoder is None else {"decoder": cell.decoder}),
    }


def code_of(cell: Cell) -> str:
    """The hash of the code behind a cell."""
    return code.code_digest(*map(Path, cell.modules))


def refuse_other_origin(out: Path, wanted: Manifest) -> None:
    """Refuse to add to a folder made from other checkpoints or data, or to trust cells made by other code.

    Raises:
        UserError: with what differs.
    """
    if not (out / "manifest.json").exists():
        return
    stored = RunFolder.open(out).manifest
    for name, revision in wanted.revisions.items():
        if stored.revisions.get(name) != revision:
            raise UserError(
                f"{out}: its results come from another revision of the {name} (see its manifest.json); "
                "choose another --out"
            )
    made_by = {cell.key: (cell.model_extra or {}).get("code") for cell in stored.cells}
    for cell in wanted.cells:
        if made_by.get(cell.key, now := (cell.model_extra or {}).get("code")) != now:
            raise UserError(
                f"{out}: its {cell.method} cell was made by other code of epmq or of the method; "
                "choose another --out, delete this one or check out the version that made it"
            )
