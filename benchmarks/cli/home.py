"""``epmq export | evaluate``: a cell's model as a checkpoint, and any checkpoint on a suite."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from benchmarks.cli import lm

# What needs torch is imported by the commands themselves, for it takes seconds.
from benchmarks.cli.paths import given_path, home
from benchmarks.cli.screen import show
from benchmarks.suites import load as suites
from benchmarks.suites.forms import Suite
from epmq.errors import UserError, choose
from results.store.folder import RunFolder
from results.store.records import Record


def add_to(commands: Any) -> None:
    """Add the commands to the parser's sub-commands."""
    export = commands.add_parser(
        "export",
        help="write the model of a results folder's cell as a checkpoint folder",
        description="The model is computed again, or read from the cache where 'epmq run --keep-models' kept "
        "it, and tied to its record by hash.",
    )
    export.add_argument("folder", type=given_path, metavar="RUN", help="a results folder")
    export.add_argument(
        "--cell", required=True, metavar="KEY|NAME", help="a key, METHOD, METHOD/BITS or MERGE/METHOD/BITS"
    )
    export.add_argument("--to", type=given_path, required=True, metavar="DIR", help="the new folder")
    export.add_argument(
        "--format",
        metavar="FORMAT",
        help="compressed-tensors, dense, epmq (compressed-tensors; dense where nothing is quantised)",
    )
    export.add_argument("--suite", type=home, help="suite file of the run, where it is not where it was")
    export.add_argument(
        "--lock", type=given_path, metavar="FILE", help="lock file (default: the suite's own)"
    )
    export.set_defaults(command=_export)
    evaluate = commands.add_parser(
        "evaluate",
        help="score a checkpoint folder on a suite; exit status 1 where answers are not its record's",
        description="With the suite's own heads and prompts. An export is compared with its record by the "
        "hashes in its folder, or sample by sample with --record and --cell.",
    )
    evaluate.add_argument("suite", type=home, help="a suite's name, or the path of a suite file")
    evaluate.add_argument(
        "--model", type=given_path, required=True, metavar="DIR", help="a checkpoint folder"
    )
    evaluate.add_argument("--record", type=given_path, metavar="RUN", help="results folder to compare with")
    evaluate.add_argument("--cell", metavar="KEY|NAME", help="its cell (default: the export's own)")
    evaluate.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the record's, else auto)")
    evaluate.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: the record's, else float32)"
    )
    evaluate.add_argument(
        "--lock", type=given_path, metavar="FILE", help="lock file (default: the suite's own)"
    )
    evaluate.add_argument("--unpinned", action="store_true", help="take the hub's newest")
    evaluate.set_defaults(command=_evaluate)


def _export(options: argparse.Namespace) -> int:
    from benchmarks.export.cells import find
    from benchmarks.export.exporting import export
    from epmq.packed.writing import Format

    if options.format is not None:
        choose("--format", options.format, get_args(Format))
    folder = RunFolder.open(options.folder)
    record = find(folder.records(), options.cell)
    suite = _suite_of(folder, options)
    setting = _setting(suite, options.lock, record.device, record.dtype, pinned=record.pinned)
    done = export(folder, record, suite, options.to, options.format, setting)
    for note in done.notes:
        print(f"epmq: warning: {note}", file=sys.stderr)
    for layer, reason in sorted(done.written.dense.items()):
        print(f"epmq: warning: {layer} is stored dense: {reason}", file=sys.stderr)
    size = f"{done.written.file_bytes / 1e6:.2f} MB"
    show(f"{options.to}: {record.method}, {done.written.format}, {size}, SHA-256 {done.written.sha256}\n")
    return 0


def _suite_of(folder: RunFolder, options: argparse.Namespace) -> Suite:
    """The suite that a run was of, as its manifest says, or as the command does.

    Raises:
        UserError: it is not known, or another one.
    """
    manifest = folder.manifest
    asked = {name: manifest.asked.get(name) for name in ("suite", *lm.OPTIONS)}
    name = options.suite or asked["suite"] or manifest.suite
    if manifest.suite in suites.names() and options.suite is None:
        return suites.load(manifest.suite)
    given = argparse.Namespace(**{**asked, "suite": str(name), "lock": options.lock})
    suite = lm.suite(given)
    options.lock = given.lock
    if suite.name != manifest.suite:
        raise UserError(
            f"{name}: is the suite {suite.name}, the run is of {manifest.suite}; give --suite FILE"
        )
    return suite


def _setting(suite: Suite, lock: Path | None, device: str, dtype: str, *, pinned: bool) -> Any:
    from benchmarks.sources.pin import lock_for_run
    from benchmarks.workbench.base import Setting
    from benchmarks.workbench.machine import Machine

    machine = Machine.choose(device, dtype)
    return Setting(machine, lock_for_run(suite, lock, unpinned=not pinned), pinned=pinned)


def _evaluate(options: argparse.Namespace) -> int:
    if options.cell is not None and options.record is None:
        raise UserError("--cell is of a results folder; give it as --record RUN, too")
    suite = suites.load(options.suite)
    from benchmarks.export.evaluating import evaluate
    from epmq.packed.reading import note

    about = note(options.model)
    record = None
    if options.record is not None:
        record = _recorded(options.record, options.cell or about.get("record"))
    device = options.device or (record[1].device if record else about.get("device", "auto"))
    dtype = options.dtype or (record[1].dtype if record else about.get("dtype", "float32"))
    setting = _setting(suite, options.lock, str(device), str(dtype), pinned=not options.unpinned)
    done = evaluate(suite, options.model, setting, record)
    show(str(done))
    return int(done.comparison is not None and bool(done.comparison.differing))


def _recorded(path: Path, cell: Any) -> tuple[RunFolder, Record]:
    from benchmarks.export.cells import find

    folder = RunFolder.open(path)
    if not isinstance(cell, str):
        raise UserError("the model's folder names no record; give --cell KEY or NAME")
    return folder, find(folder.records(), cell)
