"""GPTQ."""

from __future__ import annotations

from baselines.registry import baseline
from epmq import gptq as core
from epmq.problem import LayerProblem
from epmq.spec import QuantSpec
from epmq.weight import QuantizedWeight


@baseline(
    "gptq",
    reference="arXiv:2210.17323",
    summary="column by column, errors passed on through the inverse Hessian",
)
def gptq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """The column loop of :func:`epmq.gptq.gptq`."""
    return core.gptq(problem, spec)
