"""Grids, uniform or of a table of levels: scales and zero points from weights, codes from weights and back.

A code stands for an offset, which times the scale is the weight: the code less the zero point on a uniform
grid, an entry of the table on another.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from epmq.layer.spec import GridName, QuantSpec

SMALLEST_HALF = 2.0**-24  # subnormal: at 8 bits a channel of range 0.01 needs a scale below the normal 6e-5
LARGEST_E4M3, SMALLEST_E4M3 = 448.0, 2.0**-9
_POSITIVE_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1 = (*(-x for x in reversed(_POSITIVE_E2M1[1:])), *_POSITIVE_E2M1)  # 15: the second zero stays unused
_EMAX_E2M1 = 2  # the exponent of its largest level
# Quantiles of a normal distribution with 0 and both ends among them (Dettmers et al. 2023, appendix E).
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
LEVELS: dict[GridName, tuple[float, ...]] = {
    "uniform": (),
    "nf4": _NF4,
    "fp4": _E2M1,
    "mxfp4": _E2M1,
    "nvfp4": _E2M1,
}


@cache
def levels(spec: QuantSpec) -> Tensor:
    """The grid's offsets by code, ``(levels,)`` float64, rising; none of a uniform one."""
    return torch.tensor(LEVELS[spec.grid], dtype=torch.float64)


def largest_code(spec: QuantSpec) -> int:
    """The largest code that stands for a number: a table of levels may leave some unused."""
    return len(LEVELS[spec.grid]) - 1 if LEVELS[spec.grid] else spec.max_code


def fit_grid(weight: Tensor, spec: QuantSpec, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Min-max scale and zero point of every row (Frantar et al. 2022, the GPTQ code's quantiser).

    The range always holds 0. Scales are rounded to ``spec.scale_dtype`` before anything is quantised
    with them, so that what is stored is what was used. On a table of levels the largest magnitude meets the
    largest level; power-of-two scales are those of OCP's Microscaling Formats 1.0 (section 6.3).

    Args:
        weight: ``(..., columns)`` float; the last axis shares one scale.
        shrink: factor on the range, broadcast over the leading axes (clip search).

    Returns:
        ``scale`` and ``zero``, both ``(...)`` in the weight's dtype; zero holds whole numbers.
    """
    low = weight.amin(-1).clamp(max=0) * shrink
    high = weight.amax(-1).clamp(min=0) * shrink
    if spec.symmetric:
        high = torch.maximum(-low, high)
        low = -high
    span = torch.where(high > low, high - low, torch.ones_like(low))
    if spec.grid != "uniform":
        largest = span / 2
        if spec.scale_dtype == "e8m0":
            exponent = torch.frexp(largest).exponent - 1  # floor(log2), which rounds up just below a power
            scale = torch.exp2((exponent - _EMAX_E2M1).to(largest))
        else:
            scale = largest / LEVELS[spec.grid][-1]
        scale = stored(scale, spec)
    else:
        scale = stored(span / spec.max_code, spec)
    if spec.symmetric:
        return scale, torch.full_like(scale, (spec.max_code + 1) // 2)
    return scale, torch.round(-low / scale).clamp(0, spec.max_code)


def stored(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Scales as ``spec.scale_dtype`` holds them, in their own dtype; beyond its range the nearest end.

    E4M3 scales are those of one tensor together, with the power of two that lets the largest of them fit.
    """
    dtype = spec.scale_dtype
    if dtype == "e8m0":
        exponent = torch.log2(scale.clamp(2.0**-126, 2.0**126)).round()
        return torch.exp2(exponent)
    if dtype == "e4m3":
        factor = factor_of(scale).to(scale)
        return (scale / factor).clamp(min=SMALLEST_E4M3).to(torch.float8_e4m3fn).to(scale.dtype) * factor
    kind = held_as(spec)
    least = SMALLEST_HALF if dtype == "float16" else torch.finfo(kind).smallest_normal
    return scale.clamp(least, torch.finfo(kind).max).to(kind).to(scale.dtype)


def held_as(spec: QuantSpec) -> torch.dtype:
    """The dtype that scales have in memory; the values are those that ``spec.scale_dtype`` has."""
    return torch.float16 if spec.scale_dtype == "float16" else torch.float32


def factor_of(scale: Tensor) -> Tensor:
    """The least power of two that E4M3 scales need to be multiples of, 0-dimensional float32."""
    largest = scale.max().double() if scale.numel() else torch.ones((), dtype=torch.float64)
    exponent = torch.log2(largest / LARGEST_E4M3).ceil()
    return torch.exp2(exponent.clamp(-100, 100)).float()


def offsets(codes: Tensor, zero: Tensor, spec: QuantSpec) -> Tensor:
    """What codes stand for before the scale; ``codes`` float of whole numbers."""
    if spec.grid == "uniform":
        return codes - zero
    return levels(spec).to(codes)[codes.long()]


def encode(weight: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec) -> Tensor:
    """Nearest codes, within the grid; float tensor of whole numbers."""
    if spec.grid == "uniform":
        whole = zero.round()  # a zero point may be any real number
        return (torch.round(weight / scale + (zero - whole)) + whole).clamp(0, spec.max_code)
    table = levels(spec).to(weight)
    return torch.bucketize(weight / scale, (table[1:] + table[:-1]) / 2).to(weight)


def decode(codes: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec) -> Tensor:
    """The weights that codes stand for: offset times scale."""
    return offsets(codes, zero, spec) * scale


def by_group(weight: Tensor, spec: QuantSpec) -> Tensor:
    """View ``(rows, columns)`` as ``(rows, groups, columns per group)``."""
    rows, columns = weight.shape
    return weight.reshape(rows, -1, spec.columns_per_group(columns))
