"""A quantised weight: integer codes with their grid, and the few parts that some methods add, all counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.exceptions import Exceptions
from epmq.layer.grid import by_group, decode, encode, factor_of, held_as, largest_code, stored
from epmq.layer.rotation import SEED_BITS, rotated, rotated_back
from epmq.layer.spec import SCALE_BITS, GridName, QuantSpec, ScaleDtype


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes, scales and zero points; the dense weight is derived from them, and the parts below, alone.

    Attributes:
        codes: ``(rows, columns)`` uint8, below ``2**spec.bits`` and the number of the grid's levels.
        scale: ``(rows, groups)`` float16, or float32 that ``spec.scale_dtype`` can hold.
        zero: ``(rows, groups)`` uint8, the middle code everywhere when the grid is symmetric; or float16, any
            real number, when it is not (HQQ).
        spec: the grid.
        input_scale: ``(columns,)`` float16 divisor of every column (AWQ), or ``None``.
        rotation: seed of the rotation of the columns that the codes are of (:mod:`epmq.layer.rotation`), or
            ``None``.
        exceptions: entries that are no codes, or ``None``.

    Raises:
        UserError: shapes, dtypes or code values do not fit together.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    spec: QuantSpec
    input_scale: Tensor | None = None
    rotation: int | None = None
    exceptions: Exceptions | None = None

    def __post_init__(self) -> None:
        if self.codes.dim() != 2:
            raise UserError(f"codes have {self.codes.dim()} dimensions, expected a matrix (rows, columns)")
        rows, columns = self.codes.shape
        grid = (rows, columns // self.spec.columns_per_group(columns))
        if self.codes.dtype != torch.uint8 or self.zero.dtype not in (torch.uint8, torch.float16):
            raise UserError("codes and zero points must be uint8, real zero points float16")
        if self.scale.dtype != held_as(self.spec):
            raise UserError(
                f"scales are {self.scale.dtype}, {self.spec.scale_dtype} is held as {held_as(self.spec)}"
            )
        if tuple(self.scale.shape) != grid or tuple(self.zero.shape) != grid:
            raise UserError(
                f"scale {tuple(self.scale.shape)} and zero {tuple(self.zero.shape)} must be {grid}"
            )
        self._require_codes()
        _require_positive("scales", self.scale)
        if self.spec.short_scales and not torch.equal(stored(self.scale, self.spec), self.scale):
            raise UserError(f"scales are no {self.spec.scale_dtype} numbers; build() rounds them")
        if self.input_scale is not None:
            if tuple(self.input_scale.shape) != (columns,) or self.input_scale.dtype != torch.float16:
                found = f"{tuple(self.input_scale.shape)} {self.input_scale.dtype}"
                raise UserError(f"input scale is {found}, expected ({columns},) torch.float16")
            _require_positive("input scales", self.input_scale)
        if self.rotation is not None and not 0 <= self.rotation < 1 << (SEED_BITS - 1):
            raise UserError(f"rotation {self.rotation} is no seed; give 0 to 2^{SEED_BITS - 1} - 1")
        if self.exceptions is not None:
            where = self.exceptions.columns
            if len(where) != rows or (where.numel() and int(where.max()) >= min(columns, 1 << 16)):
                raise UserError(f"exceptions are not of a weight of {rows} rows and {columns} columns")

    def _require_codes(self) -> None:
        largest = largest_code(self.spec)
        real = self.zero.dtype == torch.float16
        if self.codes.numel() and int(self.codes.max()) > largest:
            raise UserError(f"a code exceeds {largest}, the largest of {self.spec.bits} bits")
        if self.zero.numel() and not real and int(self.zero.max()) > self.spec.max_code:
            raise UserError(
                f"a zero point exceeds {self.spec.max_code}, the largest of {self.spec.bits} bits"
            )
        if self.spec.symmetric and bool((self.zero != (self.spec.max_code + 1) // 2).any()):
            raise UserError("a symmetric grid has its zero point at the middle code")
        if real and (self.spec.symmetric or not bool(torch.isfinite(self.zero).all())):
            raise UserError("real zero points must be finite, on a grid that is not symmetric")

    @classmethod
    def nearest(
        cls, weight: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec, input_scale: Tensor | None = None
    ) -> QuantizedWeight:
        """Round ``(rows, columns)`` to the nearest codes on a grid of ``(rows, groups)`` scales and zeros."""
        codes = encode(by_group(weight, spec), scale[..., None], zero[..., None], spec).flatten(1)
        return cls.build(codes, scale, zero, spec, input_scale)

    @classmethod
    def build(
        cls, codes: Tensor, scale: Tensor, zero: Tensor, spec: QuantSpec, input_scale: Tensor | None = None
    ) -> QuantizedWeight:
        """From tensors of any dtype, codes and zero points being whole numbers; casts to the stored dtypes.

        Zero points that are float16 already are real and stay so.
        """
        if spec.short_scales:
            _require_positive("scales", scale)
            scale = stored(scale, spec)
        scale = scale.to(held_as(spec))
        if input_scale is not None:
            input_scale = input_scale.to(torch.float16)
        if zero.dtype != torch.float16:
            zero = zero.to(torch.uint8)
        return cls(codes.to(torch.uint8), scale, zero, spec, input_scale)

    def dequantize(self) -> Tensor:
        """The dense weight ``(rows, columns)`` float32."""
        codes = by_group(self.codes.float(), self.spec)
        grid = self.scale.float()[..., None], self.zero.float()[..., None]
        return self.restored(decode(codes, *grid, self.spec).flatten(1))

    def restored(self, values: Tensor) -> Tensor:
        """The dense weight, given what its codes come to; both ``(..., rows, columns)`` float."""
        if self.exceptions is not None:
            values = self.exceptions.put(values)
        if self.rotation is not None:
            values = rotated_back(values.double(), self.rotation).to(values)
        return values if self.input_scale is None else values / self.input_scale.to(values)

    def transformed(self, weight: Tensor) -> Tensor:
        """A weight ``(rows, columns)`` as its codes are to come near it; undone by :meth:`restored`."""
        if self.input_scale is not None:
            weight = weight * self.input_scale.to(weight)
        return weight if self.rotation is None else rotated(weight.double(), self.rotation).to(weight)

    def __getitem__(self, rows: slice | Tensor) -> QuantizedWeight:
        """Some of its rows."""
        exceptions = None if self.exceptions is None else self.exceptions[rows]
        return replace(
            self, codes=self.codes[rows], scale=self.scale[rows], zero=self.zero[rows], exceptions=exceptions
        )

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on another device."""
        moved = {
            name: getattr(self, name) for name in ("codes", "scale", "zero", "input_scale", "exceptions")
        }
        return replace(self, **{name: part.to(device) for name, part in moved.items() if part is not None})

    @property
    def packed_bits(self) -> int:
        """Stored bits: codes, scales, zero points (none when symmetric) and what else there is."""
        spec, zero_bits = self.spec, 16 if self.zero.dtype == torch.float16 else self.spec.bits
        grid_bits = SCALE_BITS[spec.scale_dtype] + (0 if spec.symmetric else zero_bits)
        found = self.codes.numel() * spec.bits + self.scale.numel() * grid_bits
        found += 32 if spec.scale_dtype == "e4m3" else 0
        found += 0 if self.input_scale is None else 16 * self.input_scale.numel()
        found += 0 if self.rotation is None else SEED_BITS
        return found + (0 if self.exceptions is None else self.exceptions.packed_bits)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight, scales and zero points included."""
        return self.packed_bits / self.codes.numel()

    def parts(self) -> dict[str, Tensor]:
        """All that is stored, by name; most weights do not have most of it.

        ``codes`` and integer ``zero`` as bit streams, real ones float16, none on a symmetric grid; ``scale``,
        float or 8-bit (uint8: E4M3 with its ``factor`` float32, or exponents plus 127); ``input_scale``,
        ``rotation`` int32, ``exception_columns`` uint16 and ``exception_values``.
        """
        found = {"codes": pack(self.codes, self.spec.bits)} | _scale_parts(self.scale.cpu(), self.spec)
        if not self.spec.symmetric:
            real = self.zero.dtype == torch.float16
            found["zero"] = self.zero.contiguous() if real else pack(self.zero, self.spec.bits)
        if self.input_scale is not None:
            found["input_scale"] = self.input_scale.contiguous()
        if self.rotation is not None:
            found["rotation"] = torch.tensor([self.rotation], dtype=torch.int32)
        if self.exceptions is not None:
            found["exception_columns"] = self.exceptions.columns.to(torch.uint16).contiguous()
            found["exception_values"] = self.exceptions.values.contiguous()
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
        grid: GridName = "uniform",
    ) -> QuantizedWeight:
        """Inverse of :meth:`parts` (loop fields of the spec take their defaults).

        Raises:
            ValueError, KeyError, IndexError, UserError: they do not fit together.
        """
        scale, dtype = _scale_of(parts)
        spec = QuantSpec(bits, group_size, symmetric=symmetric, scale_dtype=dtype, grid=grid)
        codes = unpack(parts["codes"], spec.bits, shape)
        zero = torch.full(scale.shape, (spec.max_code + 1) // 2, dtype=torch.uint8)
        if not spec.symmetric:
            zero = parts["zero"]
            if zero.dtype != torch.float16:
                zero = unpack(zero, spec.bits, (scale.shape[0], scale.shape[1]))
        exceptions = None
        if "exception_columns" in parts:
            columns = parts["exception_columns"].to(torch.int32)
            exceptions = Exceptions(columns, parts["exception_values"])
        rotation = int(parts["rotation"][0]) if "rotation" in parts else None
        return cls(codes, scale, zero, spec, parts.get("input_scale"), rotation, exceptions)

    def to_bytes(self) -> bytes:
        """Packed little-endian bit stream in a safetensors container."""
        rows, columns = self.codes.shape
        meta = {
            "rows": rows,
            "columns": columns,
            "bits": self.spec.bits,
            "group_size": self.spec.group_size or 0,
            "grid": self.spec.grid,
        }
        return bytes(save_tensors(self.parts(), {k: str(v) for k, v in meta.items()}))

    @classmethod
    def from_bytes(cls, data: bytes) -> QuantizedWeight:
        """Inverse of :meth:`to_bytes` (loop fields of the spec take their defaults)."""
        try:
            tensors, meta = load_tensors(data), _metadata(data)
            grid: Any = meta.pop("grid", "uniform")
            rows, columns, bits, group_size = (
                int(meta[name]) for name in ("rows", "columns", "bits", "group_size")
            )
            return cls.from_parts(
                tensors,
                (rows, columns),
                bits,
                group_size or None,
                symmetric="zero" not in tensors,
                grid=grid,
            )
        except (SafetensorError, KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"not a packed quantised weight: {error}; write it again with to_bytes()"
            ) from error


def stacked(parts: Sequence[QuantizedWeight]) -> QuantizedWeight | None:
    """Rows of several weights as one; ``None`` where their grids, or what their rows share, differ."""
    first = parts[0]
    alike = all(part.spec == first.spec and part.rotation == first.rotation for part in parts)
    if not alike or not _same(part.input_scale for part in parts):
        return None
    held = [part.exceptions for part in parts]
    counts = {None if each is None else each.columns.shape[1] for each in held}
    if len(counts) > 1 or len({part.zero.dtype for part in parts}) > 1:
        return None
    exceptions = None
    if None not in counts:
        columns, values = ([getattr(each, name) for each in held] for name in ("columns", "values"))
        exceptions = Exceptions(torch.cat(columns), torch.cat(values))
    scale = torch.cat([part.scale for part in parts])
    if not torch.equal(stored(scale, first.spec), scale):  # E4M3 scales too far apart for one factor
        return None
    codes, zero = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "zero"))
    return replace(first, codes=codes, scale=scale, zero=zero, exceptions=exceptions)


def _same(tensors: Iterable[Tensor | None]) -> bool:
    first, *others = tensors
    if first is None:
        return all(other is None for other in others)
    return all(other is not None and torch.equal(first, other) for other in others)


def _scale_parts(scale: Tensor, spec: QuantSpec) -> dict[str, Tensor]:
    if spec.scale_dtype == "e4m3":
        factor = factor_of(scale)
        short = (scale / factor).to(torch.float8_e4m3fn).view(torch.uint8)
        return {"scale": short.contiguous(), "factor": factor[None]}
    if spec.scale_dtype == "e8m0":
        return {"scale": (torch.log2(scale) + 127).round().to(torch.uint8).contiguous()}
    return {"scale": scale.contiguous()}


def _scale_of(parts: Mapping[str, Tensor]) -> tuple[Tensor, ScaleDtype]:
    """Scales as they are held, and how they are stored."""
    scale = parts["scale"]
    if scale.dtype != torch.uint8:
        return scale, "float16" if scale.dtype == torch.float16 else "float32"
    if "factor" in parts:
        return scale.view(torch.float8_e4m3fn).float() * parts["factor"], "e4m3"
    return torch.exp2(scale.float() - 127), "e8m0"


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
