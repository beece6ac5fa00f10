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
    """Column by column, ``q_j = Q(w_j)`` and ``w_k -= (w_j - q_j) R_jk / R_jj`` for those behind.

    ``R`` is upper triangular with ``H^-1 = R^T R``. Scales of a group are fitted on the columns as the loop
    finds them; the original code reads columns that the current block has not updated yet where groups are
    smaller than a block.
    """
    from epmq.layer import gptq as core

    return core.gptq(problem, spec)
