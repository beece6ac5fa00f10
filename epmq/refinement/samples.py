"""Samples by index: batches for a model, and what the experts made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Sample = Mapping[
    str, Tensor
]  # what belongs to one sample, by name; vectors and matrices may differ in length
DECODER = "decoder_"  # how the names of an encoder-decoder's second sequence begin
MASK = "attention_mask"


class Rows(Protocol):
    """Calibration samples of one task, which make a batch of model inputs when asked."""

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Any:
        """A batch of model inputs of the samples at ``index``, a vector of integers."""
        ...


class TensorRows:
    """Rows of model inputs ``(n, ...)``."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, index: Tensor) -> Tensor:
        """The rows at ``index``."""
        return self.inputs[index.to(self.inputs.device)]


class BatchRows:
    """Rows of batches of token sequences, padded on the right: ``input_ids``, ``attention_mask`` and others.

    Names that begin with ``decoder_`` are of the second sequence, which has a mask of its own.
    """

    def __init__(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        self.rows = [row for batch in batches for row in _unpadded(batch)]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at ``index``, padded to the longest of them."""
        return collated([self.rows[i] for i in index.tolist()])


def _unpadded(batch: Mapping[str, Tensor]) -> Iterator[Sample]:
    def prefix(name: str) -> str:
        return DECODER if name.startswith(DECODER) else ""

    for i in range(len(batch[MASK])):
        lengths = {p: int(batch[p + MASK][i].sum()) for p in {prefix(name) for name in batch}}
        yield {name: x[i, : lengths[prefix(name)]] for name, x in batch.items()}


def collated(rows: Sequence[Sample]) -> dict[str, Tensor]:
    """Tensors ``(length, ...)`` of several samples as ``(n, longest, ...)``, filled up with zeros."""
    names = rows[0].keys()
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True) for name in names
    }
