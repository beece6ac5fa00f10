"""What committed records hold beyond their table: scores draw by draw, and any row beside any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from epmq.errors import UserError
from results.analysis.analysis import Analysis
from results.analysis.groups import Group, pairs

OVER_DRAWS: dict[str, Callable[[Iterable[float]], float]] = {"mean": fmean, "min": min, "max": max}
ENDS = ("value", "low", "high")


def over_draws(folder: Path, row: str, field: str, which: str) -> float:
    """The mean (or min, max) over a row's draws of a field such as ``tasks.textile3.balanced``, as it is.

    Raises:
        UserError: there is no such row, or more than one, or its records have no number there.
    """
    if which not in OVER_DRAWS:
        raise UserError(f"{which!r} is none of {', '.join(OVER_DRAWS)}")
    found = [_entry(record.model_dump(), field) for record in _group(folder, row)]
    numbers = [float(number) for number in found if isinstance(number, float | int)]
    if len(numbers) != len(found):
        raise UserError(f"the records of {row!r} in {folder.name} have no number at {field}")
    return OVER_DRAWS[which](numbers)


def _entry(found: Any, field: str) -> Any:
    for part in field.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def paired(folder: Path, row: str, other: str, end: str) -> float:
    """The paired difference of two rows' averages over their common draws, or an end of its 95 % interval.

    A fraction; see ``results.analysis.stats.hierarchical_bootstrap``.

    Raises:
        UserError: there is no such row, or more than one, or the two share no draw.
    """
    if end not in ENDS:
        raise UserError(f"{end!r} is none of {', '.join(ENDS)}")
    ours, others = _group(folder, row), _group(folder, other)
    if not pairs(ours, others):
        raise UserError(f"{row!r} and {other!r} of {folder.name} share no draw")
    return float(getattr(_analysis(folder).difference(ours, others), end))


def _group(folder: Path, row: str) -> Group:
    """The only group whose MERGE/METHOD/BITS matches a shell-style pattern."""
    analysis = _analysis(folder)
    found = [group for group in analysis.groups if fnmatchcase(_name(analysis, group), row)]
    if len(found) != 1:
        raise UserError(f"{len(found)} rows of {folder.name} are called {row!r}; name one, see its table.md")
    return found[0]


def _name(analysis: Analysis, group: Group) -> str:
    return f"{group[0].merge or 'none'}/{analysis.name(group)}/{group[0].bits or 'full'}"


@cache
def _analysis(folder: Path) -> Analysis:
    return Analysis.open(folder)
