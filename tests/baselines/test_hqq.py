"""HQQ: its iteration group by group in plain numbers, and never worse than rounding to nearest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import baselines
from baselines.contract import realistic_problem
from baselines.roundings.hqq import fitted_zero
from epmq.layer.grid import by_group, fit_grid
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec

pytestmark = pytest.mark.keeps_rng
SPECS = {
    "2-bit": QuantSpec(2, 16),
    "3-bit": QuantSpec(3),
    "4-bit groups": QuantSpec(4, 16),
    "8-bit": QuantSpec(8),
    "5-bit on merged": QuantSpec(5, 32, fit_scales_on="merged"),
    "short scales": QuantSpec(3, 16, scale_dtype="e4m3"),
}


def layer(size: float, seed: int = 0) -> LayerProblem:
    """Weights with heavy tails, of a size that the iteration's constants do or do not notice."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, 12, 64, generator=generator, dtype=torch.float64)
    weight = size * draws[0] / draws[1].abs().clamp(min=0.2)
    one = torch.eye(64, dtype=torch.float64)
    return LayerProblem(weight, one, weight + 0.01 * size)


def iterated(
    group: NDArray[np.float64], scale: float, zero: float, top: int
) -> tuple[list[float], list[float]]:
    """Zero points of one group, the start among them, and the mean absolute errors of all but the last.

    The error e is split: w minimises |w|^0.7 + beta / 2 (w - e)^2 by the shrinkage of the method's page, z
    then minimises the square of what is left; beta starts at 10 and grows by 1 %. A fall of the error in its
    last digits is none.
    """
    zeros, errors, beta = [zero], [], 10.0
    for _ in range(20):
        codes = np.clip(np.rint(group / scale + zeros[-1]), 0, top)
        error = group - (codes - zeros[-1]) * scale
        errors.append(float(np.abs(error).mean()))
        outlying = []
        for e in error:
            left = abs(e) - abs(e) ** -0.3 / beta if e else 0.0
            outlying.append(np.sign(e) * max(left, 0.0))
        zeros.append(float(np.mean(codes - (group - outlying) / scale)))
        if len(errors) > 1 and errors[-1] >= min(errors[:-1]) * (1 - 1e-9):
            break
        beta *= 1.01
    return zeros, errors


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_zero_points_are_those_of_the_iteration_group_by_group(spec: QuantSpec, size: float) -> None:
    weight = by_group(layer(size).centre, spec)
    scale, zero = fit_grid(weight, spec)
    found = fitted_zero(weight, scale, zero, spec.max_code)
    lengths = set()
    for row in range(weight.shape[0]):
        for group in range(weight.shape[1]):
            start = float(scale[row, group]), float(zero[row, group])
            zeros, errors = iterated(weight[row, group].numpy(), *start, spec.max_code)
            assert float(found[row, group]) == pytest.approx(zeros[-1], rel=1e-9, abs=1e-9)
            assert all(after < before for before, after in pairwise(errors[:-1])), "no step is a worse one"
            lengths.add(len(errors))
    assert len(lengths) > 1, "groups stop by themselves"


def error_of(dense: Tensor, problem: LayerProblem, spec: QuantSpec) -> Tensor:
    return by_group((dense.double() - problem.centre).abs(), spec).mean(-1)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_no_group_has_a_larger_error_than_rounding_to_nearest(spec: QuantSpec, size: float) -> None:
    problem = layer(size)
    found, plain = (baselines.get(name)(problem, spec) for name in ("hqq", "rtn"))
    ours, theirs = (error_of(weight.dequantize(), problem, spec) for weight in (found, plain))
    assert bool((ours <= theirs * (1 + 1e-6)).all())
    assert float(ours.sum()) < float(theirs.sum())
    assert found.zero.dtype == torch.float16
    groups = plain.scale.numel()
    assert found.packed_bits == plain.packed_bits + groups * (16 - spec.bits)


@pytest.mark.parametrize(
    "spec", [QuantSpec(3, symmetric=True), QuantSpec(grid="nf4"), QuantSpec(grid="nvfp4")], ids=str
)
def test_without_a_zero_point_it_is_rounding_to_nearest(spec: QuantSpec) -> None:
    problem = realistic_problem(columns=32)
    found, plain = (baselines.get(name)(problem, spec) for name in ("hqq", "rtn"))
    assert torch.equal(found.codes, plain.codes)
    assert torch.equal(found.scale, plain.scale)
    assert torch.equal(found.zero, plain.zero)


def test_codes_are_the_nearest_around_the_stored_zero_point() -> None:
    problem, spec = layer(1.0), QuantSpec(3, 16)
    found = baselines.get("hqq")(problem, spec)
    levels = (torch.arange(8).double() - found.zero.double()[..., None]) * found.scale.double()[..., None]
    distance = (by_group(problem.centre, spec)[..., None] - levels[:, :, None]).abs()
    assert torch.equal(distance.argmin(-1).flatten(1).to(torch.uint8), found.codes)


def test_groups_that_are_constant_or_nothing_stay() -> None:
    weight = torch.zeros(3, 32, dtype=torch.float64)
    weight[1], weight[2] = 0.7, -0.7
    problem = LayerProblem(weight, torch.eye(32, dtype=torch.float64), weight)
    found = baselines.get("hqq")(problem, QuantSpec(4, 16))
    torch.testing.assert_close(found.dequantize().double(), weight, rtol=1e-3, atol=0)
