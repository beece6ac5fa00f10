"""Levels and short scales against bitsandbytes and compressed-tensors.

Differences that remain: at a tie, ``x / s`` half way between two levels, ours is the lower level,
compressed-tensors' the one with the even pattern and bitsandbytes' the lower magnitude or another by branch.
For MXFP4, compressed-tensors takes the next power of two where the largest magnitude is 1.75 times its own or
more, ours is the rule of OCP's Microscaling Formats 1.0. For NVFP4, its factor of a tensor is
``448 * 6 / max|w|``, ours a power of two. The smallest level of bitsandbytes' own FP4 is another than E2M1's.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes import functional
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
from torch import Tensor

from epmq.layer.grid import LEVELS, by_group, encode, factor_of, fit_grid
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight

MXFP4, NVFP4 = QuantSpec(grid="mxfp4"), QuantSpec(grid="nvfp4")


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


def test_nf4_is_that_of_bitsandbytes() -> None:
    theirs = functional.get_4bit_type("nf4", device="cpu")
    assert torch.equal(theirs, torch.tensor(LEVELS["nf4"]))
    made = functional.create_normal_map()
    nonzero = made[made != 0]
    torch.testing.assert_close(nonzero, theirs[theirs != 0], rtol=0, atol=1e-6)


def test_fp4_of_bitsandbytes_has_another_smallest_level() -> None:
    theirs = 6 * functional.get_4bit_type("fp4", device="cpu").abs().unique()
    ours = torch.tensor(LEVELS["fp4"]).abs().unique()
    assert float(ours[1]) == 0.5
    assert float(theirs[1]) == pytest.approx(1 / 32)
    torch.testing.assert_close(theirs[2:], ours[2:])


@pytest.mark.parametrize("block", [64, 128])
def test_rounding_to_nf4_is_that_of_bitsandbytes(block: int) -> None:
    weight, spec = normal(64, 256), QuantSpec(grid="nf4", group_size=block, scale_dtype="float32")
    packed, state = functional.quantize_4bit(weight, blocksize=block, quant_type="nf4")
    theirs = functional.dequantize_4bit(packed, state)
    ours = QuantizedWeight.nearest(weight, *fit_grid(by_group(weight, spec), spec), spec)
    torch.testing.assert_close(ours.scale.flatten(), state.absmax, rtol=0, atol=0)
    apart = (ours.dequantize() - theirs).abs() > 1e-6
    print(f"other levels: {float(apart.double().mean()):.4%}")
    assert float(apart.double().mean()) < 1e-4, "thresholds of theirs are printed to six digits"


def test_rounding_to_e2m1_is_that_of_compressed_tensors_but_for_ties() -> None:
    x = torch.cat([2.5 * normal(4000), torch.linspace(-7, 7, 1401)])
    table = torch.tensor(LEVELS["fp4"])
    one = torch.ones(1)
    ours = table[encode(x, one, one, QuantSpec(grid="fp4")).long()]
    theirs = cast_to_fp4(x.clone())
    ties = torch.isin(x, (table[1:] + table[:-1]) / 2)
    assert torch.equal(ours[~ties], theirs[~ties])
    assert bool(ties.any())
    assert bool(((ours - x).abs() == (theirs - x).abs())[ties].all())


def arguments(spec: QuantSpec, **fields: Any) -> QuantizationArgs:
    return QuantizationArgs(num_bits=4, type="float", symmetric=True, group_size=spec.group_size, **fields)


def test_mxfp4_scales_are_those_of_compressed_tensors_below_three_quarters() -> None:
    largest = torch.exp(3 * normal(5000).double()).float()
    args = arguments(MXFP4, strategy="group", scale_dtype=torch.uint8)
    theirs, _ = calculate_qparams(-largest, 0.5 * largest, args)
    ours, _ = fit_grid(torch.stack([0.5 * largest, -largest], 1), MXFP4)
    mantissa = 2 * torch.frexp(largest).mantissa
    assert torch.equal(theirs.float(), torch.where(mantissa < 1.75, ours, 2 * ours))


def test_nvfp4_scales_are_those_of_compressed_tensors_with_our_factor() -> None:
    weight = torch.exp(normal(64, 1, seed=1)) * normal(64, 256)
    grouped = by_group(weight, NVFP4)
    low, high = grouped.amin(-1), grouped.amax(-1)
    args = arguments(NVFP4, strategy="tensor_group", scale_dtype=torch.float8_e4m3fn)
    ours, _ = fit_grid(grouped, NVFP4)
    factor = factor_of(grouped.abs().amax(-1) / 6)
    same, _ = calculate_qparams(low, high, args, global_scale=1 / factor)
    assert torch.equal(same.float() * factor, ours)
    own = generate_gparam(low.min(), high.max())
    theirs, _ = calculate_qparams(low, high, args, global_scale=own)
    apart = (theirs.float() / own / ours - 1).abs()
    print(f"scales with their own factor are at most {float(apart.max()):.1%} apart")
    assert 0 < float(apart.max()) < 2 / 16 * 1.01, "each is rounded to 4 significant bits"
