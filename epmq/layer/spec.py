"""What a quantised weight may look like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from epmq.errors import UserError, choose

FitScalesOn = Literal["centre", "merged"]
ScaleDtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class QuantSpec:
    """The grid and the column order of a rounding.

    Attributes:
        bits: 2 to 8 bits a code.
        group_size: input columns that share a scale; ``None`` shares one over the whole output channel.
        symmetric: zero point fixed at the middle code; otherwise min-max with an integer zero point.
        act_order: quantise columns by decreasing diagonal of the Hessian (GPTQ's activation order). With
            groups the scales are then fitted before the column loop ("static groups"), so that groups
            stay contiguous and no index needs storing.
        block_size: columns updated together in GPTQ's loop; changes speed, not the result.
        fit_scales_on: the weight that the scales are fitted to: the centre that is rounded or W_m.
        scale_dtype: the stored precision of the scales; it counts in the bits per weight.

    Raises:
        UserError: a field is out of its range.
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    act_order: bool = False
    block_size: int = 128
    fit_scales_on: FitScalesOn = "centre"
    scale_dtype: ScaleDtype = "float16"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UserError(f"bits {self.bits} is out of range; give 2 to 8")
        if self.group_size is not None and self.group_size < 1:
            raise UserError(
                f"group size {self.group_size} is not positive; leave it out for per-channel scales"
            )
        if self.block_size < 1:
            raise UserError(f"block size {self.block_size} is not positive; 128 is the usual choice")
        choose("fit_scales_on", self.fit_scales_on, ("centre", "merged"))
        choose("scale_dtype", self.scale_dtype, ("float16", "float32"))

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    def columns_per_group(self, columns: int) -> int:
        """Group width for a layer with ``columns`` inputs; raises UserError when it does not divide."""
        size = self.group_size or columns
        if columns % size:
            raise UserError(
                f"group size {size} does not divide a layer's {columns} input columns; give a divisor"
            )
        return size
