"""Made-up layers for the tests of the numerical core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epmq.grid import decode
from epmq.weight import QuantizedWeight


@dataclass(frozen=True)
class Layer:
    """W_m, and per task W_t, the inputs X_t ``(columns, samples)`` and the expert's own inputs, float64."""

    merged: Tensor
    experts: list[Tensor]
    inputs: list[Tensor]
    own_inputs: list[Tensor]

    @property
    def grams(self) -> list[Tensor]:
        return [x @ x.T / x.shape[1] for x in self.inputs]

    @property
    def cross(self) -> list[Tensor]:
        pairs = zip(self.own_inputs, self.inputs, strict=True)
        return [own @ x.T / x.shape[1] for own, x in pairs]


def layer(rows: int, columns: int, *, tasks: int = 3, samples: int = 400, seed: int = 0) -> Layer:
    """Correlated Gaussian inputs of unequal variance, and experts around the merged weight."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spread = torch.exp(normal(columns, 1))
    mix = torch.eye(columns, dtype=torch.float64) + normal(columns, columns) / columns**0.5
    merged = 0.05 * normal(rows, columns)
    inputs = [spread * (mix @ normal(columns, samples)) for _ in range(tasks)]
    return Layer(
        merged=merged,
        experts=[merged + 0.02 * normal(rows, columns) for _ in range(tasks)],
        inputs=inputs,
        own_inputs=[x + 0.3 * spread * normal(columns, samples) for x in inputs],
    )


def with_codes(weight: QuantizedWeight, codes: Tensor) -> Tensor:
    """The dense float64 weight of other codes ``(..., rows, columns)`` on the same grid."""
    split = codes.double().unflatten(-1, (weight.scale.shape[1], -1))
    dense = decode(split, weight.scale.double()[..., None], weight.zero.double()[..., None]).flatten(-2)
    return dense if weight.input_scale is None else dense / weight.input_scale.double()
