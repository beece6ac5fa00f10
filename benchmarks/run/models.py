"""The models of computed cells, kept in the cache: packed where they are quantised, dense elsewhere.

What is read is what was written, by the hash in the file, and of the same cell, by everything that it depends
on, which is in the file's name; anything else counts as not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open

from benchmarks.run import unfinished
from benchmarks.run.cells import Cell
from benchmarks.sources import cache
from benchmarks.workbench.base import Workbench
from epmq.checkpoints.kept import HASH
from epmq.checkpoints.kept import keep as keep_file
from epmq.checkpoints.kept import kept as is_kept
from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.layer.weight import QuantizedWeight
from epmq.models.tower import Tower
from epmq.packed import own
from epmq.packed.layers import by_parameter, dequantised, pieces_of

CELL = "cell"  # in a file's metadata: what it is the model of, by hash


def keep(workbench: Workbench, cell: Cell, tower: Tower, quantised: Mapping[str, QuantizedWeight]) -> None:
    """Keep what a cell's model holds; raises UserError where the cache cannot be written."""
    file = _file(workbench, cell)
    packed, told = own.encoded(quantised)
    pieces = by_parameter(tower, quantised)
    dense = {k: p.detach().cpu() for k, p in tower.merged_parameters().items() if k not in pieces}
    with cache.errors(file):
        keep_file({**dense, **packed}, file, {**told, CELL: file.stem})


def kept(workbench: Workbench, cell: Cell) -> Mapping[str, QuantizedWeight] | None:
    """Fill the workbench's tower with a cell's kept model; its quantised weights by group.

    ``None`` where it is not kept, or not whole; the tower is then as it was.
    """
    file = _file(workbench, cell)
    told = _metadata(file)
    if told.get(CELL) != file.stem or not is_kept(file, told):
        return None
    stored = LazyCheckpoint(file)
    found: dict[str, QuantizedWeight] = {}
    for name, grid in own.grids_of(told).items():
        parts = [f"{name}.{part}" for part in own.PARTS]
        found[name] = own.decoded(name, grid, {part: stored[part] for part in parts if part in stored})
    dense = {key: dequantised(pieces) for key, pieces in pieces_of(workbench.tower, found).items()}
    keys = workbench.tower.merged_parameters()
    workbench.tower.load_all({key: dense[key] if key in dense else stored[key] for key in keys})
    return found


def _file(workbench: Workbench, cell: Cell) -> Path:
    return unfinished.place(workbench, "models/*.safetensors", asdict(cell), cell.modules)


def _metadata(file: Path) -> dict[str, str]:
    if file.is_symlink() or not file.is_file():
        return {}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: text for name, text in (opened.metadata() or {}).items() if name != HASH}
    except (OSError, SafetensorError):
        return {}
