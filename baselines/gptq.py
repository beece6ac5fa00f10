"""GPTQ."""

from __future__ import annotations

from baselines.registry import baseline
from epmq.layer import gptq as core
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
    return core.gptq(problem, spec)
