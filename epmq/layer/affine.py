"""Biases and norms in closed form, as FeatCal solves them (arXiv 2605.13030, read from its code).

A norm is z * g + s, elementwise, on normalised inputs z; g is its scale and s its shift, which an RMS norm
does not have. Its target is the expert's g_t and s_t on the same z.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Affine = tuple[Tensor, Tensor | None]  # scale and shift, (width,) each
LEAST_DETERMINANT = 1e-12  # of the product of the diagonal; below it z is constant over all samples


def solved_bias(wanted: Tensor, found: Tensor, weight: float, point: Tensor, ridge: float) -> Tensor:
    """The bias b that minimises sum_t c_t ||b - r_t||^2 + ridge ||b - point||^2, ``(rows,)``.

    r_t = b_t + W_t E[x~_t] - W E[x_t] is what task t's mean output lacks.

    Args:
        wanted: sum_t c_t (W_t E[x~_t] + b_t), ``(rows,)``.
        found: W sum_t c_t E[x_t], ``(rows,)``.
        weight: sum_t c_t.
        point: what the ridge pulls to, ``(rows,)``.
    """
    total = weight + ridge
    if not total:  # all tasks weigh nothing where the inputs are all zero
        return point
    return point + (wanted - found - weight * point) / total


@dataclass(eq=False)
class NormMoments:
    """Sums over tasks for one norm, all ``(width,)`` float64; every task counts alike.

    Attributes:
        energy: sum_t E[z_t^2].
        mean: sum_t E[z_t].
        on_inputs: sum_t E[y_t z_t] with the target y_t = g_t z_t + s_t.
        target: sum_t E[y_t].
        tasks: tasks folded so far.
    """

    energy: Tensor
    mean: Tensor
    on_inputs: Tensor
    target: Tensor
    tasks: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device) -> NormMoments:
        """Zero moments."""
        energy, mean, on_inputs, target = torch.zeros(4, width, dtype=torch.float64, device=device)
        return cls(energy, mean, on_inputs, target)

    def fold(self, energy: Tensor, mean: Tensor, expert: Affine) -> None:
        """Fold one task: E[z^2] and E[z], ``(width,)`` float64, and its expert's scale and shift."""
        scale, shift = (None if part is None else part.double() for part in expert)
        assert scale is not None
        self.energy += energy
        self.mean += mean
        self.on_inputs += energy * scale
        self.target += mean * scale
        if shift is not None:
            self.on_inputs += mean * shift
            self.target += shift
        self.tasks += 1

    def solve(self, point: Affine, ridge: float) -> Affine:
        """Scale and shift that minimise sum_t E||y_t - (z g + s)||^2 + ridge (||g - G||^2 + ||s - S||^2).

        Per entry it is a system of two equations, of one without a shift. ``point`` is (G, S), float64; where
        z does not vary and nothing pulls, the scale stays there.
        """
        scale, shift = point
        first = self.energy + ridge
        if shift is None:
            gap = self.on_inputs - self.energy * scale
            return scale + torch.where(first > 0, gap / first.clamp(min=1e-300), torch.zeros_like(gap)), None
        second = self.tasks + ridge
        gap = self.on_inputs - self.energy * scale - self.mean * shift
        gap_shift = self.target - self.mean * scale - self.tasks * shift
        determinant = first * second - self.mean**2
        solvable = determinant > LEAST_DETERMINANT * first * second
        safe = torch.where(solvable, determinant, torch.ones_like(determinant))
        move = torch.where(solvable, (second * gap - self.mean * gap_shift) / safe, torch.zeros_like(gap))
        return scale + move, shift + (gap_shift - self.mean * move) / second
