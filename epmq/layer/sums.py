"""Sums over tokens of products of activations: products in float32, long sums in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

TOKENS = 4096  # of which products are summed before they join the float64 total
STRIP = 256  # rows of a symmetric product that are computed together
TILE = 128  # rows and columns of a matrix that are read together with their mirror image
CACHED = 2**15  # entries that are converted at a time: they stay in the cache, and in one thread


@dataclass(eq=False)
class ProductSum:
    """Sum over tokens of ``left right^T``, ``(rows, columns)``."""

    _part: Tensor | None = field(default=None, init=False)
    _total: Tensor | None = field(default=None, init=False)
    _tokens: int = field(default=0, init=False)

    def __bool__(self) -> bool:
        """Whether anything was added."""
        return self._part is not None

    def add(self, left: Tensor, right: Tensor) -> None:
        """Add tokens ``(tokens, rows)`` and ``(tokens, columns)``, both of one floating-point type."""
        if self._part is None:
            self._part = left.new_zeros(left.shape[1], right.shape[1])
        self._multiply(self._part, left, right, int(self._tokens > 0))
        self._tokens += len(left)
        if self._tokens >= TOKENS:
            if self._total is None:
                self._total = self._part.double()
            else:
                accumulate_(self._total, self._part)
            self._tokens = 0

    def value(self) -> Tensor:
        """The sum; in the activations' own type while there are few tokens, else float64."""
        assert self._part is not None
        if self._total is None:
            return self._part
        if self._tokens:
            accumulate_(self._total, self._part)
            self._tokens = 0
        return self._total

    def _multiply(self, into: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
        into.addmm_(left.T, right, beta=beta)


class SymmetricSum(ProductSum):
    """Sum over tokens of ``w x x^T``, ``(columns, columns)``: the half above the diagonal is computed."""

    def _multiply(self, into: Tensor, left: Tensor, right: Tensor, beta: int) -> None:
        for start in range(0, len(into), STRIP):
            strip = slice(start, start + STRIP)
            into[strip, start:].addmm_(left[:, strip].T, right[:, start:], beta=beta)

    def value(self) -> Tensor:
        """The sum, symmetric to the last bit; in the activations' own type while there are few tokens."""
        found = super().value()
        for start in range(0, len(found), STRIP):
            stop = start + STRIP
            square = found[start:stop, start:stop]
            square.copy_((square + square.T) / 2)
            found[stop:, start:stop] = found[start:stop, stop:].T
        return found


def shrink_(gram: Tensor, off_diagonal: float) -> Tensor:
    """Multiply what is off the diagonal, in place; returns the matrix."""
    if off_diagonal != 1:
        diagonal = gram.diagonal().clone()
        gram.mul_(off_diagonal).diagonal().copy_(diagonal)
    return gram


def accumulate_(total: Tensor, part: Tensor, scale: float = 1.0) -> None:
    """``total += scale * part`` in place, ``part`` of another floating-point type or the same, both 2-D.

    On a CPU, torch's own addition of mixed types takes five times as long as memory does.
    """
    if part.is_cuda or part.dtype == total.dtype:
        total.add_(part, alpha=scale)
        return
    step = _strip(total)
    converted = torch.empty_like(total[:step])
    for rows, own in zip(total.split(step), part.split(step), strict=True):
        rows.add_(converted[: len(rows)].copy_(own), alpha=scale)


def square_norm(matrix: Tensor) -> float:
    """The sum of squares, in float64."""
    strips = [torch.linalg.vector_norm(rows.double()) for rows in matrix.split(_strip(matrix))]
    return float(torch.stack(strips).square().sum())


def inner(one: Tensor, other: Tensor) -> float:
    """The sum of the products of the entries of two matrices, in float64."""
    step = _strip(one)
    strips = zip(one.split(step), other.split(step), strict=True)
    return float(torch.stack([(a.double() * b.double()).sum() for a, b in strips]).sum())


def _strip(matrix: Tensor) -> int:
    """How many of a matrix's rows are converted at a time; on a GPU, all."""
    return len(matrix) if matrix.is_cuda else max(1, CACHED // max(1, matrix.shape[1]))
