"""Where each cell stands: its rank's interval within its setting, and whether it is on a frontier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from epmq.errors import UserError
from results.analysis.ranks import Ranks, rank_intervals
from results.board.cells import Cell, Setting

Pool = tuple[str, Setting]


@dataclass(frozen=True)
class Standing:
    """A cell, its ranks (None where nothing else is at its setting), and whether it is on the frontier."""

    cell: Cell
    ranks: Ranks | None
    frontier: bool


def standings(cells: Sequence[Cell]) -> list[Standing]:
    """Where the cells stand, in their order.

    Raises:
        UserError: cells of one suite and setting are not of the same test samples, or a file of samples
            cannot be used.
    """
    ranks: dict[int, Ranks] = {}
    for group in _pools(cell for cell in cells if cell.ranked).values():
        if len(group) > 1:
            ranks |= zip(map(id, group), _ranks(group), strict=True)
    ahead = {id(cell) for cell in frontier(cells)}
    return [Standing(cell, ranks.get(id(cell)), id(cell) in ahead) for cell in cells]


def _pools(cells: Iterable[Cell]) -> dict[Pool, list[Cell]]:
    found: dict[Pool, list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.suite, cell.setting].append(cell)
    return found


def _ranks(cells: Sequence[Cell]) -> list[Ranks]:
    try:
        return rank_intervals([cell.contender for cell in cells])
    except UserError as error:
        where = ", ".join(sorted({str(run.path) for cell in cells for run in cell.runs}))
        raise UserError(f"{cells[0].suite} in {where}: {error}") from error


def plane(setting: Setting) -> Setting:
    """What cells in one picture of a frontier have in common: all but bits and grid."""
    return setting._replace(bits=None, grid=())


def frontier(cells: Iterable[Cell]) -> list[Cell]:
    """The ranked quantised cells that nothing beats: as good at fewer bits per weight, or better at as few.

    What might is of the same suite, merge, calibration samples and machine, at whatever bits and grid.
    """
    planes: dict[Pool, list[tuple[float, float, Cell]]] = defaultdict(list)
    for cell in cells:
        if cell.ranked and cell.bits_per_weight is not None:
            planes[cell.suite, plane(cell.setting)].append((cell.bits_per_weight, -cell.average, cell))
    found = []
    for points in planes.values():
        for bits, loss, cell in points:
            if not any(b <= bits and x <= loss and (b, x) != (bits, loss) for b, x, _ in points):
                found.append(cell)
    return found
