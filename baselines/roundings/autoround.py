"""AutoRound: offsets of the rounding and ends of the range by signed descent, on the layer's quadratic."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from torch import Tensor

    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

STEPS = 200


class Rounded(NamedTuple):
    """A weight on its grid, float64: ``(rows, groups, width)``, the grid ``(rows, groups, 1)``."""

    values: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor


class SignedDescent:
    """``q = s (clip(rint(u / s + V) + z) - z)`` over V in [-1/2, 1/2] and the ends of the range.

    On a table of levels, ``u / s`` is taken as a fraction between the two codes around it, where V is added
    (the public code adds it to ``u / s`` itself, which reaches the next level only where that is near).

    Factors a and b in [0, 1] shrink the range's low and high end: ``s`` is (a z_0 + b (m - z_0)) s_0 / m,
    ``z`` is rint(a z_0 s_0 / s), with m the largest code. On a symmetric grid b shrinks both ends. At V = 0
    and a = b = 1 the codes are those of ``found``.

    Args:
        latent: u, ``(rows, columns)`` float64.
        found: whose grid is the start.
    """

    def __init__(self, latent: Tensor, found: QuantizedWeight) -> None:
        import torch

        from epmq.layer.grid import by_group, levels

        self.spec = found.spec
        self.latent = by_group(latent, found.spec)
        self.scale, self.zero = (t.double()[..., None] for t in (found.scale, found.zero))
        self.table = levels(found.spec).to(latent)
        self.offset = torch.zeros_like(self.latent)
        self.low, self.high = torch.ones_like(self.scale), torch.ones_like(self.scale)

    def rounded(self) -> Rounded:
        """The weight as it stands, with its scales as they are stored."""
        from epmq.layer.grid import largest_code, offsets, stored

        top = self.spec.max_code
        spread = top * self.high
        if not self.spec.symmetric:
            spread = self.low * self.zero + self.high * (top - self.zero)
        scale = stored(spread * self.scale / top, self.spec)
        zero = self.zero
        if not self.spec.symmetric:
            zero = (self.low * self.zero * self.scale / scale).round().clamp(0, top)
        codes = self._free(scale, zero).round().clamp(0, largest_code(self.spec))
        return Rounded(offsets(codes, zero, self.spec) * scale, codes, scale, zero)

    def _free(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Codes before rounding."""
        import torch

        if not len(self.table):
            return self.latent / scale + self.offset + zero
        value = self.latent / scale
        below = torch.bucketize(value, self.table[1:-1])
        step = self.table[below + 1] - self.table[below]
        return below + (value - self.table[below]) / step + self.offset

    def step(self, at: Rounded, gradient: Tensor, rate: float) -> None:
        """Move everything by ``rate`` against the sign of its gradient, which passes every rounding.

        Args:
            gradient: of the objective by the values of ``at``, ``(rows, groups, width)``.
        """
        from epmq.layer.grid import largest_code, offsets

        top = self.spec.max_code
        free = self._free(at.scale, at.zero)
        inside = (free > -0.5) & (free < largest_code(self.spec) + 0.5)
        of_scale = offsets(at.codes, at.zero, self.spec) - (self.latent / at.scale) * inside
        by_scale = (gradient * of_scale).sum(-1, keepdim=True)
        by_zero = -(gradient * ~inside).sum(-1, keepdim=True) * at.scale
        if self.spec.symmetric:
            by_high = by_scale * self.scale
        else:
            by_scale = by_scale - by_zero * self.low * self.zero * self.scale / at.scale**2
            by_high = by_scale * (top - self.zero) * self.scale / top
            by_low = by_scale * self.zero * self.scale / top + by_zero * self.zero * self.scale / at.scale
            self.low = (self.low - rate * by_low.sign()).clamp(0, 1)
        self.high = (self.high - rate * by_high.sign()).clamp(0, 1)
        self.offset = (self.offset - rate * (gradient * inside).sign()).clamp(-0.5, 0.5)


def seen_by_gptq(problem: LayerProblem, found: QuantizedWeight) -> Tensor:
    """What GPTQ rounds, ``(rows, columns)``: every column with the errors of those before it passed on.

    With ``H = F F^T``, F upper triangular, ``u_j = c_j + sum_{i<j} (c_i - q_i) F_ij / F_jj`` (Birnick 2025,
    arXiv 2507.18553).
    """
    import torch

    order, upper = torch.arange(len(problem.hessian)), problem.factor
    if found.spec.act_order:
        order = torch.argsort(problem.hessian.diagonal(), descending=True, stable=True)
        upper = problem.in_order(order).factor
    gap = (problem.centre - found.dequantize().double())[:, order]
    passed = gap @ (upper / upper.diagonal()).triu(1)
    latent: Tensor = problem.centre + passed[:, torch.argsort(order)]
    return latent


@baseline(
    "autoround",
    reference="arXiv:2309.05516",
    summary="signed descent on rounding offsets and ranges, from GPTQ's codes on; the best is kept",
)
def autoround(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """SignRound (Cheng et al. 2023) on the layer's quadratic objective, row by row the best of all steps.

    The offsets are around the values that GPTQ rounds, so that the start is GPTQ and no row ends worse. The
    public code starts from rounding to nearest, on the outputs of a whole block, with samples drawn anew at
    every step; here the objective is the layer's own, exact, and nothing is random. 200 steps, whose rate
    falls from 1 / 200 to 0.
    """
    import torch

    from epmq.layer import gptq as core
    from epmq.layer.grid import by_group
    from epmq.layer.weight import QuantizedWeight

    found = core.gptq(problem, spec)
    descent = SignedDescent(seen_by_gptq(problem, found), found)
    codes, scale, zero = (t.clone() for t in (found.codes, found.scale, found.zero))
    least = problem.row_objective(found.dequantize())
    for step in range(STEPS):
        at = descent.rounded()
        gap = at.values.flatten(1) - problem.centre
        half = gap @ problem.hessian
        objective = (half * gap).sum(1)
        better = objective < least * (1 - 1e-9)
        least = torch.where(better, objective, least)
        codes[better] = at.codes.flatten(1)[better].to(codes.dtype)
        scale[better] = at.scale.squeeze(-1)[better].to(scale.dtype)
        zero[better] = at.zero.squeeze(-1)[better].to(zero.dtype)
        descent.step(at, by_group(half, spec), (1 - step / STEPS) / STEPS)
    return QuantizedWeight.build(codes, scale, zero, spec)
