"""Weights that are kept in half precision among the codes, as many in every row (SpQR's sparse outliers)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from epmq.errors import UserError


@dataclass(frozen=True, eq=False)
class Exceptions:
    """What stands in place of codes.

    Attributes:
        columns: ``(rows, count)`` int32, below 65,536, rising in every row; two bytes each as stored.
        values: ``(rows, count)`` float16, instead of what the codes there stand for.

    Raises:
        UserError: shapes or dtypes do not fit together, a column comes twice or a value is not finite.
    """

    columns: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.columns.shape != self.values.shape or self.columns.dim() != 2:
            raise UserError(
                f"exceptions' columns {tuple(self.columns.shape)} and values {tuple(self.values.shape)} "
                "must both be (rows, count)"
            )
        if self.columns.dtype != torch.int32 or self.values.dtype != torch.float16:
            raise UserError("exceptions' columns must be int32 and their values float16")
        ordered = bool((self.columns.diff(dim=1) > 0).all())
        if self.columns.numel() and (not ordered or int(self.columns.min()) < 0):
            raise UserError("exceptions' columns must rise in every row, from 0")
        if not bool(torch.isfinite(self.values).all()):
            raise UserError("exceptions' values must be finite")

    @classmethod
    def of(cls, dense: Tensor, columns: Tensor) -> Exceptions:
        """Those of a weight ``(rows, columns)`` at ``columns`` ``(rows, count)``, in any order."""
        columns = columns.sort(1).values
        limit = torch.finfo(torch.float16).max
        values = dense.gather(1, columns.long()).clamp(-limit, limit)
        return cls(columns.to(torch.int32), values.to(torch.float16))

    def put(self, dense: Tensor) -> Tensor:
        """A copy of ``dense`` ``(..., rows, columns)`` with the values in their places."""
        shape = (*dense.shape[:-1], self.columns.shape[1])
        where, values = self.columns.long().expand(shape), self.values.to(dense).expand(shape)
        return dense.scatter(-1, where, values)

    def __getitem__(self, rows: slice | Tensor) -> Exceptions:
        return Exceptions(self.columns[rows], self.values[rows])

    def to(self, device: torch.device) -> Exceptions:
        """The same on another device."""
        return Exceptions(self.columns.to(device), self.values.to(device))

    @property
    def packed_bits(self) -> int:
        """16 bits a column and 16 a value."""
        return 32 * self.columns.numel()
