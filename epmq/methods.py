"""Quantisation methods by name, as whoever provides them describes them.

This package rounds nothing under a name of its own. A package that knows methods joins through the
entry-point group ``epmq.methods``; the value names a function without arguments that returns a mapping from
names to :class:`Method`:

    [project.entry-points."epmq.methods"]
    baselines = "baselines.named:named"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from epmq import plugins
from epmq.calibration import Calibration
from epmq.errors import UserError, choose

if TYPE_CHECKING:  # names and axes do not wait for torch
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

Rounding: TypeAlias = "Callable[[LayerProblem, QuantSpec], QuantizedWeight]"
ENTRY_POINT_GROUP = "epmq.methods"


@dataclass(frozen=True)
class Method:
    """What a name stands for.

    Attributes:
        rounding: rounds one layer problem.
        calibration: the method's axes under a caller's overrides (axis to value), which raises UserError for
            a value out of its range; ``None`` for a rounding alone, whose axes are all the caller's.
    """

    rounding: Rounding
    calibration: Callable[[Mapping[str, Any]], Calibration] | None = None


@cache
def known() -> dict[str, Method]:
    """Every method by name.

    Raises:
        UserError: a plug-in cannot be loaded, or nothing provides methods.
    """
    found: dict[str, Method] = {}
    for provide in plugins.load(ENTRY_POINT_GROUP):
        found |= provide()
    if not found:
        raise UserError(
            "no installed package provides methods by name; install epmq again, or give a rounding"
        )
    return found


def chosen(
    method: str | Rounding, overrides: Calibration | Mapping[str, Any] | None
) -> tuple[Rounding, Calibration]:
    """The rounding and the calibration of a method under a caller's axes.

    Args:
        method: a name of :func:`known`, or a rounding itself.
        overrides: axes of :class:`epmq.calibration.Calibration` by name over the method's own, or, of a
            rounding alone, a whole calibration.

    Raises:
        UserError: the name or an axis is unknown, a value is out of its range, or an axis changes nothing in
            this method or is fixed by it.
    """
    if isinstance(method, str):
        choose("method", method, known())
        found, name = known()[method], repr(method)
    elif callable(method):
        found, name = Method(method), "the method"
    else:
        raise UserError(
            f"method is a {type(method).__name__}; give a name, or a function of a problem and a spec"
        )
    if isinstance(overrides, Calibration):
        if found.calibration is not None:
            raise UserError(
                f"method {name} has a calibration of its own; give the axes to change by name, "
                "as calibration={'anchor': 0.01}"
            )
        return found.rounding, overrides
    axes = _axes(overrides)
    calibration = Calibration(**axes) if found.calibration is None else found.calibration(axes)
    for axis, value in axes.items():
        if getattr(calibration, axis) != value or axis in calibration.idle:
            target = f"target {calibration.target}"
            raise UserError(f"{axis} {value!r} changes nothing in {name} ({target}); leave it out")
    return found.rounding, calibration


def _axes(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    if overrides is not None and not isinstance(overrides, Mapping):
        raise UserError(
            f"calibration is a {type(overrides).__name__}; give axes by name, as {{'anchor': 0.01}}"
        )
    for name in overrides or {}:
        choose("calibration axis", name, [field.name for field in fields(Calibration)])
    return dict(overrides or {})
