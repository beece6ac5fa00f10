"""Descent and refit from GPTQ's codes, and MagR: never worse, and optimal where that can be checked."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import baselines
from baselines.contract import SPECS, realistic_problem
from baselines.roundings import magr
from baselines.roundings.descent import _refitted
from epmq.layer.grid import by_group
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight


@pytest.mark.parametrize("target", ["merged", "expert"])
@pytest.mark.parametrize("name", list(SPECS))
def test_no_step_is_worse_than_the_one_before(target: str, name: str) -> None:
    problem, spec = realistic_problem(target), SPECS[name]
    rows = [baselines.get(method)(problem, spec) for method in ("gptq", "gptq-descent", "gptq-refit")]
    apart = [found.dequantize().double() - problem.centre for found in rows]
    objectives = [((x @ problem.hessian) * x).sum(1) for x in apart]
    for before, after in pairwise(objectives):
        assert bool((after <= before * (1 + 1e-5)).all()), "row by row"


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_change_of_one_code_lowers_the_objective(bits: int) -> None:
    problem = realistic_problem(rows=6, columns=12)
    found = baselines.get("gptq-descent")(problem, QuantSpec(bits))
    least = problem.objective(found.dequantize())
    for row, column, step in product(range(6), range(12), (-1, 1)):
        codes = found.codes.int()
        codes[row, column] += step
        if 0 <= codes[row, column] <= found.spec.max_code:
            other = QuantizedWeight.build(codes, found.scale, found.zero, found.spec)
            assert problem.objective(other.dequantize()) >= least * (1 - 1e-6)


@pytest.mark.parametrize("width", [4, 12])
def test_refitted_scales_are_those_of_least_squares(width: int) -> None:
    """Against numpy's own solver on the square root of the metric, row by row."""
    problem = realistic_problem(rows=3, columns=12)
    spec = QuantSpec(4, group_size=width, scale_dtype="float32")
    found = baselines.get("gptq")(problem, spec)
    fresh = _refitted(problem, found)
    root = np.linalg.cholesky(problem.hessian.numpy()).T
    offset = (by_group(found.codes.double(), spec) - found.zero.double()[..., None]).numpy()
    for row in range(3):
        design = np.zeros((12, 12 // width))
        for group in range(12 // width):
            design[group * width : (group + 1) * width, group] = offset[row, group]
        wanted, *_ = np.linalg.lstsq(root @ design, root @ problem.centre[row].numpy(), rcond=None)
        assert (wanted > 0).all()
        np.testing.assert_allclose(fresh.scale[row].numpy(), wanted, rtol=1e-5)
    assert torch.equal(fresh.codes, found.codes)


def test_a_grid_that_is_hit_exactly_stays() -> None:
    problem = realistic_problem(rows=4, columns=8)
    on_grid = baselines.get("rtn")(problem, QuantSpec(4))
    exact = realistic_problem(rows=4, columns=8)
    object.__setattr__(exact, "centre", on_grid.dequantize().double())
    found = baselines.get("gptq-descent")(exact, QuantSpec(4))
    assert exact.objective(found.dequantize()) <= exact.objective(
        baselines.get("gptq")(exact, QuantSpec(4)).dequantize()
    )


@pytest.mark.parametrize("weight", [0.01, 0.5, 100.0])
def test_the_proximal_point_of_the_largest_entry_is_the_minimum(weight: float) -> None:
    x = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = magr.clipped(x, weight).numpy()

    def value(y: np.ndarray) -> float:
        return float(((y - x.numpy()) ** 2).sum() / 2 + weight * np.abs(y).max())

    starts = [found, x.numpy(), np.zeros(5)]
    least = min(
        minimize(
            value, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 9000}
        ).fun
        for start in starts
    )
    assert value(found) <= least + 1e-7


def test_magnitudes_shrink_at_little_cost_and_none_at_no_weight() -> None:
    problem = realistic_problem()
    same = magr.smaller(problem.centre, problem.hessian, 48, 0.0)
    torch.testing.assert_close(same, problem.centre, rtol=0, atol=1e-15)
    less = magr.smaller(problem.centre, problem.hessian, 48, 1e-3)
    assert bool((less.abs().amax(1) < problem.centre.abs().amax(1)).all())
    energy = ((problem.centre @ problem.hessian) * problem.centre).sum()
    assert problem.objective(less.float()) < 0.05 * float(energy)
