"""A quantised weight: integer codes with their grid, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.grid import by_group, decode, encode
from epmq.layer.spec import QuantSpec


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes, scales and zero points; the dense weight is derived from them alone.

    Attributes:
        codes: ``(rows, columns)`` uint8, below ``2**spec.bits``.
        scale: ``(rows, groups)`` in ``spec.scale_dtype``.
        zero: ``(rows, groups)`` uint8; the middle code everywhere when the grid is symmetric.
        spec: the grid.
        input_scale: ``(columns,)`` float16 divisor of every column (AWQ), or ``None``.

    Raises:
        UserError: shapes, dtypes or code values do not fit together.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    spec: QuantSpec
    input_scale: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dim() != 2:
            raise UserError(f"codes have {self.codes.dim()} dimensions, expected a matrix (rows, columns)")
        rows, columns = self.codes.shape
        grid = (rows, columns // self.spec.columns_per_group(columns))
        if self.codes.dtype != torch.uint8 or self.zero.dtype != torch.uint8:
            raise UserError("codes and zero points must be uint8")
        if self.scale.dtype != getattr(torch, self.spec.scale_dtype):
            raise UserError(f"scales are {self.scale.dtype}, the spec stores {self.spec.scale_dtype}")
        if tuple(self.scale.shape) != grid or tuple(self.zero.shape) != grid:
            raise UserError(
                f"scale {tuple(self.scale.shape)} and zero {tuple(self.zero.shape)} must be {grid}"
            )
        if self.codes.numel() and max(int(self.codes.max()), int(self.zero.max())) > self.spec.max_code:
            raise UserError(
                f"a code or zero point exceeds {self.spec.max_code}, the largest of {self.spec.bits} bits"
            )
        if self.spec.symmetric and bool((self.zero != (self.spec.max_code + 1) // 2).any()):
            raise UserError("a symmetric grid has its zero point at the middle code")
        _require_positive("scales", self.scale)
        if self.input_scale is not None:
            if tuple(self.input_scale.shape) != (columns,) or self.input_scale.dtype != torch.float16:
                found = f"{tuple(self.input_scale.shape)} {self.input_scale.dtype}"
                raise UserError(f"input scale is {found}, expected ({columns},) torch.float16")
            _require_positive("input scales", self.input_scale)

    @classmethod
    def nearest(
        cls, weight: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec, input_scale: Tensor | None = None
    ) -> QuantizedWeight:
        """Round ``(rows, columns)`` to the nearest codes on a grid of ``(rows, groups)`` scales and zeros."""
        codes = encode(by_group(weight, spec), scale[..., None], zero[..., None], spec.max_code).flatten(1)
        return cls.build(codes, scale, zero, spec, input_scale)

    @classmethod
    def build(
        cls, codes: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec, input_scale: Tensor | None = None
    ) -> QuantizedWeight:
        """From whole-number tensors of any dtype; casts to the stored dtypes."""
        scale = scale.to(getattr(torch, spec.scale_dtype))
        if input_scale is not None:
            input_scale = input_scale.to(torch.float16)
        return cls(codes.to(torch.uint8), scale, zero.to(torch.uint8), spec, input_scale)

    def dequantize(self) -> Tensor:
        """The dense weight ``(rows, columns)`` float32."""
        codes = by_group(self.codes.float(), self.spec)
        dense = decode(codes, self.scale.float()[..., None], self.zero.float()[..., None]).flatten(1)
        return dense if self.input_scale is None else dense / self.input_scale.float()

    @property
    def packed_bits(self) -> int:
        """Stored bits: codes, scales, zero points (none when symmetric) and input scales."""
        scale_bits = 16 if self.spec.scale_dtype == "float16" else 32
        grid_bits = scale_bits + (0 if self.spec.symmetric else self.spec.bits)
        inputs = 0 if self.input_scale is None else 16 * self.input_scale.numel()
        return self.codes.numel() * self.spec.bits + self.scale.numel() * grid_bits + inputs

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight, scales and zero points included."""
        return self.packed_bits / self.codes.numel()

    def parts(self) -> dict[str, Tensor]:
        """All that is stored, by name: ``codes`` and ``zero`` as bit streams, ``scale``, ``input_scale``.

        A symmetric grid has no ``zero``, most weights no ``input_scale``.
        """
        found = {"codes": pack(self.codes, self.spec.bits), "scale": self.scale.contiguous()}
        if not self.spec.symmetric:
            found["zero"] = pack(self.zero, self.spec.bits)
        if self.input_scale is not None:
            found["input_scale"] = self.input_scale.contiguous()
        return found

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        bits: int,
        group_size: int | None,
        *,
        symmetric: bool,
    ) -> QuantizedWeight:
        """Inverse of :meth:`parts` (loop fields of the spec take their defaults).

        Raises:
            ValueError, KeyError, IndexError, UserError: they do not fit together.
        """
        scale = parts["scale"]
        spec = QuantSpec(
            bits,
            group_size,
            symmetric=symmetric,
            scale_dtype="float16" if scale.dtype == torch.float16 else "float32",
        )
        codes = unpack(parts["codes"], spec.bits, shape)
        zero = torch.full(scale.shape, (spec.max_code + 1) // 2, dtype=torch.uint8)
        if not spec.symmetric:
            zero = unpack(parts["zero"], spec.bits, (scale.shape[0], scale.shape[1]))
        return cls(codes, scale, zero, spec, parts.get("input_scale"))

    def to_bytes(self) -> bytes:
        """Packed little-endian bit stream in a safetensors container."""
        rows, columns = self.codes.shape
        meta = {
            "rows": rows,
            "columns": columns,
            "bits": self.spec.bits,
            "group_size": self.spec.group_size or 0,
        }
        return bytes(save_tensors(self.parts(), {k: str(v) for k, v in meta.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> QuantizedWeight:
        """Inverse of :meth:`to_bytes` (loop fields of the spec take their defaults)."""
        try:
            tensors = load_tensors(data)
            meta = {k: int(v) for k, v in _metadata(data).items()}
            shape, group_size = (meta["rows"], meta["columns"]), meta["group_size"] or None
            return cls.from_parts(tensors, shape, meta["bits"], group_size, symmetric="zero" not in tensors)
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"not a packed quantised weight: {error}; write it again with to_bytes()"
            ) from error


def _require_positive(what: str, values: Tensor) -> None:
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise UserError(f"{what} must be positive and finite")


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(...)`` uint8 to a flat uint8 bit stream, low bit first."""
    spread = np.unpackbits(codes.cpu().numpy().reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(spread.reshape(-1), bitorder="little"))


def unpack(stream: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`pack`; raises ValueError when the stream is not as long as the shape asks for."""
    count = shape[0] * shape[1]
    if min(shape) < 0 or stream.shape != (-(-count * bits // 8),):
        raise ValueError(f"{stream.numel()} bytes do not hold {shape} codes of {bits} bits")
    flat = np.unpackbits(stream.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(np.packbits(flat, axis=1, bitorder="little").reshape(shape))
