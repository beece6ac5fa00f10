"""A setting in words, as headings, filters and pictures say it."""

from __future__ import annotations

from collections.abc import Iterable

from results.analysis.groups import GRID_AXES
from results.board.cells import Setting
from results.store.records import Axis


def merge_words(setting: Setting) -> str:
    """The merge with its options."""
    options = ", ".join(f"{name} {value}" for name, value in setting.options)
    name = setting.merge or "no merge"
    return f"{name} ({options})" if options else name


def bits_words(setting: Setting) -> str:
    """The nominal bits."""
    return f"{setting.bits} bits" if setting.bits else "full precision"


def samples_words(setting: Setting) -> str:
    """The calibration samples of a task."""
    return "none" if setting.samples is None else str(setting.samples)


def machine_words(setting: Setting) -> str:
    """What it was computed on, in which numbers."""
    return f"{setting.device}, {setting.dtype}"


def grid_words(setting: Setting, settings: Iterable[Setting]) -> str:
    """The grid: its groups, and what else is not the same in all settings."""
    if not setting.grid:
        return "none"
    group, *others = setting.grid
    words = ["a scale for each row" if group is None else f"groups of {group}"]
    grids = [each.grid for each in settings if each.grid]
    for place, value in enumerate(others, 1):
        if len({repr(grid[place]) for grid in grids}) > 1:
            words.append(_axis(GRID_AXES[place], value))
    return ", ".join(words)


def _axis(name: str, value: Axis) -> str:
    if name == "symmetric" and isinstance(value, bool):
        return "symmetric" if value else "asymmetric"
    if name == "grid":
        return "uniform" if value is None else f"levels of {value}"
    return f"{name} {value}"
