"""Our own packed form: whatever a :class:`QuantizedWeight` holds, as tensors of a safetensors file.

Of a weight called NAME there are ``NAME.codes`` and, where the grid is asymmetric, ``NAME.zero`` (flat uint8,
little-endian bit streams), ``NAME.scale`` and what else :meth:`QuantizedWeight.parts` has of it; the file's
metadata say its shape and grid. Everything else in the file is dense.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from epmq.errors import UserError
from epmq.layer.weight import QuantizedWeight

GRIDS = "epmq_grids"  # in the metadata
PARTS = (
    *("codes", "zero", "scale", "factor", "input_scale", "rotation"),
    *("exception_columns", "exception_values"),
)


def encoded(weights: Mapping[str, QuantizedWeight]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of quantised weights."""
    tensors: dict[str, Tensor] = {}
    grids: dict[str, Any] = {}
    for name, weight in weights.items():
        spec = weight.spec
        tensors |= {f"{name}.{part}": tensor for part, tensor in weight.parts().items()}
        grids[name] = {
            "shape": list(weight.codes.shape),
            "bits": spec.bits,
            "group_size": spec.group_size,
            "symmetric": spec.symmetric,
            "grid": spec.grid,
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
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise UserError(f"{name}: shape {grid['shape']!r} is none")
    parts = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
    return QuantizedWeight.from_parts(
        parts,
        (rows, columns),
        grid["bits"],
        grid["group_size"],
        symmetric=grid["symmetric"],
        grid=grid.get("grid", "uniform"),
    )
