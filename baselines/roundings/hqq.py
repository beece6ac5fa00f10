"""HQQ: zero points for a heavy-tailed error of the weights themselves, without any sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from torch import Tensor

    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

NORM, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20  # p, beta, kappa and iterations of the public code
LEAST_FALL = 1e-9  # of the mean absolute error


def fitted_zero(weight: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """The zero point that half-quadratic splitting comes to, real numbers ``(rows, groups)``.

    In turns ``w = sign(e) max(|e| - |e|^(p - 1) / beta, 0)`` of the error ``e = C - Q``, and
    ``z = mean(k - (C - w) / s)``, while the mean absolute error of a group falls. Where as many errors are
    above 0 as below, it stays but for its last digits: that is no fall.

    Args:
        weight: C, ``(rows, groups, width)`` float64.
        scale: s, ``(rows, groups)``; ``zero``: where it begins.
        top: the largest code.
    """
    import torch

    step, beta = scale[..., None], BETA
    least = torch.full_like(scale, torch.inf)
    going = torch.ones_like(scale, dtype=torch.bool)
    for _ in range(STEPS):
        codes = (weight / step + zero[..., None]).round().clamp(0, top)
        error = weight - (codes - zero[..., None]) * step
        outlying = error.sign() * (error.abs() - error.abs().clamp(min=1e-30) ** (NORM - 1) / beta).clamp(
            min=0
        )
        fresh = (codes - (weight - outlying) / step).mean(-1)
        now = error.abs().mean(-1)
        zero = torch.where(going, fresh, zero)
        going = going & (now < least * (1 - LEAST_FALL))
        least = torch.where(going, now, least)
        beta *= GROWTH
    return zero


@baseline(
    "hqq",
    reference="https://mobiusml.github.io/hqq_blog",
    summary="real zero points by half-quadratic splitting of the weights' error; no samples",
    needs="none",
)
def hqq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Half-quadratic quantisation (Badri and Shaji 2023) of the centre; the Hessian is not used.

    Zero points are stored in half precision. The public code stops when the mean error of all groups together
    no longer falls, in float32, whose last digits decide where it stays; here each group stops by itself, and
    keeps rounding to nearest where that has the smaller mean absolute error. The public code takes the range
    of the weights without 0, and begins at a zero point that is no whole number; here both are those of
    rounding to nearest. Its default solver (0.2.8) leaves beta as it is; here it grows, as on the method's
    page.
    A symmetric grid and a table of levels have no zero point: there it is rounding to nearest.
    """
    import torch

    from epmq.layer.grid import by_group, decode, encode, fit_grid
    from epmq.layer.weight import QuantizedWeight

    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    weight = by_group(problem.centre, spec)
    scale, plain = fit_grid(by_group(fitted_on, spec), spec)
    if spec.symmetric:
        return QuantizedWeight.nearest(problem.centre, scale, plain, spec)
    limit = torch.finfo(torch.float16).max
    fitted = fitted_zero(weight, scale, plain, spec.max_code).clamp(-limit, limit).half().to(scale)

    def error(zero: Tensor) -> Tensor:
        grid = scale[..., None], zero[..., None]
        return (decode(encode(weight, *grid, spec), *grid, spec) - weight).abs().mean(-1)

    zero = torch.where(error(fitted) < error(plain), fitted, plain)
    codes = encode(weight, scale[..., None], zero[..., None], spec).flatten(1)
    return QuantizedWeight.build(codes, scale, zero.half(), spec)
