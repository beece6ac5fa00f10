"""What a calibration walk gathers of a layer's inputs: task by task, its moments.

One task's batches pass through the model's block and the teacher's; the sums over its tokens become the
moments of :mod:`epmq.layer.moments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from epmq.calibration import Calibration
from epmq.layer.moments import Moments
from epmq.models.tower import SharedInput, State, Tower

Batches = Tensor | Sequence[Any]  # model inputs: (n, ...), cut into batches by the walk, or batches
Stream = list[State]  # one task's states, a batch each


class _Reached(Exception):
    """The forward pass has come to the last layer whose input is wanted."""


def linears(block: nn.Module, group: SharedInput) -> list[nn.Linear]:
    """The linear layers of a group."""
    found = [block.get_submodule(path) for path in group]
    assert all(isinstance(layer, nn.Linear) for layer in found)
    return found  # type: ignore[return-value]


def stacked(block: nn.Module, group: SharedInput) -> tuple[Tensor, Tensor]:
    """Weights ``(rows, columns)`` and biases ``(rows,)`` of a group, stacked over output rows, float64."""
    layers = linears(block, group)
    biases = [
        layer.bias if has_bias(layer) else layer.weight.new_zeros(len(layer.weight)) for layer in layers
    ]
    return torch.cat([layer.weight.detach() for layer in layers]).double(), torch.cat(biases).double()


def has_bias(layer: nn.Linear) -> bool:
    """Whether a linear layer has a bias (torch's annotation says it always does)."""
    return "bias" in dict(layer.named_parameters())


@dataclass(frozen=True)
class Counts:
    """What each token of a block's states counts for: nothing where it is padding.

    ``patch_weight`` is that of tokens other than the class token where only this one is read: behind the
    attention of the last block of a tower whose head pools.
    """

    tower: Tower
    block: int
    patch_weight: float

    def of(self, group: SharedInput, state: State, shape: torch.Size) -> Tensor | None:
        """Weights ``(n, tokens)`` float32 of the group's inputs, ``shape`` being theirs; ``None``: all 1."""
        valid = self.tower.valid(self.block, group, state)
        weights = None if valid is None else valid.float()
        if self.patch_weight != 1 and self._pooled(group):
            own = torch.full(shape, self.patch_weight)
            own[:, 0] = 1
            weights = own if weights is None else weights * own.to(weights.device)
        return weights

    def _pooled(self, group: SharedInput) -> bool:
        """Whether the head reads the group's output at the class token alone."""
        last = self.block == len(self.tower.blocks) - 1
        return self.tower.pooled and last and group != self.tower.groups[self.block][0]


@dataclass
class Gathered:
    """Moments of one group, and the weighted means that recalibrating the bias needs."""

    moments: Moments
    mean_input: Tensor
    mean_target: Tensor

    @classmethod
    def empty(cls, block: nn.Module, group: SharedInput, calibration: Calibration) -> Gathered:
        """Nothing gathered yet, on the block's device."""
        weight, bias = stacked(block, group)
        return cls(
            Moments.empty(weight, calibration.task_weight), weight.new_zeros(weight.shape[1]), bias * 0
        )

    def cpu(self) -> Gathered:
        """The same in the CPU's memory."""
        return Gathered(self.moments.cpu(), self.mean_input.cpu(), self.mean_target.cpu())


def gather_task(
    gathered: Mapping[SharedInput, Gathered],
    pair: tuple[tuple[nn.Module, Stream], tuple[nn.Module, Stream]],
    calibration: Calibration,
    counts: Counts,
) -> None:
    """Fold one task's moments into every group.

    Args:
        gathered: of each group whose layers are next.
        pair: the block that inputs come from and its states, and the teacher's block and states.
    """
    (source, states), (teacher, teacher_states) = pair
    sums = {group: _Sums.of(teacher, group, calibration) for group in gathered}
    groups = list(gathered)
    for state, teacher_state in zip(states, teacher_states, strict=True):
        seen = _layer_inputs(teacher, teacher_state, groups, counts) if calibration.follows_experts else {}
        own = seen if calibration.source == "expert" else _layer_inputs(source, state, groups, counts)
        for group, total in sums.items():
            total.add(*own[group], seen[group][0] if group in seen else None)
    for group, total in sums.items():
        _fold(gathered[group], total)


@dataclass
class _Sums:
    """Sums over one task's tokens, each times its weight w: of x x^T, x, and of the targets W_t x~.

    With x~ = (1 - a) x + a x_teacher other than x, also of x~ x^T and x~ x~^T, or, where a layer has fewer
    rows than columns, of y x^T and ||y||^2 with y = W_t x~.
    """

    weight: Tensor
    bias: Tensor
    mixing: float
    off_diagonal: float
    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    mixed_gram: Tensor | float = 0.0
    energy: float = 0.0
    mean: Tensor | float = 0.0
    mixed_mean: Tensor | float = 0.0
    total: float = 0.0

    @classmethod
    def of(cls, teacher: nn.Module, group: SharedInput, calibration: Calibration) -> _Sums:
        weight, bias = stacked(teacher, group)
        mixing = calibration.mixing if calibration.target == "expert" else 0.0
        return cls(weight, bias, mixing, calibration.off_diagonal)

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
    block: nn.Module, state: State, groups: Sequence[SharedInput], counts: Counts
) -> dict[SharedInput, tuple[Tensor, Tensor | None]]:
    """Inputs ``(tokens, columns)`` of each group's layers and their weights; those of weight 0 are left out.

    The pass ends at the last group.
    """
    seen: dict[SharedInput, tuple[Tensor, Tensor | None]] = {}

    def watch(group: SharedInput) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[group] = _counted(args[0], counts.of(group, state, args[0].shape[:-1]))
            if len(seen) == len(groups):
                raise _Reached

        return hook

    handles = [block.get_submodule(g[0]).register_forward_pre_hook(watch(g)) for g in groups]
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
