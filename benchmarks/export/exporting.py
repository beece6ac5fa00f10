"""A record's model as a checkpoint folder, tied to the record by hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.export import answers
from benchmarks.export.card import card
from benchmarks.export.cells import cell_of
from benchmarks.run import compute, models
from benchmarks.run.cells import Cell
from benchmarks.run.executors import open_workbench
from benchmarks.run.outcome import Outcome
from benchmarks.run.provenance import code_of
from benchmarks.sources.resolve import model_files
from benchmarks.suites.forms import Suite
from benchmarks.workbench.base import Setting, Workbench
from epmq.errors import UserError
from epmq.packed.new_folder import refuse_taken
from epmq.packed.writing import Format, Written, write_checkpoint
from results.store import exports
from results.store.folder import RunFolder
from results.store.records import Record


@dataclass(frozen=True)
class Exported:
    """An export: what was written, and what is worth knowing of it."""

    written: Written
    notes: list[str]


def export(
    folder: RunFolder, record: Record, suite: Suite, to: Path, asked: Format | None, setting: Setting
) -> Exported:
    """Write the model of a record; it is read from the cache, where a run kept it, or computed again.

    Args:
        to: the new folder.
        asked: the format; by default packed as compressed-tensors, dense where nothing is quantised.

    Raises:
        UserError: the cell has no single model or cannot be computed here, the format cannot hold it, or
            a folder cannot be written.
    """
    refuse_taken(to)
    cell = cell_of(record)
    kind = _format(cell, asked)
    workbench = open_workbench(suite, setting)
    if cell.key(workbench.context) != record.key:
        raise UserError(
            f"{folder.path}: cell {record.key} is another cell here: its suite, models, data, device or axes "
            "are not those of this checkout; give the suite that the run was of, or run it again"
        )
    compute.refuse_impossible(workbench, cell)
    code, made_by = code_of(cell), _made_by(folder, record)
    notes = []
    if made_by not in (None, code):
        notes.append(
            f"the record was made by other code ({str(made_by)[:12]}..., now {code[:12]}...): whether the "
            "model is the same, 'epmq evaluate' tells"
        )
    weights = models.kept(workbench, cell)
    if weights is None:
        _, weights = compute.model(workbench, cell, Outcome())
    samples = answers.arrays_of(folder.samples(record.key))
    note = {
        "record": record.key,
        "record_sha256": record.record_sha256,
        "code_sha256": code,
        "suite": record.suite,
        "suite_version": record.suite_version,
        "suite_sha256": record.suite_sha256,
        "method": record.method,
        "merge": record.merge,
        "bits": record.bits,
        "device": record.device,
        "dtype": record.dtype,
        "answers_sha256": answers.digests(samples),
    }
    written = write_checkpoint(
        to,
        model=workbench.tower,
        weights=weights,
        source=_source(workbench),
        format=kind,
        card=lambda about: card(record, workbench, about),
        note=note,
    )
    notes += _named(folder, record, written)
    return Exported(written, notes)


def _named(folder: RunFolder, record: Record, written: Written) -> list[str]:
    """Name the export in the results folder; what is worth knowing where that cannot be."""
    if record.record_sha256 is None:
        return ["the record has no hash of its own, so its folder does not name the export"]
    export = exports.Export(
        key=record.key,
        record_sha256=record.record_sha256,
        format=written.format,
        weights_sha256=written.sha256,
    )
    try:
        exports.add(folder.path, export)
    except UserError as error:  # the checkpoint is there all the same, and names its record
        return [f"the results folder does not name the export: {error}"]
    return []


def _format(cell: Cell, asked: Format | None) -> Format:
    """The format; raises UserError where the cell cannot be had in it."""
    if cell.own != "nothing":
        raise UserError(
            f"{cell.method} is a model for each task, with its own expert's weights; export another cell"
        )
    if cell.rounding is None and asked not in (None, "dense"):
        raise UserError(f"{cell.method} quantises nothing, so it has no {asked} form; use --format dense")
    return asked or ("dense" if cell.rounding is None else "compressed-tensors")


def _made_by(folder: RunFolder, record: Record) -> Any:
    asked: Mapping[str, Any] = {
        cell.key: (cell.model_extra or {}).get("code") for cell in folder.manifest.cells
    }
    return asked.get(record.key)


def _source(workbench: Workbench) -> Path:
    suite = workbench.suite
    return workbench.sources.model(suite.base, model_files(suite, suite.base)).folder
