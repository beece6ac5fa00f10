"""The shape that the calibration walk needs of a model: a stem, a list of blocks, a head.

An adapter (one file per architecture, e.g. :mod:`epmq.open_clip_vision`) builds a :class:`Tower` from a
model; the walk, the merge and the evaluation know nothing else about architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from epmq.errors import UserError

SharedInput = tuple[str, ...]  # paths, inside a block, of the linear layers that read one and the same input


class Tower(nn.Module):
    """A model as stem, blocks and head.

    Args:
        stem: model input ``(n, ...)`` to hidden states ``(n, tokens, width)``.
        blocks: each maps hidden states to hidden states.
        head: hidden states to features ``(n, dim)``.
        groups: linear layers of a block in the order in which they run; those of one group read the same
            input, so they share a Gram matrix and their rows stack into one problem.
        keys: checkpoint name of every parameter.
        shared: parameters (by checkpoint name) that are neither merged nor quantised and stay the base's.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        groups: Sequence[SharedInput],
        keys: Mapping[str, str],
        shared: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.groups, self.keys, self.shared = tuple(groups), dict(keys), shared
        unmapped = [name for name, _ in self.named_parameters() if name not in self.keys]
        if unmapped:
            raise UserError(
                f"parameter {unmapped[0]!r} has no checkpoint name; the adapter does not know this model"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Features ``(n, dim)``."""
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        features: Tensor = self.head(hidden)
        return features

    @torch.no_grad()
    def load(self, part: nn.Module, path: str, checkpoint: Mapping[str, Tensor]) -> None:
        """Copy a checkpoint into ``part``, the module at ``path`` of this tower or a copy of it.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        for name, parameter in part.named_parameters(prefix=path):
            key = self.keys[name]
            if key in self.shared:
                continue
            parameter.copy_(_fitting(checkpoint, key, parameter.shape))

    def load_all(self, checkpoint: Mapping[str, Tensor]) -> Tower:
        """Copy a whole checkpoint into this tower; returns it."""
        self.load(self, "", checkpoint)
        return self

    def merged_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that is not shared, by checkpoint name."""
        pairs = ((self.keys[name], parameter) for name, parameter in self.named_parameters())
        return {key: parameter for key, parameter in pairs if key not in self.shared}

    @torch.no_grad()
    def load_stream(self, tensors: Iterable[tuple[str, Tensor]]) -> Tower:
        """Copy a checkpoint that comes tensor by tensor into this tower; returns it.

        Names that are no parameters (old ``position_ids`` buffers) are passed over.

        Raises:
            UserError: a tensor is missing or has another shape.
        """
        wanted = self.merged_parameters()
        for key, tensor in tensors:
            if key in wanted:
                parameter = wanted.pop(key)
                parameter.copy_(_fitting({key: tensor}, key, parameter.shape))
        if wanted:
            _fitting({}, next(iter(wanted)), torch.Size())
        return self


def _fitting(checkpoint: Mapping[str, Tensor], key: str, shape: torch.Size) -> Tensor:
    try:
        tensor = checkpoint[key]
    except KeyError as error:
        raise UserError(f"checkpoint has no tensor {key!r}; is it the same model?") from error
    if tensor.shape != shape:
        raise UserError(f"tensor {key!r} is {tuple(tensor.shape)}, the model's is {tuple(shape)}")
    return tensor
