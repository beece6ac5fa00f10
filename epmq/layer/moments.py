"""Second moments of a layer's inputs, folded over tasks in constant memory.

Only three sums over tasks are kept, whatever the number of experts: the Gram matrices, the experts' targets
against the inputs, and the diagnostics of claim C3 (quantisation and expert-relative deviation).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from epmq.errors import UserError, choose

TaskWeight = Literal["uniform", "frobenius"]


@dataclass(eq=False)
class Moments:
    """Sums over tasks for one layer, all float64.

    Attributes:
        gram: sum_t c_t G_t, ``(columns, columns)``.
        target: sum_t c_t W_t E[x~_t x_t^T], ``(rows, columns)``; G_t stands for the expectation in reading A.
        on_inputs: sum_t c_t W_t G_t, ``(rows, columns)``.
        energy: sum_t c_t tr(W_t G_t W_t^T).
        weight_total: sum_t c_t.
        tasks: tasks folded so far; ``experts``: those that came with an expert's weight.
    """

    gram: Tensor
    target: Tensor
    on_inputs: Tensor
    task_weight: TaskWeight
    energy: float = 0.0
    weight_total: float = 0.0
    tasks: int = 0
    experts: int = 0

    @classmethod
    def empty(cls, weight: Tensor, task_weight: TaskWeight = "uniform") -> Moments:
        """Zero moments for a layer whose weight is ``(rows, columns)``; raises UserError for a bad weight."""
        choose("task weight", task_weight, ("uniform", "frobenius"))
        _require("weight", weight, None)
        rows, columns = weight.shape
        square, wide = (weight.new_zeros(n, columns, dtype=torch.float64) for n in (columns, rows))
        return cls(square, wide, wide.clone(), task_weight)

    def add(self, gram: Tensor, expert_weight: Tensor | None = None, cross: Tensor | None = None) -> float:
        """Fold one task: its Gram matrix, its expert's weight and its cross moment E[x~ x^T]; returns c_t.

        Raises:
            UserError: a shape does not fit the layer, or a value is not finite.
        """
        columns = self.gram.shape[0]
        _require("Gram matrix", gram, (columns, columns))
        if expert_weight is not None:
            _require("expert weight", expert_weight, tuple(self.target.shape))
        if cross is not None:
            _require("cross moment", cross, (columns, columns))
        gram = _symmetric(gram.to(self.gram))
        scale = 1.0
        if self.task_weight == "frobenius":
            norm = float(torch.linalg.matrix_norm(gram))
            scale = 1 / norm if norm else 0.0  # a layer that sees only zeros has nothing to say
        self.gram += scale * gram
        self.weight_total += scale
        self.tasks += 1
        if expert_weight is None:
            return scale
        expert_weight = expert_weight.to(self.gram)
        on_inputs = scale * (expert_weight @ gram)
        self.on_inputs += on_inputs
        self.energy += float((on_inputs * expert_weight).sum())
        self.target += on_inputs if cross is None else scale * (expert_weight @ cross.to(self.gram))
        self.experts += 1
        return scale

    def cpu(self) -> Moments:
        """The same sums in the CPU's memory."""
        return replace(self, gram=self.gram.cpu(), target=self.target.cpu(), on_inputs=self.on_inputs.cpu())

    def quantisation_deviation(self, weight: Tensor, merged: Tensor) -> float:
        """sum_t c_t E||(W_m - Q) x_t||^2 (claim C3: the deviation of low-bit reconstruction)."""
        gap = (weight - merged).to(self.gram)
        return float(((gap @ self.gram) * gap).sum())

    def expert_deviation(self, weight: Tensor) -> float | None:
        """sum_t c_t E||(W_t - Q) x_t||^2 (claim C3), or ``None`` without every task's expert."""
        if self.experts != self.tasks:
            return None
        weight = weight.to(self.gram)
        return (
            self.energy
            - 2 * float((weight * self.on_inputs).sum())
            + float(((weight @ self.gram) * weight).sum())
        )


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
