"""The problems that a block poses, and what each token of its states counts for in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epmq.calibration import Calibration
from epmq.layer.affine import Affine
from epmq.models.tower import SharedInput, State, Tower


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
