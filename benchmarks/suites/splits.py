"""Splits as data sets name them, with slices: which of them can share samples."""

from __future__ import annotations

import math
import re
from itertools import product

SLICE = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<begin>\d*)(?P<one>%?):(?P<end>\d*)(?P<other>%?)\])?")


def share(one: str, other: str) -> bool:
    """Whether two splits such as ``train[:80%]+valid`` can share samples, as far as their names tell.

    Slices of one split that are not in the same unit, or count from the end, are taken to share some.
    """
    return any(_overlap(*pair) for pair in product(one.split("+"), other.split("+")))


def _overlap(one: str, other: str) -> bool:
    first, second = SLICE.fullmatch(one.strip()), SLICE.fullmatch(other.strip())
    if first is None or second is None:
        return one.partition("[")[0].strip() == other.partition("[")[0].strip()
    if first["name"] != second["name"]:
        return False
    units = {unit for found in (first, second) for unit in _units(found)}
    if len(units) > 1:
        return True
    begins, ends = ([_edge(found[side], side) for found in (first, second)] for side in ("begin", "end"))
    return max(begins) < min(ends)


def _units(found: re.Match[str]) -> set[str]:
    """In what its edges are given: ``"%"`` or ``""``."""
    return {found[unit] for edge, unit in (("begin", "one"), ("end", "other")) if found[edge]}


def _edge(given: str | None, side: str) -> float:
    return float(given) if given else (0.0 if side == "begin" else math.inf)
