"""The format ``pack-quantized`` of compressed-tensors, which transformers and vLLM load.

A code or zero point is an unsigned number of ``bits`` bits; those of a row follow each other as one
little-endian bit stream, filled up to whole 32-bit words. (compressed-tensors thinks of them as signed with
an offset of half the range, which comes to the same bits.) Its older versions pack 3, 5, 6 and 7 bits
otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight

WORD = 32
PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(rows, columns)`` uint8 to int32 ``(rows, ceil(columns bits / 32))``."""
    rows, columns = codes.shape
    spread = np.unpackbits(codes.cpu().numpy()[..., None], axis=2, count=bits, bitorder="little")
    filled = np.zeros((rows, -(-columns * bits // WORD) * WORD), np.uint8)
    filled[:, : columns * bits] = spread.reshape(rows, -1)
    return torch.from_numpy(np.packbits(filled, axis=1, bitorder="little").view("<i4").astype(np.int32))


def unpack_rows(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Inverse of :func:`pack_rows`; raises ValueError where there are not as many words."""
    rows, words = packed.shape
    if words != -(-columns * bits // WORD):
        raise ValueError(f"{words} words a row do not hold {columns} codes of {bits} bits")
    octets = packed.numpy().astype("<i4").view(np.uint8)
    spread = np.unpackbits(octets, axis=1, count=columns * bits, bitorder="little")
    return torch.from_numpy(
        np.packbits(spread.reshape(rows, columns, bits), axis=2, bitorder="little")[..., 0]
    )


def lacking(weight: QuantizedWeight) -> str | None:
    """What of a weight, besides input scales, the format has no place for, in words; ``None`` for nothing."""
    if weight.spec.grid != "uniform":
        return f"pack-quantized has no levels of {weight.spec.grid}"
    if weight.rotation is not None:
        return "pack-quantized has no place for a rotation"
    if weight.exceptions is not None:
        return "pack-quantized has no place for exceptions"
    if weight.zero.is_floating_point():
        return "pack-quantized has whole zero points alone"
    return None


def packed(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of one layer, by their names below it.

    Scales are float32: the dense weight has the dtype of its scales, and a code times a float16 scale is no
    float16 number.

    Raises:
        UserError: an input scale or another part, which the format has no place for.
    """
    if (reason := lacking(weight)) is not None:
        raise UserError(f"{reason}; use the format epmq, or dense")
    if weight.input_scale is not None:
        raise UserError("pack-quantized has no place for input scales; use the format epmq, or dense")
    found = {
        PACKED: pack_rows(weight.codes, weight.spec.bits),
        SCALE: weight.scale.float().contiguous(),
        SHAPE: torch.tensor(weight.codes.shape, dtype=torch.int64),
    }
    if not weight.spec.symmetric:
        found[ZERO] = pack_rows(weight.zero.T.contiguous(), weight.spec.bits).T.contiguous()
    return found


def unpacked(tensors: Mapping[str, Tensor], scheme: Mapping[str, Any]) -> Tensor:
    """The dense weight ``(rows, columns)`` float32 of one layer's tensors.

    Args:
        scheme: the entry ``weights`` of the group of ``config_groups`` that the layer belongs to.

    Raises:
        ValueError, KeyError, IndexError, TypeError: the tensors do not fit together or the scheme is another.
    """
    if scheme.get("type") != "int" or scheme.get("strategy") not in ("channel", "group"):
        raise ValueError(f"scheme {scheme.get('type')!r}, {scheme.get('strategy')!r} is not supported")
    bits = int(scheme["num_bits"])
    rows, columns = (int(x) for x in tensors[SHAPE])
    scale = tensors[SCALE].float()
    codes = unpack_rows(tensors[PACKED], bits, columns)
    middle = 1 << (bits - 1)
    if scheme["symmetric"]:
        zero = torch.full(scale.shape, middle, dtype=torch.uint8)
    else:
        zero = unpack_rows(tensors[ZERO].T.contiguous(), bits, rows).T.contiguous()
    spec = QuantSpec(
        bits, columns // scale.shape[1], symmetric=bool(scheme["symmetric"]), scale_dtype="float32"
    )
    return QuantizedWeight(codes, scale, zero, spec).dequantize()


def configuration(
    layers: Mapping[str, QuantizedWeight], linear: Collection[str], *, dequantise: bool
) -> dict[str, Any]:
    """The entry ``quantization_config`` of a ``config.json``.

    Args:
        layers: the packed layers by the names of their modules.
        linear: the names of all linear modules; those that are not packed are ignored by name.
        dequantise: whether transformers is told to make the model dense when it loads it.
    """
    schemes: dict[tuple[Any, ...], list[str]] = {}
    for name, weight in layers.items():
        schemes.setdefault((weight.spec.bits, weight.spec.symmetric, weight.spec.group_size), []).append(name)
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if len(schemes) == 1 else names,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": symmetric,
                "strategy": "channel" if group_size is None else "group",
                "group_size": group_size,
                "dynamic": False,
            },
            "input_activations": None,
            "output_activations": None,
        }
        for number, ((bits, symmetric, group_size), names) in enumerate(schemes.items())
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": sorted(set(linear) - set(layers)),
        "config_groups": groups,
        **({"dequantize": True} if dequantise else {}),
    }
