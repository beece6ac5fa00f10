"""MagR: weights with smaller largest entries and nearly the same outputs, then GPTQ."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from torch import Tensor

    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

STEPS = 150
PER_CHANNEL, IN_GROUPS = 1e-3, 1e-4  # weight of the largest entry, relative to the largest eigenvalue of H


def smaller(centre: Tensor, hessian: Tensor, width: int, weight: float, steps: int = STEPS) -> Tensor:
    """Proximal gradient on ``tr((W - C) H (W - C)^T) / (2 l) + weight * sum_groups max |W|``.

    ``l`` is the largest eigenvalue of ``H``, so that the step is 1.

    Args:
        centre: C, ``(rows, columns)`` float64, where the descent begins.
        width: columns of a group, in each of which the largest entry counts.
    """
    import torch

    metric = hessian / torch.linalg.matrix_norm(hessian, 2)
    found = centre
    for _ in range(steps):
        moved = found - (found - centre) @ metric
        found = clipped(moved.unflatten(1, (-1, width)), weight).flatten(1)
    return found


def clipped(x: Tensor, weight: float) -> Tensor:
    """The point that minimises ``|y - x|^2 / 2 + weight * max |y|`` over the last axis.

    By Moreau's identity ``x`` less its projection on the l1 ball of radius ``weight``: entries beyond a
    threshold are set to it, such that they lose ``weight`` together; 0 where all of them together have less.
    """
    import torch

    magnitude = x.abs()
    ordered = magnitude.sort(-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (ordered.cumsum(-1) - weight) / counts
    last = ((ordered > thresholds).sum(-1, keepdim=True) - 1).clamp(min=0)
    limit = thresholds.gather(-1, last).clamp(min=0)
    return x.sign() * torch.minimum(magnitude, limit)


@baseline("magr", reference="arXiv:2406.00800", summary="weights with smaller extremes first, then GPTQ")
def magr(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Weight magnitude reduction (Zhang et al. 2024) of the centre, then GPTQ of what it leaves.

    The grid is fitted on the reduced centre. Made for few bits: a row that it makes worse, as many rows at 5
    bits and more, keeps the codes of GPTQ alone.
    """
    import torch

    from epmq.layer import gptq as core
    from epmq.layer.weight import QuantizedWeight

    columns = problem.centre.shape[1]
    width = spec.columns_per_group(columns)
    weight = PER_CHANNEL if width == columns else IN_GROUPS
    reduced = replace(problem, centre=smaller(problem.centre, problem.hessian, width, weight))
    plain, found = core.gptq(problem, spec), core.gptq(reduced, spec)
    better = problem.row_objective(found.dequantize()) < problem.row_objective(plain.dequantize())
    better = better[:, None]
    codes = torch.where(better, found.codes, plain.codes)
    scale = torch.where(better, found.scale, plain.scale)
    return QuantizedWeight.build(codes, scale, torch.where(better, found.zero, plain.zero), spec)
