"""Merges by singular values are fusion-bench's, tensor by tensor, to float rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fusion_bench.method.isotropic_merging.iso_utils import iso_c, iso_cts
from fusion_bench.method.task_singular_vector.utils import TSVM_utils
from torch import Tensor

from epmq.merging import merge
from tests.oracles.test_fusion_bench import towers

State = dict[str, Tensor]
THEIRS: dict[str, Callable[[list[State]], State]] = {
    "iso-c": lambda vectors: iso_c(vectors, accelerator="cpu"),
    "iso-cts": lambda vectors: iso_cts(vectors, 0.8, accelerator="cpu"),
    "tsv-m": lambda vectors: TSVM_utils.compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu"),
}


@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("name", list(THEIRS))
def test_a_merged_tower_is_theirs(name: str, tasks: int) -> None:
    base, experts = towers(tasks, half=False)
    origin: State = dict(base.state_dict())
    states: list[Any] = [dict(expert.state_dict()) for expert in experts.values()]
    floating = [key for key, value in origin.items() if value.is_floating_point()]
    wanted = THEIRS[name]([{key: state[key] - origin[key] for key in floating} for state in states])
    found = merge(name, origin, states, scale=1.0)
    for key in floating:
        torch.testing.assert_close(found[key] - origin[key], wanted[key], rtol=1e-3, atol=1e-5)
