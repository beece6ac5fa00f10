"""The shape that the calibration walk needs of a model: a stem, a list of blocks, a head.

An adapter (one file per architecture, e.g. :mod:`epmq.models.open_clip_vision`) builds a :class:`Tower` from
a model; the walk, the merge and the evaluation know nothing else about architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from epmq.errors import UserError

SharedInput = tuple[str, ...]  # paths, inside a block, of the linear layers that read one and the same input
State = Any  # what blocks pass along for one batch: hidden states (n, tokens, width), or a record of tensors
Valid = Callable[[int, SharedInput, State], Tensor | None]


class Tower(nn.Module):
    """A model as stem, blocks and head.

    Args:
        stem: a batch of model inputs (a tensor ``(n, ...)`` or a mapping of tensors) to the first state.
        blocks: each maps a state to the next.
        head: the last state to features ``(n, dim)`` or logits ``(n, tokens, vocabulary)``.
        groups: of every block, its linear layers in the order in which they run; those of one group read the
            same input, so they share a Gram matrix and their rows stack into one problem.
        keys: checkpoint name of every parameter.
        shared: parameters (by checkpoint name) that are neither merged nor quantised and stay the base's.
        valid: of a block's number, a group and the state that goes into the block, which positions
            ``(n, tokens)`` of the group's input count; ``None``, or a function that returns it, for all.
            Padding is no input.
        outer: linear layers of the head and embeddings of the stem, by path (``head.lm_head``), that are
            quantised only where a pattern names them.
        pooled: whether the head reads the first token of the last state alone (an image tower's class token).
            A block's first group then holds queries, keys and values, a third of its rows each.
        norms: of every block, the norms before its layers by path, each with the group that reads what it
            gives. A norm's parameters are a ``weight`` and perhaps a ``bias``, elementwise.
        tied: of a tensor that a state dict lists several times, by checkpoint name, its other names.
        model: the model whose modules these are; quantising the tower quantises it. ``None`` where the
            tower is a copy.
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        groups: Sequence[Sequence[SharedInput]],
        keys: Mapping[str, str],
        shared: frozenset[str] = frozenset(),
        *,
        valid: Valid | None = None,
        outer: Sequence[str] = (),
        pooled: bool = False,
        norms: Sequence[Mapping[str, SharedInput]] = (),
        tied: Mapping[str, Sequence[str]] | None = None,
        model: Any = None,
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.groups, self.keys, self.shared = [tuple(each) for each in groups], dict(keys), shared
        self.valid: Valid = valid or (lambda *_: None)
        self.outer, self.pooled, self.tied = tuple(outer), pooled, dict(tied or {})
        self.norms: list[dict[str, SharedInput]] = [dict(each) for each in norms or [{}] * len(self.groups)]
        self._whole = (model,)  # in a tuple it is no submodule: its parameters are those of the parts
        if len(self.groups) != len(self.blocks):
            raise UserError(f"{len(self.groups)} lists of layer groups for {len(self.blocks)} blocks")
        unmapped = [name for name, _ in self.named_parameters() if name not in self.keys]
        if unmapped:
            raise UserError(
                f"parameter {unmapped[0]!r} has no checkpoint name; the adapter does not know this model"
            )

    @property
    def model(self) -> Any:
        """The model whose modules these are; ``None`` where the tower is a copy."""
        return self._whole[0]

    def forward(self, inputs: Any) -> Tensor:
        """What the head gives for a batch: features ``(n, dim)``, or logits ``(n, tokens, vocabulary)``."""
        state = self.stem(inputs)
        for block in self.blocks:
            state = block(state)
        found: Tensor = self.head(state)
        return found

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

    @property
    def multiplicity(self) -> dict[str, int]:
        """How often flattened TIES counts a tied tensor, by checkpoint name; once where absent."""
        return {name: 1 + len(copies) for name, copies in self.tied.items()}

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
