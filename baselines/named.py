"""Every method under its name, for :func:`epmq.quantise`, which finds this by an entry point."""

from __future__ import annotations

from functools import partial

from baselines.recipes import familiar
from baselines.registry import get, names
from epmq.methods import Method


def named() -> dict[str, Method]:
    """Roundings, whose axes are the caller's, and the familiar names, which bring theirs."""
    found = {name: Method(get(name)) for name in names()}
    return found | {
        name: Method(get(recipe.rounding), partial(recipe.passes[-1].calibration, rounded=True))
        for name, recipe in familiar().items()
        if recipe.rounding is not None and recipe.after is None and recipe.search is None
    }
