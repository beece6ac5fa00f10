"""Some cells of a results folder, computed again here and compared with what the folder says."""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from baselines.recipes import familiar
from baselines.registry import names
from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.sources.pin import lock_for_run
from benchmarks.suites.forms import Suite
from benchmarks.workbench.base import Setting
from benchmarks.workbench.machine import Machine
from epmq.calibration import Calibration, Target
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from results.analysis.analysis import Analysis
from results.judge.check import check
from results.store.folder import RunFolder
from results.store.records import Axis, Record


def selected(records: Sequence[Record], count: int) -> list[Record]:
    """At least one cell of every method, and ``count`` cells where there are so many.

    The choice is the same every time, and by the hash of the keys, so that nobody picks the cells that are
    looked at: first every method's first cell, then every method's second, and so on.
    """
    ranked: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=_draw):
        if record.kind == "method":
            ranked[record.method].append(record)
    order = sorted((rank, _draw(x), x.key) for cells in ranked.values() for rank, x in enumerate(cells))
    keys = [key for _, _, key in order[: max(count, len(ranked))]]
    found = {record.key: record for record in records}
    return [found[key] for key in keys]


def _draw(record: Record) -> str:
    return hashlib.sha256(record.key.encode()).hexdigest()


def request_of(record: Record) -> Request:
    """The request that asks for a method's cell and nothing else."""
    axes = record.axes
    return Request(
        merge=[str(record.merge)],
        method=[record.method],
        target=[target for target in get_args(Target) if target == record.target],
        bits=[record.bits or 0],
        controls=[],
        samples=[int(axes.get("samples") or 0)],
        seeds=[record.seed],
        decoder=None if axes.get("decoder") is None else str(axes["decoder"]),
        merge_options=[dict(record.merge_options)],
        calibration=_axes_of(Calibration, axes, "target"),
        spec=_axes_of(QuantSpec, axes, "bits"),
    )


def _axes_of(described: Any, axes: Mapping[str, Axis], left_out: str) -> dict[str, Any]:
    return {f.name: axes[f.name] for f in fields(described) if f.name in axes and f.name != left_out}


def unknown_methods(records: Sequence[Record]) -> Iterator[str]:
    """What methods of the records are not registered here, each with what to do."""
    roundings, methods = set(names()), {*familiar(), *names()}
    for record in {r.method: r for r in records if r.kind == "method"}.values():
        if record.rounding not in roundings:
            yield (
                f"rounding {record.rounding!r} of {record.method!r} is not registered here; add its file to "
                "baselines/roundings/, or install the package whose entry point names it"
            )
        elif record.method not in methods:
            yield f"method {record.method!r} is not one that 'epmq list' names; run it under such a name"


def reproduce(folder: RunFolder, records: Sequence[Record], suite: Suite) -> Iterator[str]:
    """Compute cells of ``folder`` again, on the CPU in float32, and yield what does not agree.

    Accuracies are compared by the gate's paired tests, layer objectives by its tolerance, both ways: a number
    that is better than what comes out here is no more reproducible than one that is worse.
    """
    with tempfile.TemporaryDirectory() as temporary:
        claimed = Analysis(_copied(folder, records, Path(temporary) / "claimed"))
        setting = Setting(Machine.choose("cpu", "float32"), lock_for_run(suite, None, unpinned=False))
        for record in records:
            try:
                run(suite, request_of(record), Path(temporary) / "again", {}, setting)
            except (UserError, TypeError, ValueError) as error:  # a stranger's axes may be anything
                yield f"{record.method} ({record.key}) cannot be computed here: {error}"
                return
        again = Analysis.open(Path(temporary) / "again")
        computed = {record.key for record in again.records}
        for record in records:
            if record.key not in computed:
                yield (
                    f"{record.method} ({record.key}) is another cell here: its models, data or axes are not "
                    "those of this checkout"
                )
        for now, before in ((again, claimed), (claimed, again)):
            for move in check(now, before).moves:
                if move.failed and move.quantity != "record":
                    yield f"{move.cell}: {move.quantity} is {move.now}, was {move.golden} ({move.change})"


def _copied(folder: RunFolder, records: Sequence[Record], path: Path) -> RunFolder:
    """A folder with some records of ``folder`` alone."""
    copy = RunFolder.open(path, folder.manifest, create=True)
    for record in records:
        copy.append(record, *folder.samples(record.key))
    return copy
