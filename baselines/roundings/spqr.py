"""Sparse outliers: weights that are dear to round stay half-precision numbers, GPTQ rounds the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from torch import Tensor

    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

SHARE = 0.01  # of a row's weights, one at least
ROUNDS = 8  # in which they are chosen


def dearest(weight: Tensor, sensitivity: Tensor, spec: QuantSpec, count: int) -> Tensor:
    """Columns ``(rows, count)`` of the weights to keep, round by round those whose keeping gains most.

    What keeping one alone gains is the fall of the row's error, ``sum_j ((c_j - Q(c_j)) / R_jj)^2`` with the
    nearest codes: its own part, and, as its group's grid is then fitted without it, the part of the others.

    Args:
        weight: the centre, ``(rows, columns)`` float64.
        sensitivity: ``1 / R_jj^2``, ``(columns,)``.
    """
    import torch

    from epmq.layer.grid import by_group

    left = by_group(weight, spec).clone()
    kept = torch.zeros_like(left, dtype=torch.bool)
    price = by_group(sensitivity[None], spec)[0]
    chosen = []
    for part in torch.arange(count).tensor_split(min(ROUNDS, count)):
        best = _gains(left, kept, price, spec).flatten(1).topk(len(part), 1).indices
        chosen.append(best)
        kept.flatten(1).scatter_(1, best, value=True)
        left.flatten(1).scatter_(1, best, 0.0)
    return torch.cat(chosen, 1)


def _gains(left: Tensor, kept: Tensor, price: Tensor, spec: QuantSpec) -> Tensor:
    """What keeping each weight gains, ``(rows, groups, width)``; only an end of a range changes its grid."""
    import torch

    from epmq.layer.grid import decode, encode, fit_grid

    def errors(values: Tensor) -> Tensor:
        scale, zero = (part[..., None] for part in fit_grid(values, spec))
        found = decode(encode(values, scale, zero, spec), scale, zero, spec)
        return (found - values).square() * price

    own = errors(left)
    gains = own.clone()
    for end in (left.argmin(-1, keepdim=True), left.argmax(-1, keepdim=True)):
        without = errors(left.scatter(-1, end, 0.0)).sum(-1, keepdim=True)
        gains = gains.scatter(-1, end, own.sum(-1, keepdim=True) - without)
    return torch.where(kept, -torch.inf, gains)


@baseline(
    "spqr",
    reference="arXiv:2306.03078",
    summary="one weight in a hundred kept in half precision, the rest by GPTQ",
)
def spqr(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """SpQR's sparse outliers (Dettmers et al. 2023): 1 % of every row, 32 bits each, and GPTQ of the rest.

    Outliers are chosen on the centre, by the error that keeping them saves. The public code takes those
    beyond a threshold, group by group within the loop, as many as there are, and quantises scales and zero
    points once more; here every row has as many, and grids are the specification's.
    """
    from epmq.layer import gptq as core

    columns = problem.centre.shape[1]
    count = max(1, round(SHARE * columns))
    sensitivity = problem.factor.diagonal() ** 2  # R = F^-1
    return core.gptq(problem, spec, dearest(problem.centre, sensitivity, spec, count))
