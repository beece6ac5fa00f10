"""Random orthogonal rotations of a layer's input columns, of which only a seed is stored.

U = (H (x) K) diag(signs): H is the Hadamard matrix of the largest power of two in the number of columns, K
the Hartley matrix of what is left of it (the discrete Fourier transform in real numbers), and the signs are
drawn by the seed. Every entry is of the order of 1 / sqrt(columns), so that a rotated weight has no outlying
columns (incoherence: Chee et al. 2023, arXiv 2307.13304; randomised Hadamard transforms: Tseng et al. 2024,
arXiv 2402.04396).
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import torch
from scipy.linalg import hadamard
from torch import Tensor

SEED_BITS = 32  # what a rotation counts as stored


def rotated(x: Tensor, seed: int) -> Tensor:
    """``x U^T`` for ``x`` ``(..., columns)``: what a weight becomes where its inputs become ``U x``."""
    return _factors_applied(x * _signs(x.shape[-1], seed).to(x))


def rotated_back(x: Tensor, seed: int) -> Tensor:
    """``x U``, which undoes :func:`rotated`."""
    return _factors_applied(x) * _signs(x.shape[-1], seed).to(x)


def rotated_both(matrix: Tensor, seed: int) -> Tensor:
    """``U matrix U^T`` for ``(columns, columns)``: second moments of rotated inputs."""
    return rotated(rotated(matrix, seed).mT, seed).mT


def _factors_applied(x: Tensor) -> Tensor:
    """``x (H (x) K)^T``; both factors are symmetric, and each is its own inverse.

    H comes first, as a matrix of 1 and -1: of decoded weights these sums are exact in float64, in any order.
    Those of K are not, so they are added up in one order, whichever rows there are.
    """
    columns = x.shape[-1]
    power, rest = _factors(columns)
    turned = power.to(x) @ x.reshape(*x.shape[:-1], len(power), len(rest)) / math.sqrt(len(power))
    if len(rest) > 1:
        turned = _in_order(turned, rest.to(x))
    return turned.reshape(x.shape)


def _in_order(x: Tensor, rest: Tensor) -> Tensor:
    """``x @ rest``, whose order a matrix product chooses by the number of rows."""
    found = x[..., :1] * rest[0]
    for k in range(1, len(rest)):
        found += x[..., k : k + 1] * rest[k]
    return found


@cache
def _factors(columns: int) -> tuple[Tensor, Tensor]:
    two = columns & -columns
    rest = columns // two
    power = torch.from_numpy(hadamard(two, dtype=float))
    angle = 2 * math.pi / rest * torch.outer(torch.arange(rest), torch.arange(rest)).remainder(rest).double()
    return power, (angle.cos() + angle.sin()) / math.sqrt(rest)


@cache
def _signs(columns: int, seed: int) -> Tensor:
    drawn = hashlib.shake_256(f"epmq rotation {seed}".encode()).digest(columns)
    return torch.tensor([1.0 if octet & 1 else -1.0 for octet in drawn], dtype=torch.float64)
