"""Merged towers are fusion-bench's, tensor by tensor, to float rounding; from memory and from files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_bench.method import SimpleAverageAlgorithm, TaskArithmeticAlgorithm, TiesMergingAlgorithm
from fusion_bench.modelpool import BaseModelPool
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from epmq.checkpoints.lazy import LazyCheckpoint, prefix_of
from epmq.merging import merge

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


def layout(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """As versions of transformers have stored a ``CLIPVisionModel``: the oldest with an integer buffer."""
    named = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    buffer = {f"{prefix}embeddings.position_ids": torch.arange(17)[None]} if prefix else {}
    return {**{name: tensor.contiguous() for name, tensor in named.items()}, **buffer}


@pytest.mark.parametrize("name", ["simple-average", "task-arithmetic", "ties"])
@pytest.mark.parametrize("base_prefix", ["", "vision_model."], ids=["bare base", "prefixed base"])
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_checkpoints_of_both_key_layouts_merge_to_fusion_benchs(
    name: str, base_prefix: str, half: bool, tmp_path: Path
) -> None:
    """The experts alternate between the layouts, whatever the base's."""
    algorithm, their_options, our_options = ALGORITHMS[name]
    base, experts = towers(4, half)
    wanted = [key.removeprefix("vision_model.") for key in base.state_dict()]
    opened = []
    for number, tower in enumerate((base, *experts.values())):
        prefix = ("", "vision_model.")[number % 2] if number else base_prefix
        stored = layout(dict(tower.state_dict()), prefix)
        if half and number:
            stored = {key: x.half() if x.is_floating_point() else x for key, x in stored.items()}
        file = tmp_path / f"{number}.safetensors"
        save_file(stored, file)
        found = prefix_of(LazyCheckpoint(file), wanted, str(file))
        assert found == prefix
        opened.append(LazyCheckpoint(file, found))
    ours = merge(name, opened[0], opened[1:], **our_options)
    expected = theirs(algorithm(**their_options), base, experts)
    assert ours.keys() - {"embeddings.position_ids"} == set(wanted)
    for key, tensor in expected.items():
        torch.testing.assert_close(
            ours[key.removeprefix("vision_model.")], tensor, rtol=1e-6, atol=1e-6, msg=key
        )
