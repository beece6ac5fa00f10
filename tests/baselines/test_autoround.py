"""AutoRound: the start is GPTQ, steps are those of automatic differentiation, no row gets worse."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import baselines
from baselines.contract import SPECS, realistic_problem
from baselines.roundings.autoround import STEPS, SignedDescent, autoround, seen_by_gptq
from epmq.layer import gptq as core
from epmq.layer.grid import LEVELS, by_group
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from tests.fixtures.small_floats import e2m1, scales_e4m3


def through(x: Tensor) -> Tensor:
    """Rounded, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def between(x: Tensor, top: int) -> Tensor:
    """Clamped to 0 and ``top``; the ends have a gradient, too, which versions of torch do not agree on."""
    return torch.where((x >= 0) & (x <= top), x, x.detach().clamp(0, top))


def as_stored(scale: Tensor, spec: QuantSpec) -> Tensor:
    """What is stored of scales, with the gradient of the identity."""
    exact = scale.detach()
    if spec.scale_dtype == "e4m3":
        kept = torch.from_numpy(scales_e4m3(exact.numpy()))
    elif spec.scale_dtype == "e8m0":
        kept = 2 ** torch.log2(exact).round()
    else:
        kept = exact.to(getattr(torch, spec.scale_dtype)).double()
    return scale + (kept - exact).detach()


def between_levels(x: Tensor, offset: Tensor, table: list[float]) -> Tensor:
    """The level whose code is nearest to that of ``x`` plus ``offset``, codes between two being fractions.

    Its gradient is that of a line through the two levels around ``x``, and none beyond both ends.
    """
    fraction, width = torch.zeros_like(x), torch.zeros_like(x)
    for code, (low, high) in enumerate(pairwise(table)):
        first, last = code == 0, code == len(table) - 2
        here = ((x > low) | first) & ((x <= high) | last)
        fraction = torch.where(here, code + (x.detach() - low) / (high - low), fraction)
        width = torch.where(here, high - low, width)
    moved = (fraction + offset.detach()).round()
    inside = (moved >= 0) & (moved < len(table))
    on_grid = torch.tensor(table, dtype=x.dtype)[moved.clamp(0, len(table) - 1).long()]
    line = torch.where(inside, x + width * offset, 0.0)
    return on_grid + line - line.detach()


def by_differentiation(problem: LayerProblem, spec: QuantSpec, steps: int) -> Tensor:
    """The least row objectives of so many steps, the quantiser written out and differentiated by torch."""
    found = core.gptq(problem, spec)
    latent = by_group(seen_by_gptq(problem, found), spec)
    scale_0, zero_0 = (t.double()[..., None] for t in (found.scale, found.zero))
    top = spec.max_code
    table = {"uniform": [], "nf4": list(LEVELS["nf4"])}.get(spec.grid, sorted(set(e2m1())))
    learnt = [torch.zeros_like(latent), torch.ones_like(scale_0), torch.ones_like(scale_0)]
    least = torch.full((len(latent),), torch.inf, dtype=torch.float64)
    for step in range(steps):
        offset, low, high = (each.detach().requires_grad_() for each in learnt)
        lowest, highest = -zero_0 * scale_0 * low, (top - zero_0) * scale_0 * high
        if spec.symmetric:
            lowest, highest = torch.zeros_like(high), top * scale_0 * high
        scale = as_stored((highest - lowest) / top, spec)
        zero = zero_0 if spec.symmetric else through(-lowest / scale)
        if table:
            values = between_levels(latent / scale, offset, table) * scale
        else:
            values = (between(through(latent / scale + offset) + zero, top) - zero) * scale
        gap = values.flatten(1) - problem.centre
        objective = ((gap @ problem.hessian) * gap).sum(1)
        least = torch.minimum(least, objective.detach())
        gradients = torch.autograd.grad(objective.sum(), (offset, low, high), materialize_grads=True)
        rate = (1 - step / STEPS) / STEPS
        learnt = [
            (each - rate * gradient.sign()).clamp(*limits)
            for each, gradient, limits in zip(learnt, gradients, ((-0.5, 0.5), (0, 1), (0, 1)), strict=True)
        ]
    return least


@pytest.mark.parametrize("name", list(SPECS))
def test_steps_are_those_of_automatic_differentiation(name: str) -> None:
    problem, spec = realistic_problem("expert"), SPECS[name]
    wanted = by_differentiation(problem, spec, STEPS)
    found = problem.row_objective(autoround(problem, spec).dequantize())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", list(SPECS))
def test_the_start_is_gptq(name: str) -> None:
    problem, spec = realistic_problem(), SPECS[name]
    found = core.gptq(problem, spec)
    start = SignedDescent(seen_by_gptq(problem, found), found).rounded()
    same = start.codes.flatten(1) == found.codes
    assert float(same.double().mean()) > 0.999, "but for ties of the float32 loop"
    assert torch.equal(start.scale.squeeze(-1), found.scale.double())
    assert torch.equal(start.zero.squeeze(-1), found.zero.double())


@pytest.mark.parametrize("target", ["merged", "expert"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_no_row_is_worse_than_gptq_and_the_layer_is_better(target: str, bits: int) -> None:
    problem, spec = realistic_problem(target), QuantSpec(bits)
    before, after = (
        problem.row_objective(baselines.get(name)(problem, spec).dequantize())
        for name in ("gptq", "autoround")
    )
    assert bool((after <= before * (1 + 1e-6)).all())
    assert float(after.sum()) < 0.95 * float(before.sum())


def test_a_layer_that_is_hit_exactly_stays() -> None:
    problem = realistic_problem(rows=4, columns=8)
    on_grid = baselines.get("rtn")(problem, QuantSpec(4))
    object.__setattr__(problem, "centre", on_grid.dequantize().double())
    start, found = core.gptq(problem, QuantSpec(4)), autoround(problem, QuantSpec(4))
    assert problem.objective(found.dequantize()) <= problem.objective(start.dequantize())
