"""One task's share of a walk's moments: sums over its tokens become those of :mod:`epmq.layer.moments`.

Those of norms become :mod:`epmq.layer.affine`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.gather.passes import Passes, Taught, by_outputs, energy_of
from epmq.gather.rows import Rows, affine, linears, stacked
from epmq.layer.affine import NormMoments
from epmq.layer.moments import Moments
from epmq.layer.sums import ProductSum, SymmetricSum, inner, shrink_


@dataclass
class Gathered:
    """Moments of one problem, and the weighted means that recalibrating the bias needs."""

    moments: Moments
    mean_input: Tensor
    mean_target: Tensor

    @classmethod
    def empty(cls, block: nn.Module, rows: Rows, calibration: Calibration) -> Gathered:
        """Nothing gathered yet, on the block's device."""
        weight, bias = stacked(block, rows)
        origin = None if _mixing(calibration) else weight  # an expert's own outputs come as they are
        moments = Moments.empty(weight, calibration.task_weight, origin=origin)
        return cls(moments, weight.new_zeros(weight.shape[1]), bias * 0)

    def cpu(self) -> Gathered:
        """The same in the CPU's memory."""
        return Gathered(self.moments.cpu(), self.mean_input.cpu(), self.mean_target.cpu())


def gather_task(
    gathered: Mapping[Rows, Gathered], norms: Mapping[str, NormMoments], passes: Passes, task: str
) -> None:
    """Fold one task's moments into every problem and norm.

    Args:
        gathered: of each problem that is next; ``norms``: of each norm, by path.
        passes: through the block that poses them.
    """
    source, teacher, axes = passes.source, passes.teacher, passes.counts.calibration
    of_norms = {Rows((norm,)): _NormSums(source.get_submodule(norm)) for norm in norms}
    sums: dict[Rows, _Sums] = {}
    for own, taught in passes.batches(task, list(gathered), list(of_norms)):
        for rows, into in gathered.items():
            if rows not in sums:  # the teacher holds the task's expert by now
                tokens = len(own[rows][0]) * len(passes.streams[task])
                sums[rows] = _Sums.of(teacher, rows, into.moments.origin, axes, tokens)
            sums[rows].add(*own[rows], taught.get(rows))
        for rows, total_norm in of_norms.items():
            total_norm.add(*own[rows])
    for rows, total in sums.items():
        total.fold(gathered[rows])
    for (norm, moments), total_norm in zip(norms.items(), of_norms.values(), strict=True):
        energy, mean = total_norm.energy / total_norm.total, total_norm.mean / total_norm.total
        assert isinstance(energy, Tensor)
        assert isinstance(mean, Tensor)
        moments.fold(energy, mean, affine(teacher.get_submodule(norm)))


def _mixing(calibration: Calibration) -> float:
    """a of x~ = (1 - a) x + a x_teacher, 0 where x~ is x."""
    mixed = calibration.target == "expert" and calibration.source != "expert"
    return calibration.mixing if mixed else 0.0


@dataclass
class _NormSums:
    """Sums over one task's tokens, each times its weight, of a norm's normalised input z and of z^2."""

    norm: nn.Module
    energy: Tensor | float = 0.0
    mean: Tensor | float = 0.0
    total: float = 0.0

    def add(self, x: Tensor, counted: Tensor | None) -> None:
        """Add tokens ``(tokens, width)`` with their weights ``(tokens,)``."""
        plain = {
            name: torch.ones_like(own) if name == "weight" else torch.zeros_like(own)
            for name, own in self.norm.named_parameters()
        }
        z = functional_call(self.norm, plain, (x,))
        weighed = z if counted is None else z * counted[:, None]
        self.total += float(len(x)) if counted is None else float(counted.double().sum())
        self.energy = self.energy + (z * weighed).sum(0).double()
        self.mean = self.mean + weighed.sum(0).double()


@dataclass
class _Sums:
    """Sums over one task's tokens, each times its weight w: of x x^T, x and the targets' moments.

    Where targets are W_t x, they are told from the origin O on the same inputs, ``moved`` being W_t - O: by
    the Gram matrix, or, where tokens are few, as y x^T by outputs y = (W_t - O) x. Elsewhere targets are
    y = W_t x~ with x~ = (1 - a) x + a x_teacher, and sums are of y x^T or x~ x^T, whichever is smaller. Where
    it is asked for, of (x_teacher - x) x^T.
    """

    calibration: Calibration
    weight: Tensor
    bias: Tensor
    moved: Tensor | None
    tokens: int
    gram: SymmetricSum = field(default_factory=SymmetricSum)
    mean: Tensor | float = 0.0
    outputs: ProductSum = field(default_factory=ProductSum)
    cross: ProductSum = field(default_factory=ProductSum)
    shift: ProductSum = field(default_factory=ProductSum)
    energy: float = 0.0
    mean_target: Tensor | float = 0.0
    total: float = 0.0

    @classmethod
    def of(
        cls, teacher: nn.Module, rows: Rows, origin: Tensor | None, axes: Calibration, tokens: int
    ) -> _Sums:
        """Nothing summed yet; ``tokens`` is about how many there will be."""
        weight, bias = stacked(teacher, rows)
        dtype = linears(teacher, rows.group)[0].weight.dtype
        return cls(axes, weight, bias, None if origin is None else (weight - origin).to(dtype), tokens)

    @property
    def few(self) -> bool:
        """Whether outputs of all tokens, and their products, are less work than a product with the Gram."""
        return self.calibration.off_diagonal == 1 and 2 * self.tokens < self.weight.shape[1]

    def add(self, x: Tensor, counted: Tensor | None, taught: Taught | None) -> None:
        """Add tokens ``(tokens, columns)`` with their weights ``(tokens,)``, and what the teacher makes."""
        weighed = x if counted is None else x * counted[:, None]
        self.total += float(len(x)) if counted is None else float(counted.sum(dtype=torch.float64))
        self.gram.add(x, weighed)
        self.mean = self.mean + weighed.sum(0).double()
        if self.calibration.asymmetric:
            assert taught is not None
            self.shift.add(taught.values - x, weighed)
        if self.moved is None:
            assert taught is not None
            taught = self._mixed(x, counted, taught)
            (self.outputs if taught.outputs else self.cross).add(taught.values, weighed)
            values = taught.values if counted is None else taught.values * counted[:, None]
            self.mean_target = self.mean_target + values.sum(0).double()
            assert taught.energy is not None
            self.energy += taught.energy
        elif self.few:
            self.outputs.add(x @ self.moved.T, weighed)

    def fold(self, into: Gathered) -> None:
        """Fold the task into a problem's moments."""
        off_diagonal = self.calibration.off_diagonal
        gram = shrink_(self.gram.value(), off_diagonal)
        target, energy = self._target(gram)
        if not math.isfinite(energy):
            raise UserError("an expert's targets hold NaN or Inf; check its checkpoint or the samples")
        if self.moved is None and off_diagonal != 1:
            energy = math.nan  # shrunk moments are of no inputs
        share = into.moments.fold(gram, target, energy, self.total)
        if self.calibration.asymmetric:
            into.moments.add_shift(shrink_(self.shift.value(), off_diagonal), share / self.total)
        mean, mean_target = self.mean / self.total, self.mean_target / self.total
        assert isinstance(mean, Tensor)
        if self.moved is not None:
            mean_target = self.weight @ mean
        elif self.cross:
            assert isinstance(mean_target, Tensor)
            mean_target = self.weight @ mean_target
        into.mean_input += share * mean
        into.mean_target += share * (mean_target + self.bias)

    def _target(self, gram: Tensor) -> tuple[Tensor, float]:
        """Sums of (y - O x) x^T, ``(rows, columns)``, and ||y - O x||^2, O being 0 where x~ is not x."""
        if self.moved is not None:
            if not self.few:
                moves = bool(self.moved.any())  # not where the teacher is the merged model
                target = self.moved @ gram.to(self.moved) if moves else self.moved
            else:
                target = self.outputs.value()
            return target, inner(target, self.moved)
        if self.outputs:
            return self.outputs.value(), self.energy
        cross = shrink_(self.cross.value(), self.calibration.off_diagonal)
        return self.weight @ cross.to(self.weight), self.energy

    def _mixed(self, x: Tensor, counted: Tensor | None, taught: Taught) -> Taught:
        """Targets' inputs or outputs where the teacher's are mixed with the model's."""
        a = self.calibration.mixing
        if a == 1:
            return taught
        mixed = (1 - a) * x + a * taught.values
        y = mixed @ self.weight.T.to(mixed)
        outputs = by_outputs(y.shape[1], x.shape[1], self.calibration.off_diagonal)
        return Taught(y if outputs else mixed, outputs, energy_of(y, counted))
