"""Our own packed form: whatever a :class:`QuantizedWeight` holds, as tensors of a safetensors file.

Of a weight called NAME there are ``NAME.codes`` and, where the grid is asymmetric, ``NAME.zero`` (flat uint8,
little-endian bit streams), ``NAME.scale`` and perhaps ``NAME.input_scale``; the file's metadata say its shape
and grid. Everything else in the file is dense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight, pack, unpack

GRIDS = "epmq_grids"  # in the metadata
PARTS = ("codes", "zero", "scale", "input_scale")


def encoded(weights: Mapping[str, QuantizedWeight]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of quantised weights."""
    tensors: dict[str, Tensor] = {}
    grids: dict[str, Any] = {}
    for name, weight in weights.items():
        spec = weight.spec
        tensors[f"{name}.codes"] = pack(weight.codes, spec.bits)
        tensors[f"{name}.scale"] = weight.scale.contiguous()
        if not spec.symmetric:
            tensors[f"{name}.zero"] = pack(weight.zero, spec.bits)
        if weight.input_scale is not None:
            tensors[f"{name}.input_scale"] = weight.input_scale.contiguous()
        grids[name] = {
            "shape": list(weight.codes.shape),
            "bits": spec.bits,
            "group_size": spec.group_size,
            "symmetric": spec.symmetric,
        }
    return tensors, {GRIDS: json.dumps(grids, sort_keys=True)}


def grids_of(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The grids by name; raises ValueError where the metadata are damaged."""
    found = json.loads((metadata or {}).get(GRIDS, "{}"))
    if not isinstance(found, dict):
        raise ValueError(f"{GRIDS} is no object")
    return found


def decoded(name: str, grid: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizedWeight:
    """The weight NAME again (loop fields of its spec take their defaults).

    Args:
        tensors: at least those of NAME.

    Raises:
        ValueError, KeyError, TypeError, UserError: they do not fit together.
    """
    rows, columns = grid["shape"]
    scale = tensors[f"{name}.scale"]
    spec = QuantSpec(
        grid["bits"],
        grid["group_size"],
        symmetric=grid["symmetric"],
        scale_dtype="float16" if scale.dtype == torch.float16 else "float32",
    )
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise UserError(f"{name}: shape {grid['shape']!r} is none")
    codes = unpack(tensors[f"{name}.codes"], spec.bits, (rows, columns))
    if spec.symmetric:
        zero = torch.full(scale.shape, (spec.max_code + 1) // 2, dtype=torch.uint8)
    else:
        zero = unpack(tensors[f"{name}.zero"], spec.bits, (scale.shape[0], scale.shape[1]))
    return QuantizedWeight(codes, scale, zero, spec, tensors.get(f"{name}.input_scale"))
