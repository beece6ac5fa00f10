"""Singular-value calibration is fusion-bench's to float rounding; consensus keeps what its masks count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fusion_bench.method.singular_value_calibration.utils import (
    subspace_consistency_spectral_calibration_accelerated,
)
from fusion_bench.method.tall_mask.utils import generate_task_masks
from torch import Tensor

from epmq.merging import merge
from tests.oracles.test_fusion_bench import towers


@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("name", ["task-arithmetic", "ties"])
@pytest.mark.parametrize("floor", [0.1, 1.0])
def test_a_calibrated_merge_is_theirs(name: str, tasks: int, floor: float) -> None:
    base, experts = towers(tasks, half=False)
    origin: dict[str, Tensor] = dict(base.state_dict())
    states: list[Any] = [dict(expert.state_dict()) for expert in experts.values()]
    merged = merge(name, origin, states)
    found = merge(f"{name}-svc", origin, states, floor=floor)
    for key, value in merged.items():
        wanted = value
        if value.dim() == 2 and value.is_floating_point():
            own = [state[key] for state in states]
            wanted = subspace_consistency_spectral_calibration_accelerated(
                origin[key], own, value, floor, torch.device("cpu")
            )
        torch.testing.assert_close(found[key], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mask", [0.2, 0.6])
@pytest.mark.parametrize("agreeing", [1, 2])
def test_consensus_counts_their_masks(mask: float, agreeing: int) -> None:
    base, experts = towers(4, half=True)
    origin: dict[str, Tensor] = dict(base.state_dict())
    states: list[Any] = [dict(expert.state_dict()) for expert in experts.values()]
    found = merge("consensus", origin, states, scale=1.0, mask=mask, agreeing=agreeing)
    for key, value in origin.items():
        if value.is_floating_point():
            stacked = torch.stack([state[key].double().flatten() for state in states])
            vectors = stacked - value.double().flatten()
            masks = generate_task_masks(vectors, stacked, value.double().flatten(), tall_mask_lambda=mask)
            wanted = value.double() + (vectors.sum(0) * (masks.sum(0) >= agreeing)).view_as(value)
            share = float((found[key].double() - wanted).abs().gt(1e-5).double().mean())
            assert share < 1e-3, "but for ties of float32"
