"""Round to nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight


@baseline(
    "rtn",
    reference="folklore",
    summary="round every weight to the nearest point of a min-max grid",
    needs="none",
)
def rtn(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Nearest grid point of the centre; the Hessian is not used."""
    from epmq.layer.grid import by_group, fit_grid
    from epmq.layer.weight import QuantizedWeight

    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    scale, zero = fit_grid(by_group(fitted_on, spec), spec)
    return QuantizedWeight.nearest(problem.centre, scale, zero, spec)
