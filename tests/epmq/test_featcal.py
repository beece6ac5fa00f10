"""The control ``featcal`` is FeatCal: the whole walk beside its formulas written out in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor

from baselines.controls import CONTROLS
from epmq.calibration import Calibration
from epmq.merging import merge
from epmq.models import open_clip_vision, transformers_vision
from epmq.models.tower import Tower
from epmq.walk import centre, walk
from tests.fixtures import tiny_clip
from tests.fixtures.plain_featcal import featcal
from tests.fixtures.tiny_clip import State

TASKS = ("fruit", "birds", "tools")
CLOSE = 2e-5  # the walk's activations are float32
FEATCAL = CONTROLS["featcal"].passes[0].calibration({}, rounded=False)


class Setting:
    """A tiny CLIP, experts of it, their merge, images, and what FeatCal makes of them."""

    def __init__(self) -> None:
        self.model = tiny_clip.model(num_hidden_layers=3)
        self.base = tiny_clip.bare(tiny_clip.tensors(self.model))
        wholes = tiny_clip.whole_experts(self.model, TASKS)
        self.experts = {task: tiny_clip.bare(expert) for task, expert in wholes.items()}
        self.merged = merge("task-arithmetic", self.base, list(self.experts.values()), scale=0.3)
        g = torch.Generator().manual_seed(7)
        side = tiny_clip.IMAGE
        self.images = {t: torch.randn(16 + 5 * i, 3, side, side, generator=g) for i, t in enumerate(TASKS)}
        plain = featcal(self.base, self.merged, self.experts, self.images, heads=2)
        self.expected = {name: torch.from_numpy(x) for name, x in plain.items()}

    def walked(self, library: str, axes: Calibration) -> tuple[dict[str, Tensor], list[str]]:
        """The walk's tensors by the names of the library's image tower, and the names of its layers."""
        layout = tiny_clip.bare if library == "transformers" else open_clip_layout
        states = [layout(named(x)) for x in (self.base, self.merged)]
        experts = {task: layout(named(x)) for task, x in self.experts.items()}
        tower = tower_of(library, self.model).load_all(states[1])
        reports = list(walk(tower, experts, self.images, axes, centre, batch_size=7, base=states[0]))
        found = {key: parameter.detach() for key, parameter in tower.merged_parameters().items()}
        return found, [report.name for report in reports]

    def farthest(self, library: str, axes: Calibration) -> float:
        """From what FeatCal makes, the largest distance of an entry."""
        expected: Mapping[str, Tensor] = self.expected
        if library == "open_clip":
            expected = open_clip_layout(named(self.expected))
        found, _ = self.walked(library, axes)
        return max(float((expected[name] - x).abs().max()) for name, x in found.items())


def named(state: Mapping[str, Tensor]) -> State:
    return {f"vision_model.{name}": x for name, x in state.items()}


def open_clip_layout(state: State) -> State:
    return {k.removeprefix("visual."): x for k, x in tiny_clip.as_open_clip(state).items()}


def tower_of(library: str, model: Any) -> Tower:
    if library == "transformers":
        return transformers_vision.tower(model)
    config = copy.deepcopy(tiny_clip.OPEN_CLIP)
    config["vision_cfg"]["layers"] = 3
    with torch.random.fork_rng():
        return open_clip_vision.tower(CLIP(**config).visual)


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_the_control_is_featcal(setting: Setting, library: str) -> None:
    assert setting.farthest(library, FEATCAL) < CLOSE
    moved = [float((setting.expected[name] - x).abs().max()) for name, x in setting.merged.items()]
    assert max(moved) > 1000 * CLOSE


@pytest.mark.parametrize(
    "axes",
    [
        {"source": "merged"},
        {"sequential": "group"},
        {"mixing": 0.0},
        {"anchor": 0.1},
        {"anchor_scale": "relative"},
        {"anchor_point": 1.0},
        {"task_weight": "uniform"},
        {"patch_weight": 1.0},
        {"patch_scope": "outputs"},
        {"biases": "kept"},
        {"biases": "kept", "recalibrate": "bias"},
        {"norms": "kept"},
    ],
    ids=str,
)
def test_every_axis_of_the_control_is_needed(setting: Setting, axes: dict[str, Any]) -> None:
    assert setting.farthest("transformers", replace(FEATCAL, **axes)) > 10 * CLOSE


def test_queries_of_the_last_block_are_a_problem_of_their_own(setting: Setting) -> None:
    width = tiny_clip.WIDTH
    for library, fused in (
        ("open_clip", "attn.in_proj"),
        ("transformers", "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj"),
    ):
        _, names = setting.walked(library, FEATCAL)
        parted = [f"blocks.2.{fused}[:{width}]", f"blocks.2.{fused}[{width}:]"]
        assert [name for name in names if fused in name] == [f"blocks.{i}.{fused}" for i in (0, 1)] + parted
