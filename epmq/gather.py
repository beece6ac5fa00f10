"""What a calibration walk gathers of a layer's inputs: task by task, its moments.

One task's batches pass through the model's block and the teacher's; the sums over its tokens become the
moments of :mod:`epmq.layer.moments`, and those of norms of :mod:`epmq.layer.affine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from epmq.calibration import Calibration
from epmq.layer.affine import Affine, NormMoments
from epmq.layer.moments import Moments
from epmq.models.tower import SharedInput, State, Tower

Batches = Tensor | Sequence[Any]  # model inputs: (n, ...), cut into batches by the walk, or batches
Stream = list[State]  # one task's states, a batch each


class _Reached(Exception):
    """The forward pass has come to the last layer whose input is wanted."""


@dataclass(frozen=True)
class Rows:
    """What one problem is of: the stacked output rows of a group, from ``start`` to before ``stop``.

    All of them, unless queries weigh tokens otherwise than keys and values.
    """

    group: SharedInput
    start: int = 0
    stop: int | None = None

    @property
    def suffix(self) -> str:
        """What tells the rows in a layer's name: ``[:96]``; nothing where they are all."""
        if not self.start and self.stop is None:
            return ""
        return f"[{self.start or ''}:{'' if self.stop is None else self.stop}]"

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


def linears(block: nn.Module, group: SharedInput) -> list[nn.Linear]:
    """The linear layers of a group."""
    found = [block.get_submodule(path) for path in group]
    assert all(isinstance(layer, nn.Linear) for layer in found)
    return found  # type: ignore[return-value]


def stacked(block: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Weights ``(rows, columns)`` and biases ``(rows,)`` of a problem's rows, float64."""
    layers = linears(block, rows.group)
    biases = [
        layer.bias if has_bias(layer) else layer.weight.new_zeros(len(layer.weight)) for layer in layers
    ]
    weights = [layer.weight.detach() for layer in layers]
    return torch.cat(weights)[rows.slice].double(), torch.cat(biases)[rows.slice].double()


def affine(norm: nn.Module) -> Affine:
    """Scale and shift of a norm, ``(width,)`` float64; no shift where it has none."""
    own = dict(norm.named_parameters())
    return own["weight"].detach().double(), own["bias"].detach().double() if "bias" in own else None


def has_bias(layer: nn.Linear) -> bool:
    """Whether a linear layer has a bias (torch's annotation says it always does)."""
    return "bias" in dict(layer.named_parameters())


@dataclass(frozen=True)
class Counts:
    """What each token of a block's states counts for: nothing where it is padding.

    In the last block of a tower whose head pools, only the class token is read: ``patch_weight`` is that of
    the others behind the attention, or, by ``patch_scope``, in all but keys and values.
    """

    tower: Tower
    block: int
    calibration: Calibration

    def problems(self, block: nn.Module, group: SharedInput) -> list[Rows]:
        """The problems that a group poses: one, or queries apart from keys and values."""
        if not (self._last and self._queries and group == self.tower.groups[self.block][0]):
            return [Rows(group)]
        queries = sum(len(layer.weight) for layer in linears(block, group)) // 3
        return [Rows(group, 0, queries), Rows(group, queries)]

    def norms(self, groups: Sequence[SharedInput]) -> list[str]:
        """Norms before the groups, by path; none where they are not asked for."""
        if not self.calibration.closed_norms or self.block >= len(self.tower.norms):
            return []
        return [norm for norm, group in self.tower.norms[self.block].items() if group in groups]

    def of(self, rows: Rows, state: State, shape: torch.Size) -> Tensor | None:
        """Weights ``(n, tokens)`` float32 of inputs, ``shape`` being theirs; ``None``: all 1.

        A norm is asked for as the group of its path.
        """
        valid = self.tower.valid(self.block, rows.group, state)
        weights = None if valid is None else valid.float()
        if self._last and self._pooled(rows):
            own = torch.full(shape, self.calibration.patch_weight)
            own[:, 0] = 1
            weights = own if weights is None else weights * own.to(weights.device)
        return weights

    @property
    def _last(self) -> bool:
        weighs = self.calibration.patch_weight != 1 and self.tower.pooled
        return weighs and self.block == len(self.tower.blocks) - 1

    @property
    def _queries(self) -> bool:
        return self.calibration.patch_scope == "queries"

    def _pooled(self, rows: Rows) -> bool:
        """Whether ``patch_weight`` is of these inputs of the last block."""
        first = self.tower.groups[self.block][0]
        if rows.group == first:
            return self._queries and rows.stop is not None
        return self._queries or self.tower.norms[self.block].get(rows.group[0]) != first


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
        return cls(
            Moments.empty(weight, calibration.task_weight), weight.new_zeros(weight.shape[1]), bias * 0
        )

    def cpu(self) -> Gathered:
        """The same in the CPU's memory."""
        return Gathered(self.moments.cpu(), self.mean_input.cpu(), self.mean_target.cpu())


def gather_task(
    gathered: Mapping[Rows, Gathered],
    norms: Mapping[str, NormMoments],
    pair: tuple[tuple[nn.Module, Stream], tuple[nn.Module, Stream]],
    calibration: Calibration,
    counts: Counts,
) -> None:
    """Fold one task's moments into every problem and norm.

    Args:
        gathered: of each problem that is next; ``norms``: of each norm, by path.
        pair: the block that inputs come from and its states, and the teacher's block and states.
    """
    (source, states), (teacher, teacher_states) = pair
    sums = {rows: _Sums.of(teacher, rows, calibration) for rows in gathered}
    of_norms = {Rows((norm,)): _NormSums(source.get_submodule(norm)) for norm in norms}
    wanted = [*sums, *of_norms]
    for state, teacher_state in zip(states, teacher_states, strict=True):
        seen = {}
        if calibration.source == "expert":
            seen = own = _layer_inputs(teacher, teacher_state, wanted, counts)
        else:
            if calibration.follows_experts and sums:
                seen = _layer_inputs(teacher, teacher_state, list(sums), counts)
            own = _layer_inputs(source, state, wanted, counts)
        for rows, total in sums.items():
            total.add(*own[rows], seen[rows][0] if rows in seen else None)
        for rows, total_norm in of_norms.items():
            total_norm.add(*own[rows])
    for rows, total in sums.items():
        _fold(gathered[rows], total)
    for (norm, moments), total_norm in zip(norms.items(), of_norms.values(), strict=True):
        energy, mean = total_norm.energy / total_norm.total, total_norm.mean / total_norm.total
        assert isinstance(energy, Tensor)
        assert isinstance(mean, Tensor)
        moments.fold(energy, mean, affine(teacher.get_submodule(norm)))


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
    """Sums over one task's tokens, each times its weight w: of x x^T, x, and of the targets W_t x~.

    With x~ = (1 - a) x + a x_teacher other than x, also of x~ x^T and x~ x~^T, or, where a layer has fewer
    rows than columns, of y x^T and ||y||^2 with y = W_t x~. Where it is asked for, of (x_teacher - x) x^T.
    """

    weight: Tensor
    bias: Tensor
    mixing: float
    off_diagonal: float
    asymmetric: bool
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    mixed_gram: Tensor | float = 0.0
    energy: float = 0.0
    mean: Tensor | float = 0.0
    mixed_mean: Tensor | float = 0.0
    shift: Tensor | float = 0.0
    total: float = 0.0

    @classmethod
    def of(cls, teacher: nn.Module, rows: Rows, calibration: Calibration) -> _Sums:
        weight, bias = stacked(teacher, rows)
        mixing = calibration.mixing if calibration.target == "expert" else 0.0
        return cls(weight, bias, mixing, calibration.off_diagonal, calibration.asymmetric)

    @property
    def narrow(self) -> bool:
        """Whether sums over outputs are the smaller ones (shrinking needs those over inputs)."""
        return self.weight.shape[0] < self.weight.shape[1] and self.off_diagonal == 1

    def add(self, x: Tensor, counted: Tensor | None, teacher_x: Tensor | None) -> None:
        """Add tokens ``(tokens, columns)`` with their weights ``(tokens,)``."""
        weighed = x if counted is None else x * counted[:, None]
        self.total += float(len(x)) if counted is None else float(counted.double().sum())
        self.gram = self.gram + (x.T @ weighed).double()
        self.mean = self.mean + weighed.sum(0).double()
        if self.asymmetric and teacher_x is not None:
            self.shift = self.shift + ((teacher_x - x).T @ weighed).double()
        if not self.mixing or teacher_x is None:
            return
        mixed = (1 - self.mixing) * x + self.mixing * teacher_x
        weighed_mixed = mixed if counted is None else mixed * counted[:, None]
        self.mixed_mean = self.mixed_mean + weighed_mixed.sum(0).double()
        if self.narrow:
            y = mixed @ self.weight.T.to(mixed)
            self.cross = self.cross + (y.T @ weighed).double()
            squares = y.square().sum(1)
            self.energy += float((squares if counted is None else squares * counted).double().sum())
        else:
            self.cross = self.cross + (mixed.T @ weighed).double()
            self.mixed_gram = self.mixed_gram + (mixed.T @ weighed_mixed).double()


def _fold(into: Gathered, sums: _Sums) -> None:
    gram, mean = sums.gram / sums.total, sums.mean / sums.total
    assert isinstance(gram, Tensor)
    assert isinstance(mean, Tensor)
    mixed_mean = sums.mixed_mean / sums.total if sums.mixing else mean
    assert isinstance(mixed_mean, Tensor)
    if sums.mixing:
        share = into.moments.fold(_shrunk(gram, sums.off_diagonal), *_target(sums))
    else:
        share = into.moments.add(_shrunk(gram, sums.off_diagonal), sums.weight)
    if sums.asymmetric:
        shift = sums.shift / sums.total
        assert isinstance(shift, Tensor)
        into.moments.add_shift(_shrunk(shift, sums.off_diagonal), share)
    into.mean_input += share * mean
    into.mean_target += share * (sums.weight @ mixed_mean + sums.bias)


def _target(sums: _Sums) -> tuple[Tensor, float]:
    """E[y x^T], ``(rows, columns)``, and E||y||^2; NaN for shrunk moments, which are of no inputs."""
    cross = sums.cross / sums.total
    assert isinstance(cross, Tensor)
    if sums.narrow:
        return cross, sums.energy / sums.total
    target = sums.weight @ _shrunk(cross, sums.off_diagonal)
    if sums.off_diagonal != 1:
        return target, math.nan
    mixed_gram = sums.mixed_gram / sums.total
    assert isinstance(mixed_gram, Tensor)
    return target, float(((sums.weight @ mixed_gram) * sums.weight).sum())


def _shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    if off_diagonal == 1:
        return gram
    return off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())


def _layer_inputs(
    block: nn.Module, state: State, wanted: Sequence[Rows], counts: Counts
) -> dict[Rows, tuple[Tensor, Tensor | None]]:
    """Inputs ``(tokens, columns)`` of layers and norms and their weights; those of weight 0 are left out.

    The pass ends at the last of them.
    """
    seen: dict[Rows, tuple[Tensor, Tensor | None]] = {}

    def watch(rows: Rows) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[rows] = _counted(args[0], counts.of(rows, state, args[0].shape[:-1]))
            if len(seen) == len(wanted):
                raise _Reached

        return hook

    handles = [block.get_submodule(r.group[0]).register_forward_pre_hook(watch(r)) for r in wanted]
    try:
        block(state)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _counted(inputs: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    tokens = inputs.flatten(0, -2)
    if weights is None:
        return tokens, None
    flat = weights.flatten().to(tokens.device)
    kept = flat > 0
    tokens, flat = tokens[kept], flat[kept]
    return tokens, None if bool((flat == 1).all()) else flat
