"""Round to nearest."""

from __future__ import annotations

from baselines.registry import baseline
from epmq.layer.grid import by_group, fit_grid
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight


@baseline("rtn", reference="folklore", summary="round every weight to the nearest point of a min-max grid")
def rtn(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Nearest grid point of the centre; the Hessian is not used."""
    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    scale, zero = fit_grid(by_group(fitted_on, spec), spec)
    return QuantizedWeight.nearest(problem.centre, scale, zero, spec)
