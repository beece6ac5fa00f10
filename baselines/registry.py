"""The registry of rounding methods.

    @baseline("my-method", reference="arXiv:...", summary="...")
    def my_method(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight: ...

A module imports torch and numba inside its functions, so that listing the methods does not wait for them.
Modules in ``baselines/roundings`` are found by themselves; an installed package joins through the
entry-point group ``epmq.baselines`` (its value names a module that uses the decorator).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Literal

from epmq import plugins
from epmq.errors import UserError, choose
from epmq.methods import Rounding

if TYPE_CHECKING:
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

ENTRY_POINT_GROUP = "epmq.baselines"
Needs = Literal["none", "Hessian"]


@dataclass(frozen=True)
class Baseline:
    """A registered rounding method: callable, with its reference and a one-line summary.

    ``needs`` is what of a layer's problem it reads besides the weights.
    """

    name: str
    rounding: Rounding
    reference: str
    summary: str
    origin: str
    needs: Needs = "Hessian"

    def __call__(self, problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
        """Round ``problem.centre``; see :class:`epmq.layer.problem.LayerProblem`."""
        return self.rounding(problem, spec)


_REGISTRY: dict[str, Baseline] = {}


def baseline(
    name: str, *, reference: str, summary: str, needs: Needs = "Hessian"
) -> Callable[[Rounding], Rounding]:
    """Register a rounding method under ``name``; raises UserError when the name is taken."""
    choose("needs", needs, ("none", "Hessian"))

    def register(function: Rounding) -> Rounding:
        origin = f"{function.__module__}.{function.__qualname__}"
        if name in _REGISTRY and _REGISTRY[name].origin != origin:
            taken = _REGISTRY[name].origin
            raise UserError(f"baseline {name!r} of {origin} is already registered by {taken}; rename it")
        _REGISTRY[name] = Baseline(name, function, reference, summary, origin, needs)
        return function

    return register


@cache
def _discover() -> None:
    package = importlib.import_module("baselines.roundings")
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"baselines.roundings.{module}")
    plugins.load(ENTRY_POINT_GROUP)


def names(pattern: str = "*") -> list[str]:
    """Registered names that match a shell-style pattern, sorted."""
    _discover()
    return sorted(name for name in _REGISTRY if fnmatchcase(name, pattern))


def get(name: str) -> Baseline:
    """The baseline of that name; raises UserError with the nearest names when there is none."""
    choose("method", name, names())
    return _REGISTRY[name]
