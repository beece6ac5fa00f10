"""A walk's quantised weights, layer by layer: of the groups whose rows were stacked, each layer its own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.weight import QuantizedWeight, stacked
from epmq.models.layers import group_name, layer_groups
from epmq.models.tower import Tower

_ROWS = re.compile(r"\[(\d*):(\d*)\]$")


class Piece(NamedTuple):
    """A quantised weight and the first of the stacked rows that it stands for."""

    start: int
    weight: QuantizedWeight


def by_parameter(tower: Tower, weights: Mapping[str, QuantizedWeight]) -> dict[str, list[Piece]]:
    """The pieces of every quantised parameter, by its checkpoint name; together they are all of its rows.

    Args:
        tower: holds what the weights dequantise to.
        weights: by the name of a group, as :attr:`epmq.Quantised.weights`.

    Raises:
        UserError: a name is no group of the tower, or the tower holds other weights.
    """
    found = pieces_of(tower, weights)
    held = {tower.keys[name]: parameter for name, parameter in tower.named_parameters()}
    for key, pieces in found.items():
        dense, parameter = dequantised(pieces), held[key].detach().cpu()
        if dense.shape != parameter.shape or not torch.equal(dense, parameter.float()):
            raise UserError(
                f"weights: {key!r} is not what the model holds; give the model and the weights of one call"
            )
    return found


def pieces_of(tower: Tower, weights: Mapping[str, QuantizedWeight]) -> dict[str, list[Piece]]:
    """As :func:`by_parameter`, whatever the tower holds."""
    paths = {group_name(part, group): (part, group) for part, group in layer_groups(tower).values()}
    paths |= {path: (path.partition(".")[0], (path.partition(".")[2],)) for path in tower.outer}
    found: dict[str, list[Piece]] = defaultdict(list)
    for name, weight in weights.items():
        rows = _ROWS.search(name)
        group = name[: rows.start()] if rows else name
        if group not in paths:
            raise UserError(f"weights: {name!r} is no layer of the model; give the weights of its own report")
        part, layers = paths[group]
        first = int(rows[1] or 0) if rows else 0
        last, begin = first + len(weight.codes), 0
        for layer in layers:
            end = begin + len(tower.get_parameter(f"{part}.{layer}.weight"))
            here = slice(max(begin, first), min(end, last))
            if here.start < here.stop:
                piece = weight[here.start - first : here.stop - first]
                found[tower.keys[f"{part}.{layer}.weight"]].append(Piece(here.start - begin, piece))
            begin = end
    return {key: sorted(pieces, key=lambda piece: piece.start) for key, pieces in found.items()}


def dequantised(pieces: list[Piece]) -> Tensor:
    """The dense parameter of all its pieces, float32."""
    return torch.cat([piece.weight.dequantize() for piece in pieces])


def rows_of(pieces: list[Piece], start: int, stop: int) -> QuantizedWeight | None:
    """Some rows as one quantised weight; ``None`` where they have different grids or input scales."""
    parts = []
    for first, weight in pieces:
        here = slice(max(start, first), min(stop, first + len(weight.codes)))
        if here.start < here.stop:
            parts.append(weight[here.start - first : here.stop - first])
    return stacked(parts)
