"""The uniform grid: scales and zero points from weights, codes from weights and back."""

from __future__ import annotations

import torch
from torch import Tensor

from epmq.layer.spec import QuantSpec

SMALLEST_HALF = 2.0**-24  # subnormal: at 8 bits a channel of range 0.01 needs a scale below the normal 6e-5


def fit_grid(weight: Tensor, spec: QuantSpec, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Min-max scale and zero point of every row (Frantar et al. 2022, the GPTQ code's quantiser).

    The range always holds 0. Scales are rounded to ``spec.scale_dtype`` before anything is quantised
    with them, so that what is stored is what was used.

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
    scale = stored(span / spec.max_code, spec)
    if spec.symmetric:
        return scale, torch.full_like(scale, (spec.max_code + 1) // 2)
    return scale, torch.round(-low / scale).clamp(0, spec.max_code)


def stored(scale: Tensor, spec: QuantSpec) -> Tensor:
    """Scales as ``spec.scale_dtype`` holds them, in their own dtype; beyond its range the nearest end."""
    dtype = torch.float16 if spec.scale_dtype == "float16" else torch.float32
    least = SMALLEST_HALF if spec.scale_dtype == "float16" else torch.finfo(dtype).smallest_normal
    return scale.clamp(least, torch.finfo(dtype).max).to(dtype).to(scale.dtype)


def encode(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int) -> Tensor:
    """Nearest codes, ``round(w / scale) + zero`` clamped to the grid; float tensor of whole numbers."""
    return (torch.round(weight / scale) + zero).clamp(0, max_code)


def decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """``(codes - zero) * scale``."""
    return (codes - zero) * scale


def by_group(weight: Tensor, spec: QuantSpec) -> Tensor:
    """View ``(rows, columns)`` as ``(rows, groups, columns per group)``."""
    rows, columns = weight.shape
    return weight.reshape(rows, -1, spec.columns_per_group(columns))
