"""What a quantised weight may look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from epmq.errors import UserError, choose

FitScalesOn = Literal["centre", "merged"]
ScaleDtype = Literal["float16", "float32", "e4m3", "e8m0"]
GridName = Literal["uniform", "nf4", "fp4", "mxfp4", "nvfp4"]
SCALE_BITS: Mapping[ScaleDtype, int] = {"float16": 16, "float32": 32, "e4m3": 8, "e8m0": 8}


class Format(NamedTuple):
    """What a format of 4-bit levels fixes besides them."""

    group_size: int | None
    scale_dtype: ScaleDtype


# FP4 is E2M1 of OCP's Microscaling Formats 1.0; MXFP4 is its groups of 32 with power-of-two scales; NVFP4 has
# groups of 16, E4M3 scales and one more factor a tensor; NF4 is of Dettmers et al. 2023 (arXiv 2305.14314).
FORMATS: Mapping[str, Format] = {"mxfp4": Format(32, "e8m0"), "nvfp4": Format(16, "e4m3")}
LATER = ("grid",)  # axes that records without them have at their default


@dataclass(frozen=True)
class QuantSpec:
    """The grid and the column order of a rounding.

    Attributes:
        bits: 2 to 8 bits a code.
        group_size: input columns that share a scale; ``None`` shares one over the whole output channel, or
            takes the format's own.
        symmetric: zero point fixed at the middle code; otherwise min-max with an integer zero point. A grid
            of levels is always without one.
        act_order: quantise columns by decreasing diagonal of the Hessian (GPTQ's activation order). With
            groups the scales are then fitted before the column loop ("static groups"), so that groups
            stay contiguous and no index needs storing.
        block_size: columns updated together in GPTQ's loop; changes speed, not the result.
        fit_scales_on: the weight that the scales are fitted to: the centre that is rounded or W_m.
        scale_dtype: the stored precision of the scales; it counts in the bits per weight. ``"e4m3"`` are
            8-bit floats times one power of two a tensor, ``"e8m0"`` powers of two.
        grid: ``"uniform"``, or a table of 16 levels: ``"nf4"``, ``"fp4"``, and the latter with the groups and
            scales of ``"mxfp4"`` (32, powers of two) and ``"nvfp4"`` (16, E4M3).

    Raises:
        UserError: a field is out of its range, or not that of the format.
    """

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    act_order: bool = False
    block_size: int = 128
    fit_scales_on: FitScalesOn = "centre"
    scale_dtype: ScaleDtype = "float16"
    grid: GridName = "uniform"

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
        choose("scale_dtype", self.scale_dtype, SCALE_BITS)
        choose("grid", self.grid, ("uniform", "nf4", "fp4", "mxfp4", "nvfp4"))
        if self.grid != "uniform":
            self._complete(FORMATS.get(self.grid, Format(self.group_size, self.scale_dtype)))

    def _complete(self, own: Format) -> None:
        """Take what the format fixes; raises UserError where another value is asked for."""
        if self.bits != 4:
            raise UserError(f"grid {self.grid} has codes of 4 bits, not {self.bits}; leave out other bits")
        for name, value, plain in (
            ("group_size", own.group_size, None),
            ("scale_dtype", own.scale_dtype, "float16"),
        ):
            if getattr(self, name) not in (value, plain):
                raise UserError(
                    f"grid {self.grid} has {name} {value}, not {getattr(self, name)}; leave it out"
                )
            object.__setattr__(self, name, value)
        object.__setattr__(self, "symmetric", True)

    @property
    def max_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def short_scales(self) -> bool:
        """Whether scales are stored in 8 bits, which memory holds as float32 numbers."""
        return SCALE_BITS[self.scale_dtype] == 8

    @property
    def recorded(self) -> dict[str, Any]:
        """The fields as cells and records have them, see ``LATER``."""
        plain = QuantSpec()
        return {n: v for n, v in asdict(self).items() if n not in LATER or v != getattr(plain, n)}

    def columns_per_group(self, columns: int) -> int:
        """Group width for a layer with ``columns`` inputs; raises UserError when it does not divide."""
        size = self.group_size or columns
        if columns % size:
            raise UserError(
                f"group size {size} does not divide a layer's {columns} input columns; give a divisor"
            )
        return size
