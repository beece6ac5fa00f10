"""The layer problem: which matrix to round, and in which metric.

E-PMQ (arXiv 2605.16882, as its abstract reads) asks for a low-bit Q that minimises

    sum_t c_t E||W_t x_t - Q x_t||^2 + lambda ||Q - W_m||_F^2.

With G_t = E[x_t x_t^T], H = sum_t c_t G_t + lambda I and W* = (sum_t c_t W_t G_t + lambda W_m) H^-1,
completing the square gives tr((Q - W*) H (Q - W*)^T) + const: an ordinary rounding problem with centre W*
and Hessian H. Plain post-merge quantisation is the same problem with centre W_m. Every rounding method
takes one :class:`LayerProblem` and so serves both targets. Both are rounded with GPTQ's damping added to H.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.moments import Moments, TaskWeight

AnchorScale = Literal["relative", "absolute"]
AnchorIn = Literal["objective", "centre"]
EXTRA_RIDGES = (0.0, *(10.0**power for power in range(-10, 1)))  # of the mean diagonal, tried in turn
LEAST_PIVOT = 1e-13  # of the mean diagonal; below it float64 has no digit left


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """Minimise ``tr((Q - centre) hessian (Q - centre)^T)`` over the grid.

    Attributes:
        centre: ``(rows, columns)`` float64, the weight to round: W_m or W*.
        hessian: ``(columns, columns)`` float64, symmetric positive definite.
        reference: ``(rows, columns)`` float64, W_m, for scales that are fitted on it.
        asymmetry: a sum_t c_t E[(x~_t - x_t) x_t^T], ``(columns, columns)`` float64, for GPTAQ's term in the
            column loop; ``None`` without. It is no part of the objective.
        warnings: what was done to make the problem well posed (dead columns, added ridge).
    """

    centre: Tensor
    hessian: Tensor
    reference: Tensor
    warnings: tuple[str, ...] = ()
    asymmetry: Tensor | None = None
    # Lower L with J hessian J = L L^T where it is known already. It is not a field that can be given, so that
    # a problem that is made from this one by replacing its Hessian does not keep it.
    _factor: Tensor | None = field(default=None, init=False, repr=False)
    # (centre - reference) sum_t c_t G_t where it is known already; likewise not given.
    moved_on_inputs: Tensor | None = field(default=None, init=False, repr=False)

    @classmethod
    def merged(
        cls,
        weight: Tensor,
        grams: Iterable[Tensor],
        *,
        task_weight: TaskWeight = "uniform",
        damping: float = 0.01,
    ) -> LayerProblem:
        """Round W_m as GPTQ does: H = sum_t c_t G_t + damping * mean(diag) * I.

        Args:
            weight: W_m, ``(rows, columns)``.
            grams: G_t per task, ``(columns, columns)`` each; read once, one at a time.
            task_weight: c_t, ``"uniform"`` (1) or ``"frobenius"`` (1 / ||G_t||_F).
            damping: ridge relative to the mean diagonal of sum_t c_t G_t (GPTQ's percdamp).

        Raises:
            UserError: shapes disagree, a value is not finite or no Gram is given.
        """
        moments = Moments.empty(weight, task_weight)
        for gram in grams:
            moments.add(gram)
        return cls.from_moments(weight, moments, target="merged", damping=damping)

    @classmethod
    def expert_guided(
        cls,
        weight: Tensor,
        expert_weights: Iterable[Tensor],
        grams: Iterable[Tensor],
        cross: Iterable[Tensor] | None = None,
        *,
        task_weight: TaskWeight = "uniform",
        anchor: float = 0.001,
        anchor_scale: AnchorScale = "relative",
        damping: float = 0.01,
    ) -> LayerProblem:
        """Round W*, the experts' targets anchored at W_m (E-PMQ).

        The anchor shapes W*; the damping is added to the Hessian that W* is rounded in, as GPTQ does, so that
        a target without an anchor is not rounded in a nearly singular metric.

        Args:
            weight: W_m, ``(rows, columns)``.
            expert_weights: W_t per task, like ``weight``; read once, one at a time.
            grams: G_t per task, ``(columns, columns)``.
            cross: E[x~_t x_t^T] per task when the targets are the experts' own features W_t x~_t
                (reading B); ``None`` takes G_t, the experts' weights on the same inputs (reading A).
            task_weight: c_t, ``"uniform"`` (1) or ``"frobenius"`` (1 / ||G_t||_F).
            anchor: lambda, in the unit that ``anchor_scale`` names; 0 switches the anchor off.
            anchor_scale: ``"relative"`` to the mean diagonal of sum_t c_t G_t, or ``"absolute"``.
            damping: ridge of the rounding alone, relative to the mean diagonal of sum_t c_t G_t.

        Raises:
            UserError: shapes disagree, counts differ, a value is not finite or no Gram is given.
        """
        moments = Moments.empty(weight, task_weight)
        try:
            if cross is None:
                for gram, expert in zip(grams, expert_weights, strict=True):
                    moments.add(gram, expert)
            else:
                for gram, expert, between in zip(grams, expert_weights, cross, strict=True):
                    moments.add(gram, expert, between)
        except ValueError as error:
            raise UserError(f"give one expert weight, Gram and cross moment per task: {error}") from error
        return cls.from_moments(
            weight, moments, target="expert", anchor=anchor, anchor_scale=anchor_scale, damping=damping
        )

    @classmethod
    def from_moments(
        cls,
        weight: Tensor,
        moments: Moments,
        *,
        target: Literal["merged", "expert"],
        anchor: float = 0.0,
        anchor_scale: AnchorScale = "relative",
        damping: float = 0.0,
        point: Tensor | None = None,
        anchor_in: AnchorIn = "objective",
        asymmetry: float = 0.0,
    ) -> LayerProblem:
        """The problem of already accumulated moments; the anchor counts for the expert target only.

        Args:
            point: what the anchor pulls to, ``(rows, columns)``; ``None`` for W_m.
            anchor_in: whether the anchor is part of the metric that W* is rounded in (``"objective"``).
            asymmetry: factor on the moments' ``shift``, where they have one; for the merged target only.
        """
        if not moments.tasks:
            raise UserError("no calibration moments: give at least one Gram matrix")
        if target == "expert" and moments.experts != moments.tasks:
            raise UserError(
                f"{moments.tasks} Gram matrices but {moments.experts} expert weights; give one per task"
            )
        for name, ridge in (("anchor", anchor), ("damping", damping)):
            if not 0 <= ridge < math.inf:
                raise UserError(f"{name} {ridge} must be a finite number, 0 or more")
        merged = weight.double()
        mean = float(moments.gram.diagonal().mean())
        if target == "merged":
            hessian, factor, warnings = _positive_definite(moments.gram, damping * mean, mean)
            shift = None if moments.shift is None else asymmetry * moments.shift
            return cls(merged, hessian, merged, warnings, shift)._with(factor)
        strength = anchor_strength(moments.gram.diagonal(), anchor, anchor_scale)
        point = merged if point is None else point.double()
        hessian, factor, warnings = _positive_definite(moments.gram, strength, mean)
        # W* - A = (sum_t c_t W_t E[x~ x^T] - A sum_t c_t G_t) H^-1 with A the anchor's point: what no task
        # says anything about stays there, whether lambda or the extra ridge holds it.
        residual = moments.residual(point)
        moved = _solve(factor, residual)
        centre = point + moved
        # From moved @ hessian = residual, without a product; the Hessian is the Gram matrix and a ridge.
        on_inputs = residual - moved * (hessian.diagonal() - moments.gram.diagonal())
        kept = strength if anchor_in == "objective" else 0.0
        if damping or kept != strength:
            hessian, factor, more = _positive_definite(moments.gram, kept + damping * mean, mean)
            warnings = tuple(dict.fromkeys((*warnings, *more)))
        found = cls(centre, hessian, merged, warnings)._with(factor)
        if point is merged or torch.equal(point, merged):
            object.__setattr__(found, "moved_on_inputs", on_inputs)
        return found

    def _with(self, factor: Tensor) -> LayerProblem:
        object.__setattr__(self, "_factor", factor)
        return self

    @cached_property
    def _reversed_factor(self) -> Tensor:
        if self._factor is not None:
            return self._factor
        lower, failed = _reversed_cholesky(self.hessian)
        if failed:
            raise UserError("a layer's Hessian is not positive definite; raise the damping or the anchor")
        return lower

    @property
    def factor(self) -> Tensor:
        """Upper triangular F with ``hessian = F F^T``, float64: the inverse of the factor of GPTQ's code.

        With J the reversal of indices and J H J = L L^T, F = J L J: one Cholesky instead of the usual
        Cholesky, inverse, Cholesky.
        """
        return self._reversed_factor.flip(0, 1)

    def in_order(self, order: Tensor) -> LayerProblem:
        """The problem with the Hessian's columns taken in ``order``, for its factors; weights stay."""
        return LayerProblem(self.centre, self.hessian[order][:, order], self.reference)

    def objective(self, weight: Tensor) -> float:
        """``tr((weight - centre) hessian (weight - centre)^T)``."""
        return float(self.row_objective(weight).sum())

    def row_objective(self, weight: Tensor) -> Tensor:
        """The objective of every row, ``(rows,)`` float64."""
        gap = weight.to(self.centre) - self.centre
        return torch.einsum("rc,rc->r", gap @ self.hessian, gap)


def anchor_strength(diagonal: Tensor, anchor: float, scale: AnchorScale) -> float:
    """Lambda, of an anchor that is relative to the mean of a diagonal, or absolute."""
    return anchor * float(diagonal.mean()) if scale == "relative" else anchor


def _positive_definite(gram: Tensor, ridge: float, mean: float) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """``gram + ridge I`` and its reversed factor; the least extra ridge that makes it factor is recorded."""
    dead = int((gram.diagonal() == 0).sum())
    warnings = [f"{dead} dead input columns"] if dead else []
    scale = mean if mean > 0 else 1.0
    for extra in EXTRA_RIDGES:
        hessian = gram.clone()
        hessian.diagonal().add_(ridge + extra * scale)
        lower, failed = _reversed_cholesky(hessian)
        if not failed and float(lower.diagonal().min()) ** 2 > LEAST_PIVOT * scale:
            break
    else:
        raise UserError(
            "the Gram matrices are far from positive semi-definite; give X X^T / n, columns by columns"
        )
    if extra:
        warnings.append(f"not positive definite: ridge {extra:g} of the mean diagonal added")
    return hessian, lower, tuple(warnings)


def _reversed_cholesky(hessian: Tensor) -> tuple[Tensor, bool]:
    """Lower L with ``J hessian J = L L^T``, J the reversal of indices, and whether there is none."""
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1).mT)  # .mT: column by column, as LAPACK reads
    return lower, bool(failed)


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """``right @ hessian^-1`` for ``right`` ``(rows, columns)``, from the reversed factor of the Hessian."""
    half = torch.linalg.solve_triangular(lower.T, right.flip(1), upper=True, left=False)
    solved: Tensor = torch.linalg.solve_triangular(lower, half, upper=False, left=False)
    return solved.flip(1)
