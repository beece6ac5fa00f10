"""Our AutoRound against auto-round's own quantiser, differentiated by torch and moved by its own optimiser.

auto-round is driven on the layer's quadratic from our start: GPTQ's grid, around the values that GPTQ rounds.
Its quantiser clamps by ``torch.clamp``, whose ends have a gradient in some versions of torch and none in
others; here they have, as ours. Only its asymmetric integers are ours: its symmetric ones have a scale with a
sign and its own two factors, and in its MXFP4 and NVFP4 the offset is added to ``w / s`` itself, where ours
is a fraction between two codes.
"""

from __future__ import annotations

import pytest
import torch
from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD
from auto_round.data_type.int import quant_tensor_asym
from torch import Tensor

from baselines.contract import realistic_problem
from baselines.roundings.autoround import STEPS, autoround, seen_by_gptq
from epmq.layer.gptq import gptq
from epmq.layer.spec import QuantSpec

SPECS = [
    QuantSpec(bits, size, scale_dtype="float32", act_order=act_order)
    for bits, size, act_order in ((2, None, False), (3, 16, False), (4, None, True), (4, 32, False))
]


def clamped(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:  # noqa: A002
    inside = torch.ones_like(x, dtype=torch.bool)
    inside = inside if min is None else inside & (x >= min)
    inside = inside if max is None else inside & (x <= max)
    return torch.where(inside, x, x.detach().clamp(min, max))


@pytest.mark.parametrize("target", ["merged", "expert"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_steps_are_those_of_auto_round(spec: QuantSpec, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "clamp", clamped)
    problem = realistic_problem(target)
    start = gptq(problem, spec)
    latent = seen_by_gptq(problem, start)
    scale, zero = (t.double().flatten() for t in (start.scale, start.zero))
    ends = -zero * scale, (spec.max_code - zero) * scale
    width = spec.columns_per_group(latent.shape[1])
    offset = torch.zeros(latent.numel() // width, width, dtype=torch.float64, requires_grad=True)
    low, high = (torch.ones_like(scale, requires_grad=True) for _ in range(2))
    optimiser = SignSGD([offset, low, high], lr=1 / STEPS)
    least = torch.full((len(latent),), torch.inf, dtype=torch.float64)
    for step in range(STEPS):
        with torch.no_grad():
            offset.clamp_(-0.5, 0.5), low.clamp_(0, 1), high.clamp_(0, 1)
        values, _, _ = quant_tensor_asym(
            latent,
            bits=spec.bits,
            group_size=width,
            v=offset,
            min_scale=low,
            max_scale=high,
            scale_dtype=torch.float32,
            tensor_min=ends[0],
            tensor_max=ends[1],
        )
        gap = values - problem.centre
        objective = ((gap @ problem.hessian) * gap).sum(1)
        least = torch.minimum(least, objective.detach())
        optimiser.zero_grad()
        objective.sum().backward()
        optimiser.param_groups[0]["lr"] = (1 - step / STEPS) / STEPS
        optimiser.step()
    found = problem.row_objective(autoround(problem, spec).dequantize())
    apart = (found / least - 1).abs()
    print(f"row objectives are at most {float(apart.max()):.1e} apart")
    assert float(apart.max()) < 1e-4
