"""Grids of levels and short scales: against bit patterns, quantiles and brute force, and GPTQ upon them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

import baselines
from baselines.contract import realistic_problem
from epmq.errors import UserError
from epmq.layer.gptq import gptq
from epmq.layer.grid import LEVELS, by_group, decode, encode, factor_of, fit_grid, stored
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight, stacked
from tests.fixtures.layers import with_codes
from tests.fixtures.plain_gptq import plain_gptq
from tests.fixtures.small_floats import e2m1, e4m3, scales_e4m3

pytestmark = pytest.mark.keeps_rng
GRIDS: tuple[Any, ...] = ("nf4", "fp4", "mxfp4", "nvfp4")
MXFP4, NVFP4 = QuantSpec(grid="mxfp4"), QuantSpec(grid="nvfp4")


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rounded(weight: Tensor, spec: QuantSpec) -> QuantizedWeight:
    return QuantizedWeight.nearest(weight, *fit_grid(by_group(weight, spec), spec), spec)


@pytest.mark.parametrize("grid", ["fp4", "mxfp4", "nvfp4"])
def test_levels_of_e2m1_are_those_of_its_bit_patterns(grid: Any) -> None:
    assert list(LEVELS[grid]) == sorted(set(e2m1()))
    assert len(e2m1()) == 16
    assert max(e2m1()) == 6


def test_levels_of_nf4_are_normal_quantiles() -> None:
    """QLoRA (Dettmers et al. 2023): 8 even steps of probability above 0 and 7 below, up to its offset."""
    offset = 0.9677083
    above, below = (norm.ppf(np.linspace(offset, 0.5, n)[:-1]) for n in (9, 8))
    wanted = np.sort(np.concatenate([above, [0.0], -below])) / above.max()
    assert list(LEVELS["nf4"]) == sorted(LEVELS["nf4"])
    np.testing.assert_allclose(LEVELS["nf4"], wanted, rtol=0, atol=5e-7)


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_are_the_nearest_of_all_levels(grid: Any) -> None:
    spec = QuantSpec(grid=grid)
    x, scale = 4 * normal(40, 25), torch.tensor([[0.3], [1.0], [17.0], [0.01]]).double().repeat(10, 1)
    x = x * scale
    codes = encode(x, scale, torch.zeros_like(scale), spec)
    table = torch.tensor(LEVELS[grid], dtype=torch.float64)
    distance = (x[..., None] - table * scale[..., None]).abs()
    assert torch.equal(codes, distance.argmin(-1).double())
    values = decode(codes, scale, torch.zeros_like(scale), spec)
    assert torch.equal(values, table[codes.long()] * scale)


def test_the_largest_weight_meets_the_largest_level() -> None:
    weight = normal(6, 32)
    for grid, largest in (("nf4", 1.0), ("fp4", 6.0)):
        scale, _ = fit_grid(weight, QuantSpec(grid=grid, scale_dtype="float32"))  # type: ignore[arg-type]
        torch.testing.assert_close(scale, weight.abs().amax(1) / largest, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_power_of_two_scales_are_those_of_the_mx_specification(dtype: torch.dtype) -> None:
    """floor(log2(max)) - 2 (OCP Microscaling Formats 1.0, section 6.3), exactly, beside powers of two."""
    power = torch.exp2(torch.arange(-100, 101, dtype=torch.float64)).to(dtype)
    up = torch.full_like(power, torch.inf)
    largest = torch.cat([power, power.nextafter(0 * power), power.nextafter(up), 1.4 * power, 1.9 * power])
    wanted = [2.0 ** (int(np.frexp(float(x))[1]) - 1 - 2) for x in largest]
    weight = torch.stack([0.3 * largest, -largest, 0 * largest], 1)
    scale, _ = fit_grid(weight, MXFP4)
    assert scale.tolist() == wanted


@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.1, 1.0, 4.0, 8.0]))
@settings(max_examples=25)
def test_e4m3_scales_are_the_nearest_of_all_patterns(seed: int, spread: float) -> None:
    scale = torch.exp(spread * normal(5, 7, seed=seed))
    np.testing.assert_array_equal(stored(scale, NVFP4).numpy(), scales_e4m3(scale.numpy()))


@pytest.mark.parametrize("power", range(-60, 61, 6))
def test_the_factor_is_the_least_power_of_two_that_fits(power: int) -> None:
    top = 448 * torch.tensor(2.0**power)
    assert max(e4m3()) == 448
    for largest, wanted in ((top, 0), (top.nextafter(torch.tensor(0.0)), 0), (top * 1.001, 1), (top / 2, -1)):
        assert float(factor_of(largest[None])) == 2.0 ** (power + wanted)


@pytest.mark.parametrize("scale_dtype", ["e4m3", "e8m0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_short_scale_is_stored_as_itself(scale_dtype: Any, dtype: torch.dtype) -> None:
    spec = QuantSpec(scale_dtype=scale_dtype)
    scale = torch.exp2(torch.arange(-126, 127, dtype=torch.float64))
    if scale_dtype == "e4m3":
        scale = 0.25 * torch.tensor([x for x in e4m3() if x > 0], dtype=torch.float64)
    assert torch.equal(stored(scale.to(dtype), spec), scale.to(dtype))
    codes = torch.zeros(len(scale), 4)
    weight = QuantizedWeight.build(codes, scale[:, None], torch.zeros(len(scale), 1), spec)
    assert torch.equal(weight.scale[:, 0], scale.float())
    assert weight.parts()["scale"].dtype == torch.uint8
    assert torch.equal(QuantizedWeight.from_bytes(weight.to_bytes()).scale, weight.scale)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("exponent", [-9, 0, 4])
def test_bytes_hold_the_whole_weight(grid: Any, exponent: int) -> None:
    weight = rounded(10.0**exponent * normal(6, 64), QuantSpec(grid=grid))
    back = QuantizedWeight.from_bytes(weight.to_bytes())
    assert torch.equal(back.codes, weight.codes)
    assert torch.equal(back.scale, weight.scale)
    assert torch.equal(back.dequantize(), weight.dequantize())
    assert back.spec == weight.spec


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (QuantSpec(grid="nf4"), 6 * (64 * 4 + 16)),
        (QuantSpec(grid="nf4", group_size=16), 6 * (64 * 4 + 4 * 16)),
        (QuantSpec(grid="fp4", scale_dtype="float32"), 6 * (64 * 4 + 32)),
        (MXFP4, 6 * (64 * 4 + 2 * 8)),
        (NVFP4, 6 * (64 * 4 + 4 * 8) + 32),
        (QuantSpec(3, 16, scale_dtype="e4m3"), 6 * (64 * 3 + 4 * (8 + 3)) + 32),
    ],
    ids=str,
)
def test_bits_are_what_is_counted_by_hand(spec: QuantSpec, bits: int) -> None:
    weight = rounded(normal(6, 64), spec)
    assert weight.packed_bits == bits
    assert sum(8 * part.numel() * part.element_size() for part in weight.parts().values()) == bits
    assert weight.bits_per_weight == bits / (6 * 64)


PLAIN = {
    "NF4": QuantSpec(grid="nf4"),
    "NF4 groups": QuantSpec(grid="nf4", group_size=16),
    "FP4 groups act-order": QuantSpec(grid="fp4", group_size=16, act_order=True),
    "FP4 float32 scales": QuantSpec(grid="fp4", group_size=32, scale_dtype="float32"),
    "MXFP4": MXFP4,
    "MXFP4 act-order": replace(MXFP4, act_order=True),
    "NVFP4": NVFP4,
    "NVFP4 act-order": replace(NVFP4, act_order=True),
    "NVFP4 short blocks": replace(NVFP4, block_size=5),
}


@pytest.mark.parametrize("spec", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("target", ["merged", "expert"])
def test_gptq_gives_the_codes_of_a_plain_loop(spec: QuantSpec, target: str) -> None:
    problem = realistic_problem(target, rows=16, columns=64)
    found, wanted = gptq(problem, spec), plain_gptq(problem, spec)
    np.testing.assert_array_equal(found.codes.numpy(), wanted.codes)
    np.testing.assert_allclose(found.scale.double().numpy(), wanted.scale, rtol=1e-5)
    np.testing.assert_allclose(found.dequantize().numpy(), wanted.dense, rtol=1e-5)


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize(("grid", "group_size"), [("nf4", None), ("fp4", 1), ("fp4", None)])
def test_no_rounding_beats_exhaustive_search(name: str, grid: Any, group_size: int | None) -> None:
    """All codes of a 2x3 layer on the method's own grid, row by row."""
    problem = realistic_problem(rows=2, columns=3)
    found = baselines.get(name)(problem, QuantSpec(4, group_size, grid=grid))
    codes = torch.tensor(list(itertools.product(range(len(LEVELS[grid])), repeat=3)), dtype=torch.uint8)
    gap = with_codes(found, codes[:, None].expand(-1, 2, -1)) - problem.centre
    best = torch.einsum("nrc,cd,nrd->nr", gap, problem.hessian, gap).amin(0)
    mine = problem.row_objective(with_codes(found, found.codes))
    assert bool((mine >= best - 1e-12 * mine.abs()).all())


@pytest.mark.parametrize("grid", GRIDS)
def test_descent_ends_where_no_change_of_one_code_lowers_the_objective(grid: Any) -> None:
    problem = realistic_problem(rows=4, columns=32)
    found = baselines.get("gptq-descent")(problem, QuantSpec(grid=grid))
    least = problem.row_objective(with_codes(found, found.codes))
    start = problem.row_objective(gptq(problem, QuantSpec(grid=grid)).dequantize())
    assert float(least.sum()) < float(start.sum())
    for column, code in itertools.product(range(32), range(len(LEVELS[grid]))):
        codes = found.codes.clone()
        codes[:, column] = code
        assert bool((problem.row_objective(with_codes(found, codes)) >= least * (1 - 1e-9)).all())


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize("largest", [1.0, 1.002])
def test_rows_of_very_different_size_have_short_scales_too(name: str, largest: float) -> None:
    """E4M3 scales of one tensor have one factor: the smallest of them are subnormal here, or its least.

    A largest weight just above 6 * 448 powers of two needs twice the factor of one just below.
    """
    problem = realistic_problem(rows=16, columns=32)
    rows = problem.centre / problem.centre.abs().amax(1, keepdim=True)
    sizes = torch.cat([torch.ones(1), 10.0 ** -torch.linspace(4, 6, 15)]).double()
    centre = rows * (largest * 6 * 448 / 2**12) * sizes[:, None]
    problem = replace(problem, centre=centre, reference=centre)
    found = baselines.get(name)(problem, NVFP4)
    assert torch.equal(stored(found.scale, NVFP4), found.scale)
    assert torch.equal(QuantizedWeight.from_bytes(found.to_bytes()).dequantize(), found.dequantize())


def test_a_format_fixes_what_it_fixes() -> None:
    assert (MXFP4.group_size, MXFP4.scale_dtype, MXFP4.symmetric) == (32, "e8m0", True)
    assert (NVFP4.group_size, NVFP4.scale_dtype, NVFP4.symmetric) == (16, "e4m3", True)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"grid": "mxfp4", "group_size": 16}, "grid mxfp4 has group_size 32, not 16"),
        ({"grid": "nvfp4", "scale_dtype": "float32"}, "grid nvfp4 has scale_dtype e4m3, not float32"),
        ({"grid": "nf4", "bits": 3}, "grid nf4 has codes of 4 bits, not 3"),
        ({"grid": "nf5"}, "grid 'nf5' is unknown"),
    ]
    for fields, message in wrong:
        with pytest.raises(UserError, match=message):
            QuantSpec(**fields)


def test_scales_too_far_apart_are_not_stacked() -> None:
    large, small = rounded(normal(2, 32), NVFP4), rounded(1e-6 * normal(2, 32), NVFP4)
    assert stacked([large, small]) is None
    both = stacked([large, rounded(1e-2 * normal(2, 32), NVFP4)])
    assert both is not None
    assert torch.equal(both.dequantize()[:2], large.dequantize())


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (QuantSpec(grid="fp4"), {"codes": torch.full((2, 32), 15, dtype=torch.uint8)}, "a code exceeds 14"),
        (MXFP4, {"scale": torch.full((2, 1), 0.75)}, "scales are no e8m0 numbers"),
        (NVFP4, {"scale": torch.full((2, 2), 1.01)}, "scales are no e4m3 numbers"),
        (NVFP4, {"scale": torch.ones(2, 2).half()}, "e4m3 is held as torch.float32"),
        (QuantSpec(), {"zero": torch.full((2, 1), torch.inf).half()}, "real zero points must be finite"),
        (QuantSpec(symmetric=True), {"zero": torch.full((2, 1), 8.0).half()}, "that is not symmetric"),
        (QuantSpec(), {"rotation": -1}, "rotation -1 is no seed"),
        (QuantSpec(), {"rotation": 1 << 31}, "is no seed"),
    ],
)
def test_parts_that_do_not_fit_are_refused(spec: QuantSpec, change: dict[str, Any], message: str) -> None:
    weight = rounded(normal(2, 32), spec)
    with pytest.raises(UserError, match=message):
        replace(weight, **change)
