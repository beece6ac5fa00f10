"""Merged towers are fusion-bench's, tensor by tensor, to float rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm, TiesMergingAlgorithm
from fusion_bench.modelpool import BaseModelPool
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from epmq.merge import merge

CONFIG = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
)


def towers(tasks: int, half: bool) -> tuple[nn.Module, dict[str, nn.Module]]:
    """A tiny CLIP vision tower and its experts; ``half``: values that float16 holds exactly."""
    generator = torch.Generator().manual_seed(tasks)
    base = CLIPVisionModel(CONFIG)
    experts = {f"task{t}": copy.deepcopy(base) for t in range(tasks)}
    with torch.no_grad():
        for unit, tower in ((0.1, base), *((0.01, expert) for expert in experts.values())):
            origin = dict(base.named_parameters()) if tower is not base else {}
            for name, parameter in tower.named_parameters():
                noise = unit * torch.randn(parameter.shape, generator=generator)
                value = noise + (origin[name] if origin else 0)
                parameter.copy_(value.half().float() if half else value)
    return base, experts


def theirs(algorithm: Any, base: nn.Module, experts: dict[str, nn.Module]) -> dict[str, Tensor]:
    pool = BaseModelPool({"_pretrained_": copy.deepcopy(base), **copy.deepcopy(experts)})
    merged: nn.Module = algorithm.run(pool)
    return dict(merged.state_dict())


ALGORITHMS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "simple-average": (SimpleAverageAlgorithm, {}, {}),
    "task-arithmetic": (TaskArithmeticAlgorithm, {"scaling_factor": 0.3}, {"scale": 0.3}),
    "ties": (
        TiesMergingAlgorithm,
        {"scaling_factor": 0.3, "threshold": 20, "remove_keys": [], "merge_func": "sum"},
        {"scale": 0.3, "keep": 0.2},
    ),
    "ties, half kept": (
        TiesMergingAlgorithm,
        {"scaling_factor": 1.0, "threshold": 50, "remove_keys": [], "merge_func": "sum"},
        {"scale": 1.0, "keep": 0.5},
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("tasks", [2, 3, 8])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_merge_is_fusion_benchs(name: str, tasks: int, half: bool) -> None:
    algorithm, their_options, our_options = ALGORITHMS[name]
    base, experts = towers(tasks, half)
    states = [dict(expert.state_dict()) for expert in experts.values()]
    ours = merge(name.split(",")[0], dict(base.state_dict()), states, **our_options)
    torch.testing.assert_close(ours, theirs(algorithm(**their_options), base, experts), rtol=1e-6, atol=1e-6)
