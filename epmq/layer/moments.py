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
from epmq.layer import sums
from epmq.layer.sums import accumulate_, inner, square_norm

TaskWeight = Literal["uniform", "frobenius"]


@dataclass(eq=False)
class Moments:
    """Sums over tasks for one layer, all float64. x_t are the layer's inputs, y_t the experts' targets.

    Targets are told from what an origin O gives on the same inputs, so that float32 sums of small
    differences stay exact to float32's last digits of the differences.

    Attributes:
        gram: sum_t c_t G_t with G_t = E[x_t x_t^T], ``(columns, columns)``.
        target: sum_t c_t E[(y_t - O x_t) x_t^T], ``(rows, columns)``; y_t = W_t x_t in reading A, W_t x~_t in
            B.
        origin: O, ``(rows, columns)``; ``None`` for 0.
        energy: sum_t c_t E||y_t - O x_t||^2; NaN where a task came with a cross moment and no energy.
        shift: sum_t c_t E[(x~_t - x_t) x_t^T] with x~_t the inputs in full precision, ``(columns, columns)``;
            ``None`` where no task came with one.
        weight_total: sum_t c_t.
        tasks: tasks folded so far; ``experts``: those that came with a target.
    """

    gram: Tensor
    target: Tensor
    task_weight: TaskWeight
    origin: Tensor | None = None
    energy: float = 0.0
    weight_total: float = 0.0
    tasks: int = 0
    experts: int = 0
    shift: Tensor | None = None

    @classmethod
    def empty(
        cls, weight: Tensor, task_weight: TaskWeight = "uniform", *, origin: Tensor | None = None
    ) -> Moments:
        """Zero moments for a layer whose weight is ``(rows, columns)``.

        Args:
            weight: like the layer's; only its shape and device count.
            origin: O, like ``weight``.

        Raises:
            UserError: a bad weight.
        """
        choose("task weight", task_weight, ("uniform", "frobenius"))
        _require("weight", weight, None)
        rows, columns = weight.shape
        square, wide = (weight.new_zeros(n, columns, dtype=torch.float64) for n in (columns, rows))
        return cls(square, wide, task_weight, None if origin is None else origin.to(square))

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
        columns = self.gram.shape[0]
        _require("Gram matrix", gram, (columns, columns))
        if expert_weight is not None:
            _require("expert weight", expert_weight, tuple(self.target.shape))
        if cross is not None:
            _require("cross moment", cross, (columns, columns))
        gram = _symmetric(gram.to(self.gram))
        if expert_weight is None:
            return self.fold(gram)
        moved = expert_weight.to(self.gram)
        if cross is not None:
            target = moved @ cross.to(self.gram)
            if self.origin is not None:
                on_inputs = self.origin @ gram
                energy += inner(self.origin, on_inputs) - 2 * inner(self.origin, target)
                target -= on_inputs
        else:
            if self.origin is not None:
                moved = moved - self.origin
            target = moved @ gram
            energy = inner(target, moved)
        return self.fold(gram, target, energy)

    def fold(
        self, gram: Tensor, target: Tensor | None = None, energy: float = math.nan, total: float = 1.0
    ) -> float:
        """Fold one task by its sums over samples, of any floating-point type; returns c_t.

        Only diagonal and energy are looked at for NaN and Inf: a Gram matrix's other entries are no larger
        than its diagonal's, a target moment's no larger than both.

        Args:
            gram: sum of x_t x_t^T, ``(columns, columns)``, symmetric to the last bit.
            target: sum of (y_t - O x_t) x_t^T, ``(rows, columns)``, finite.
            energy: sum of ||y_t - O x_t||^2; NaN where it is not known.
            total: how many samples the sums are of, or what these weigh.

        Raises:
            UserError: a shape does not fit the layer, or an input is not finite.
        """
        _fits("Gram matrix", gram, tuple(self.gram.shape))
        if target is not None:
            _fits("target moment", target, tuple(self.target.shape))
        _finite("Gram matrix", gram.diagonal())
        scale = 1.0
        if self.task_weight == "frobenius":
            norm = math.sqrt(square_norm(gram)) / total
            scale = 1 / norm if norm else 0.0  # a layer that sees only zeros has nothing to say
        accumulate_(self.gram, gram, scale / total)
        self.weight_total += scale
        self.tasks += 1
        if target is not None:
            accumulate_(self.target, target, scale / total)
            self.energy += scale * energy / total
            self.experts += 1
        return scale

    def add_shift(self, shift: Tensor, scale: float) -> None:
        """Fold a task's E[(x~_t - x_t) x_t^T], ``(columns, columns)``, with its c_t that :meth:`fold` told.

        Raises:
            UserError: its shape does not fit the layer, or a value is not finite.
        """
        _require("shift", shift, tuple(self.gram.shape))
        if self.shift is None:
            self.shift = torch.zeros_like(self.gram)
        accumulate_(self.shift, shift, scale)

    def residual(self, weight: Tensor) -> Tensor:
        """sum_t c_t E[(y_t - W x_t) x_t^T], ``(rows, columns)``, of a weight W, float64."""
        moved = weight.to(self.gram)
        if self.origin is not None:
            if torch.equal(moved, self.origin):
                return self.target
            moved = moved - self.origin
        return self.target - moved @ self.gram

    def cpu(self) -> Moments:
        """The same sums in the CPU's memory."""
        origin, shift = (None if x is None else x.cpu() for x in (self.origin, self.shift))
        return replace(self, gram=self.gram.cpu(), target=self.target.cpu(), origin=origin, shift=shift)

    def deviations(
        self, quantised: Tensor, centre: Tensor, merged: Tensor, moved_on_inputs: Tensor | None = None
    ) -> Deviations:
        """How far apart a layer's weights are on its inputs; Q, C and W_m are ``(rows, columns)``.

        Args:
            moved_on_inputs: (C - W_m) sum_t c_t G_t, ``(rows, columns)``, where it is known already.
        """
        weights = [weight.to(self.gram) for weight in (quantised, centre, merged)]
        if self.origin is not None:
            weights = [weight - self.origin for weight in weights]
        of_quantised, of_merged = self._on_inputs(weights[0]), self._on_inputs(weights[2])
        if weights[1].equal(weights[2]):
            of_centre = of_merged
        elif moved_on_inputs is not None:
            of_centre = of_merged + moved_on_inputs
        else:
            of_centre = self._on_inputs(weights[1])
        on_inputs = (of_quantised, of_centre, of_merged)

        def between(a: int, b: int) -> float:
            return float(((on_inputs[a] - on_inputs[b]) * (weights[a] - weights[b])).sum())

        def from_target(a: int) -> float | None:
            if self.experts != self.tasks or math.isnan(self.energy):
                return None
            weight, product = weights[a], on_inputs[a]
            return self.energy - 2 * inner(weight, self.target) + inner(product, weight)

        return Deviations(
            quantisation=between(0, 2),
            rounding=between(0, 1),
            move=between(1, 2),
            expert=from_target(0),
            centre=from_target(1),
            merging=from_target(2),
        )

    def _on_inputs(self, weight: Tensor) -> Tensor:
        return weight @ self.gram if bool(weight.any()) else weight


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


def _fits(what: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    if shape is not None and tuple(tensor.shape) != shape:
        raise UserError(f"{what} is {tuple(tensor.shape)}, expected {shape}")
    if tensor.dim() != 2:
        raise UserError(f"{what} has {tensor.dim()} dimensions, expected a matrix (rows, columns)")


def _finite(what: str, tensor: Tensor) -> None:
    # One pass for the extremes, which are NaN where any value is, is a tenth of testing every value.
    if tensor.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all()):
        raise UserError(f"{what} holds NaN or Inf; check the checkpoint or the calibration samples")


def _require(what: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    _fits(what, tensor, shape)
    _finite(what, tensor)


def _symmetric(gram: Tensor) -> Tensor:
    """A caller's Gram matrix without the last-bit asymmetry of a matrix product."""
    found, gaps, sizes = torch.empty_like(gram), [], []
    strips = [slice(start, start + sums.TILE) for start in range(0, len(gram), sums.TILE)]
    for number, rows in enumerate(strips):
        for columns in strips[number:]:  # a tile and its mirror image: both stay in the cache
            mirrored = gram[columns, rows].T.contiguous()
            mean = (gram[rows, columns] + mirrored).div_(2)
            gaps.append(mirrored.sub_(mean).abs_().max())
            sizes.append(mean.abs().max())
            found[rows, columns] = mean
            found[columns, rows] = mean.T
    if 2 * float(torch.stack(gaps).max()) > 1e-3 * float(torch.stack(sizes).max()):
        raise UserError("a Gram matrix is not symmetric; give X X^T / n, columns by columns")
    return found
