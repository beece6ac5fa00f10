"""The registry of refinements.

    @refinement("my-refinement", changes="continuous", reference="arXiv:...", summary="...")
    def my_refinement(tower, quantised, lessons, budget, state=None) -> Refined: ...

A refinement changes the tower in place and nothing else: it is a function of the tower, its quantised
layers, the calibration samples and what the experts made of them. A module imports torch inside its
functions, so that listing the names does not wait for it. Modules in this folder are found by themselves; an
installed package joins through the entry-point group ``epmq.refinements`` (its value names a module that uses
the decorator).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from epmq import plugins
from epmq.errors import UserError, choose

if TYPE_CHECKING:
    from epmq.layer.weight import QuantizedWeight
    from epmq.models.tower import Tower
    from epmq.refinement.budget import Budget
    from epmq.refinement.descent import Curve, Lessons

ENTRY_POINT_GROUP = "epmq.refinements"
NO_REFINEMENTS = ("contract", "registry")  # the other modules of this folder
# "continuous": scales, biases and norms, while codes and zero points stay; "all": everything, and codes too
Changes = Literal["continuous", "all"]


@dataclass(frozen=True)
class Refined:
    """What a refinement came to.

    Attributes:
        quantised: the quantised weight of every group that has one, by its name; the tower's layers hold what
            they dequantise to.
        curve: how the loss went.
    """

    quantised: Mapping[str, QuantizedWeight]
    curve: Curve


Refine: TypeAlias = "Callable[[Tower, Mapping[str, QuantizedWeight], Lessons, Budget, Path | None], Refined]"


@dataclass(frozen=True)
class Refinement:
    """A registered refinement: callable, with what it changes, its reference and a one-line summary."""

    name: str
    refine: Refine
    changes: Changes
    reference: str
    summary: str
    origin: str

    def __call__(
        self,
        tower: Tower,
        quantised: Mapping[str, QuantizedWeight],
        lessons: Lessons,
        budget: Budget,
        state: Path | None = None,
    ) -> Refined:
        """Refine a tower in place.

        Args:
            quantised: the quantised weight of every group that has one; none for a tower in full precision.
            state: a file to go on from after an interruption.
        """
        return self.refine(tower, quantised, lessons, budget, state)


_REGISTRY: dict[str, Refinement] = {}


def refinement(name: str, *, changes: Changes, reference: str, summary: str) -> Callable[[Refine], Refine]:
    """Register a refinement under ``name``; raises UserError when the name is taken."""
    choose("changes", changes, ("continuous", "all"))

    def register(function: Refine) -> Refine:
        origin = f"{function.__module__}.{function.__qualname__}"
        if name in _REGISTRY and _REGISTRY[name].origin != origin:
            taken = _REGISTRY[name].origin
            raise UserError(f"refinement {name!r} of {origin} is already registered by {taken}; rename it")
        _REGISTRY[name] = Refinement(name, function, changes, reference, summary, origin)
        return function

    return register


@cache
def _discover() -> None:
    package = importlib.import_module("baselines.refinements")
    for module in sorted({m.name for m in pkgutil.iter_modules(package.__path__)} - set(NO_REFINEMENTS)):
        importlib.import_module(f"baselines.refinements.{module}")
    plugins.load(ENTRY_POINT_GROUP)


def names(pattern: str = "*") -> list[str]:
    """Registered names that match a shell-style pattern, sorted."""
    _discover()
    return sorted(name for name in _REGISTRY if fnmatchcase(name, pattern))


def get(name: str) -> Refinement:
    """The refinement of that name; raises UserError with the nearest names when there is none."""
    choose("refinement", name, names())
    return _REGISTRY[name]
