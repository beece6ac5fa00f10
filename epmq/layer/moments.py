"""Second moments of a layer's inputs, folded over tasks in constant memory.

Only two sums over tasks are kept, whatever the number of experts: the Gram matrices and the experts' targets
against the inputs. With the targets' energy they also give the deviations of claim C3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from epmq.errors import UserError, choose

TaskWeight = Literal["uniform", "frobenius"]


@dataclass(eq=False)
class Moments:
    """Sums over tasks for one layer, all float64. x_t are the layer's inputs, y_t the experts' targets.

    Attributes:
        gram: sum_t c_t G_t with G_t = E[x_t x_t^T], ``(columns, columns)``.
        target: sum_t c_t E[y_t x_t^T], ``(rows, columns)``; y_t = W_t x_t in reading A, W_t x~_t in B.
        energy: sum_t c_t E||y_t||^2; NaN where a task came with a cross moment and no energy.
        shift: sum_t c_t E[(x~_t - x_t) x_t^T] with x~_t the inputs in full precision, ``(columns, columns)``;
            ``None`` where no task came with one.
        weight_total: sum_t c_t.
        tasks: tasks folded so far; ``experts``: those that came with a target.
    """

    gram: Tensor
    target: Tensor
    task_weight: TaskWeight
    energy: float = 0.0
    weight_total: float = 0.0
    tasks: int = 0
    experts: int = 0
    shift: Tensor | None = None

    @classmethod
    def empty(cls, weight: Tensor, task_weight: TaskWeight = "uniform") -> Moments:
        """Zero moments for a layer whose weight is ``(rows, columns)``; raises UserError for a bad weight."""
        choose("task weight", task_weight, ("uniform", "frobenius"))
        _require("weight", weight, None)
        rows, columns = weight.shape
        square, wide = (weight.new_zeros(n, columns, dtype=torch.float64) for n in (columns, rows))
        return cls(square, wide, task_weight)

    def add(
        self,
        gram: Tensor,
        expert_weight: Tensor | None = None,
        cross: Tensor | None = None,
        energy: float = math.nan,
    ) -> float:
        """Fold one task: its Gram matrix, its expert's weight W_t and its cross moment; returns c_t.

        Args:
            gram: G_t, ``(columns, columns)``.
            expert_weight: W_t, ``(rows, columns)``; ``None`` folds the Gram matrix alone.
            cross: E[x~_t x_t^T], ``(columns, columns)``; ``None`` takes G_t (reading A).
            energy: E||W_t x~_t||^2 where there is a cross moment; only deviations need it.

        Raises:
            UserError: a shape does not fit the layer, or a value is not finite.
        """
        if expert_weight is None:
            return self.fold(gram)
        columns = self.gram.shape[0]
        _require("Gram matrix", gram, (columns, columns))
        _require("expert weight", expert_weight, tuple(self.target.shape))
        if cross is not None:
            _require("cross moment", cross, (columns, columns))
        expert_weight = expert_weight.to(self.gram)
        target = expert_weight @ (_symmetric(gram.to(self.gram)) if cross is None else cross.to(self.gram))
        if cross is None:
            energy = float((target * expert_weight).sum())
        return self.fold(gram, target, energy)

    def fold(self, gram: Tensor, target: Tensor | None = None, energy: float = math.nan) -> float:
        """Fold one task by its sums: G_t, E[y_t x_t^T] ``(rows, columns)`` and E||y_t||^2; returns c_t.

        Raises:
            UserError: a shape does not fit the layer, or a value is not finite.
        """
        columns = self.gram.shape[0]
        _require("Gram matrix", gram, (columns, columns))
        if target is not None:
            _require("target moment", target, tuple(self.target.shape))
        gram = _symmetric(gram.to(self.gram))
        scale = 1.0
        if self.task_weight == "frobenius":
            norm = float(torch.linalg.matrix_norm(gram))
            scale = 1 / norm if norm else 0.0  # a layer that sees only zeros has nothing to say
        self.gram += scale * gram
        self.weight_total += scale
        self.tasks += 1
        if target is not None:
            self.target += scale * target.to(self.gram)
            self.energy += scale * energy
            self.experts += 1
        return scale

    def add_shift(self, shift: Tensor, scale: float) -> None:
        """Fold a task's E[(x~_t - x_t) x_t^T], ``(columns, columns)``, with its c_t that :meth:`fold` told.

        Raises:
            UserError: its shape does not fit the layer, or a value is not finite.
        """
        _require("shift", shift, tuple(self.gram.shape))
        part = scale * shift.to(self.gram)
        self.shift = part if self.shift is None else self.shift + part

    def cpu(self) -> Moments:
        """The same sums in the CPU's memory."""
        shift = None if self.shift is None else self.shift.cpu()
        return replace(self, gram=self.gram.cpu(), target=self.target.cpu(), shift=shift)

    def deviations(self, quantised: Tensor, centre: Tensor, merged: Tensor) -> Deviations:
        """How far apart a layer's weights are on its inputs; Q, C and W_m are ``(rows, columns)``."""
        weights = [weight.to(self.gram) for weight in (quantised, centre, merged)]
        on_inputs = [weight @ self.gram for weight in weights]

        def between(a: int, b: int) -> float:
            return float(((on_inputs[a] - on_inputs[b]) * (weights[a] - weights[b])).sum())

        def from_target(a: int) -> float | None:
            if self.experts != self.tasks or math.isnan(self.energy):
                return None
            weight, product = weights[a], on_inputs[a]
            return self.energy - 2 * float((weight * self.target).sum()) + float((product * weight).sum())

        return Deviations(
            quantisation=between(0, 2),
            rounding=between(0, 1),
            move=between(1, 2),
            expert=from_target(0),
            centre=from_target(1),
            merging=from_target(2),
        )


@dataclass(frozen=True)
class Deviations:
    """Mean squared deviations of a layer's outputs, weighted by c_t (claim C3), on its calibration inputs.

    The targets y_t are those of the calibration: W_t x_t in reading A and for the merged target, the experts'
    own W_t x~_t in reading B. The last three are ``None`` without every task's target.

    Attributes:
        quantisation: E||(Q - W_m) x||^2, the deviation of low-bit reconstruction.
        rounding: E||(Q - C) x||^2, the part of it that rounding makes.
        move: E||(C - W_m) x||^2, the part that the centre's move towards the experts makes.
        expert: E||y_t - Q x||^2, of the quantised weight from the experts' targets.
        centre: E||y_t - C x||^2, of the centre before rounding.
        merging: E||y_t - W_m x||^2, inherited from merging.
    """

    quantisation: float
    rounding: float
    move: float
    expert: float | None
    centre: float | None
    merging: float | None


def _require(what: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    if shape is not None and tuple(tensor.shape) != shape:
        raise UserError(f"{what} is {tuple(tensor.shape)}, expected {shape}")
    if tensor.dim() != 2:
        raise UserError(f"{what} has {tensor.dim()} dimensions, expected a matrix (rows, columns)")
    if not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{what} holds NaN or Inf; check the checkpoint or the calibration samples")


def _symmetric(gram: Tensor) -> Tensor:
    """The Gram matrix without the last-bit asymmetry of a matrix product."""
    gap = gram - gram.T
    if float(gap.abs().max()) > 1e-3 * float(gram.abs().max()):
        raise UserError("a Gram matrix is not symmetric; give X X^T / n, columns by columns")
    return gram - gap / 2
