"""The grid, the specification and the quantised weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from epmq.errors import UserError
from epmq.layer.grid import by_group, decode, encode, fit_grid
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight, pack, unpack

pytestmark = pytest.mark.keeps_rng
specs = st.builds(
    QuantSpec,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 1, 4, 12]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "float32"]),
)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def rounded(
    spec: QuantSpec, weight: Tensor | None = None, input_scale: Tensor | None = None
) -> QuantizedWeight:
    weight = normal(5, 12) if weight is None else weight
    return QuantizedWeight.nearest(weight, *fit_grid(by_group(weight, spec), spec), spec, input_scale)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bits", 1, "bits 1 is out of range; give 2 to 8"),
        ("bits", 9, "bits 9 is out of range; give 2 to 8"),
        ("group_size", 0, "group size 0 is not positive"),
        ("group_size", -8, "group size -8 is not positive"),
        ("block_size", 0, "block size 0 is not positive"),
        ("fit_scales_on", "center", "fit_scales_on 'center' is unknown; did you mean 'centre'"),
        ("scale_dtype", "bfloat16", "scale_dtype 'bfloat16' is unknown; did you mean"),
    ],
)
def test_a_field_out_of_range_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantSpec(**{field: value})


def test_a_group_size_must_divide_the_columns() -> None:
    with pytest.raises(UserError, match="group size 5 does not divide a layer's 12 input columns"):
        QuantSpec(group_size=5).columns_per_group(12)


@given(spec=specs, seed=st.integers(0, 10_000), exponent=st.integers(-6, 4))
def test_rounding_is_within_a_step_and_zero_is_on_the_grid(spec: QuantSpec, seed: int, exponent: int) -> None:
    """Half a step from rounding, at most half from the zero point's rounding, the rest from the scale's."""
    weight = 10.0**exponent * normal(4, 12, seed)
    scale, zero = (t[..., None] for t in fit_grid(by_group(weight, spec), spec))
    codes = encode(by_group(weight, spec), scale, zero, spec)
    error = (decode(codes, scale, zero, spec) - by_group(weight, spec)).abs()
    slack = 1.0 + (1 << spec.bits) * (2.0**-11 if float(scale.min()) > 6e-5 else 0.5)
    assert bool((error <= slack * scale).all())
    assert torch.equal(decode(encode(0 * scale, scale, zero, spec), scale, zero, spec), 0 * scale)


@given(spec=specs)
def test_values_on_the_grid_are_kept(spec: QuantSpec) -> None:
    once = rounded(spec).dequantize()
    grid = rounded(spec)
    again = QuantizedWeight.nearest(once, grid.scale.float(), grid.zero.float(), spec)
    assert torch.equal(again.codes, grid.codes)


def test_constant_and_empty_ranges_are_represented() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [-2.0, -2.0, -2.0]], dtype=torch.float64)
    for symmetric in (False, True):
        dense = rounded(QuantSpec(4, symmetric=symmetric), weight).dequantize().double()
        torch.testing.assert_close(dense, weight, rtol=0.1, atol=0)


def test_a_channel_of_small_range_keeps_its_8_bits() -> None:
    """Its scale is below float16's smallest normal number."""
    weight = 1e-3 * normal(4, 64)
    error = (rounded(QuantSpec(8), weight).dequantize() - weight).abs().amax()
    assert float(error) < 2.5e-5


@pytest.mark.parametrize("scale_dtype", ["float16", "float32"])
def test_what_is_stored_is_what_was_used(scale_dtype: Any) -> None:
    spec = QuantSpec(scale_dtype=scale_dtype)
    scale, _ = fit_grid(normal(6, 12), spec)
    assert torch.equal(scale, scale.to(getattr(torch, scale_dtype)).double())


def test_a_shrunk_range_scales_the_grid() -> None:
    weight, spec = normal(6, 12), QuantSpec(scale_dtype="float32")
    whole, _ = fit_grid(weight, spec)
    both, _ = fit_grid(weight, spec, torch.tensor([[1.0], [0.5]], dtype=torch.float64))
    torch.testing.assert_close(both, torch.stack([whole, whole / 2]), rtol=1e-6, atol=0)


@given(bits=st.integers(2, 8), rows=st.integers(0, 5), columns=st.integers(1, 9), seed=st.integers(0, 1000))
def test_packing_is_undone_by_unpacking(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    stream = pack(codes, bits)
    assert stream.numel() == -(-rows * columns * bits // 8)
    assert torch.equal(unpack(stream, bits, (rows, columns)), codes)


@given(spec=specs, scaled=st.booleans())
def test_bytes_hold_the_whole_weight(spec: QuantSpec, scaled: bool) -> None:
    input_scale = torch.linspace(0.5, 2, 12).half() if scaled else None
    weight = rounded(spec, input_scale=input_scale)
    data = weight.to_bytes()
    back = QuantizedWeight.from_bytes(data)
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert replace(back.spec, fit_scales_on=spec.fit_scales_on) == spec
    assert back.packed_bits == weight.packed_bits


@given(spec=specs, scaled=st.booleans())
def test_bits_per_weight_count_everything_stored(spec: QuantSpec, scaled: bool) -> None:
    input_scale = torch.ones(64).half() if scaled else None
    spec = replace(spec, group_size=spec.group_size and 16)
    weight = rounded(spec, normal(256, 64), input_scale)
    groups = 1 if spec.group_size is None else 4
    a_group = {"float16": 16, "float32": 32}[spec.scale_dtype] + (0 if spec.symmetric else spec.bits)
    stored = 256 * (64 * spec.bits + groups * a_group) + (16 * 64 if scaled else 0)
    assert weight.packed_bits == stored
    assert weight.bits_per_weight == stored / (256 * 64)
    assert 0 <= len(weight.to_bytes()) - stored / 8 < 512


def test_dequantising_divides_by_the_input_scale() -> None:
    input_scale = torch.linspace(0.5, 2, 12).half()
    plain, scaled = rounded(QuantSpec()), rounded(QuantSpec(), input_scale=input_scale)
    assert plain.dequantize().dtype == torch.float32
    torch.testing.assert_close(scaled.dequantize(), plain.dequantize() / input_scale.float())


GOOD = {
    "codes": torch.zeros(2, 4, dtype=torch.uint8),
    "scale": torch.ones(2, 1).half(),
    "zero": torch.zeros(2, 1, dtype=torch.uint8),
    "spec": QuantSpec(3),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": torch.zeros(4, dtype=torch.uint8)}, "codes have 1 dimensions"),
        ({"codes": torch.zeros(2, 4, dtype=torch.int8)}, "must be uint8"),
        ({"codes": torch.full((2, 4), 8, dtype=torch.uint8)}, "exceeds 7, the largest of 3 bits"),
        ({"zero": torch.full((2, 1), 8, dtype=torch.uint8)}, "exceeds 7, the largest of 3 bits"),
        ({"zero": torch.zeros(2, 2, dtype=torch.uint8)}, r"must be \(2, 1\)"),
        ({"scale": torch.ones(2, 2).half()}, r"must be \(2, 1\)"),
        ({"scale": torch.ones(2, 1)}, "scales are torch.float32, float16 is held as torch.float16"),
        ({"scale": torch.full((2, 1), torch.inf).half()}, "scales must be positive and finite"),
        ({"scale": torch.zeros(2, 1).half()}, "scales must be positive and finite"),
        ({"spec": QuantSpec(3, symmetric=True)}, "zero point at the middle code"),
        ({"spec": QuantSpec(3, group_size=3)}, "group size 3 does not divide"),
        ({"input_scale": torch.ones(3).half()}, r"expected \(4,\) torch.float16"),
        ({"input_scale": torch.ones(4)}, r"expected \(4,\) torch.float16"),
        ({"input_scale": torch.zeros(4).half()}, "input scales must be positive"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        QuantizedWeight(**{**GOOD, **change})


def damaged() -> dict[str, bytes]:
    data = rounded(QuantSpec()).to_bytes()
    meta = {"rows": "5", "columns": "12", "bits": "4", "group_size": "0"}
    parts = {"codes": torch.zeros(30, dtype=torch.uint8), "scale": torch.ones(5, 1).half()}
    return {
        "empty": b"",
        "garbage": b"\0" * 64,
        "truncated": data[:-1],
        "no metadata": save(parts),
        "bits out of range": save(parts, {**meta, "bits": "9"}),
        "metadata not a number": save(parts, {**meta, "rows": "five"}),
        "too few codes": save({**parts, "codes": parts["codes"][:-1]}, meta),
        "too many codes": save(parts, {**meta, "rows": "4"}),
        "scale a vector": save({**parts, "scale": torch.ones(5).half()}, meta),
        "negative shape": save(parts, {**meta, "rows": "-5", "columns": "-12"}),
    }


@pytest.mark.parametrize("kind", damaged())
def test_damaged_bytes_are_refused(kind: str) -> None:
    with pytest.raises(UserError):
        QuantizedWeight.from_bytes(damaged()[kind])
