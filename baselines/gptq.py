"""GPTQ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight


@baseline(
    "gptq",
    reference="arXiv:2210.17323",
    summary="column by column, errors passed on through the inverse Hessian",
)
def gptq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """The column loop of :func:`epmq.layer.gptq.gptq`."""
    from epmq.layer import gptq as core

    return core.gptq(problem, spec)
