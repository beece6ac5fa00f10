"""The transformers adapter computes what transformers computes, and is walked like open_clip's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from baselines import get
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.merging import merge
from epmq.models.open_clip_vision import tower as open_clip_tower
from epmq.models.transformers_vision import GROUPS, PROJECTION, tower
from epmq.walk import centre, walk
from tests.fixtures import tiny_clip
from tests.fixtures.tiny_clip import State

TASKS = ("fruit", "birds")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_clip.model()


@pytest.fixture(scope="module")
def experts(model: Any) -> dict[str, State]:
    """Full checkpoints of transformers, image tower changed."""
    state = tiny_clip.tensors(model)
    vision = {name: x for name, x in state.items() if name.startswith("vision_model.")}
    return {task: {**state, **tiny_clip.expert(vision, seed)} for seed, task in enumerate(TASKS, start=1)}


def images(count: int, seed: int = 3) -> Tensor:
    side = tiny_clip.IMAGE
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def features(model: Any, inputs: Tensor) -> Tensor:
    """transformers' own; version 5 wraps them."""
    with torch.no_grad():
        found = model.get_image_features(pixel_values=inputs)
    projected: Tensor = getattr(found, "pooler_output", found)
    return projected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_tower_computes_what_transformers_computes(attention: str) -> None:
    model = tiny_clip.model()
    model.set_attn_implementation(attention)
    assert model.config.vision_config._attn_implementation == attention
    torch.testing.assert_close(tower(model)(images(5)), features(model, images(5)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"hidden_act": "gelu"}, {"num_hidden_layers": 1}, {"patch_size": 4}], ids=str
)
def test_configurations_are_followed(changes: dict[str, Any]) -> None:
    model = tiny_clip.model(**changes)
    torch.testing.assert_close(tower(model)(images(5)), features(model, images(5)), rtol=1e-6, atol=1e-6)


def test_a_vision_model_with_projection_serves_as_well(model: Any) -> None:
    vision = CLIPVisionModelWithProjection(copy.deepcopy(model.config.vision_config)).eval()
    with torch.no_grad():
        torch.testing.assert_close(tower(vision)(images(5)), vision(images(5)).image_embeds)


@pytest.mark.parametrize("part", ["vision_model", "text_model", "visual_projection"])
def test_other_models_are_refused(part: str, model: Any) -> None:
    with pytest.raises(UserError, match="is not supported; need a CLIP model of transformers with an image"):
        tower(getattr(model, part))


def test_checkpoint_names_are_those_of_a_bare_vision_model(model: Any) -> None:
    built = tower(model)
    expected = {name: x.shape for name, x in tiny_clip.bare(tiny_clip.tensors(model)).items()}
    assert {name: p.shape for name, p in built.merged_parameters().items()} == expected
    assert built.shared == {PROJECTION}
    assert built.groups == [GROUPS] * len(built.blocks)


def test_loading_an_expert_equals_loading_it_into_transformers(model: Any, experts: dict[str, State]) -> None:
    theirs = copy.deepcopy(model)
    theirs.load_state_dict(experts["birds"])
    ours = tower(model).load_all(tiny_clip.bare(experts["birds"]))
    torch.testing.assert_close(ours(images(5)), features(theirs, images(5)), rtol=1e-6, atol=1e-6)


def test_the_tower_does_not_share_memory_with_the_model(model: Any, experts: dict[str, State]) -> None:
    before = tiny_clip.tensors(model)
    built = tower(model).load_all(tiny_clip.bare(experts["fruit"]))
    with torch.no_grad():
        built.head.get_parameter(PROJECTION).zero_()
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


@pytest.mark.keeps_rng
def test_making_a_tower_draws_no_random_number(model: Any) -> None:
    tower(model)(images(1))


class Family:
    """A tower of one library that holds the merge of the experts, with experts in its layout."""

    def __init__(self, name: str, model: Any, experts: dict[str, State]) -> None:
        if name == "transformers":
            base, self.experts = tiny_clip.tensors(model), {t: tiny_clip.bare(x) for t, x in experts.items()}
            self.base, self.tower = tiny_clip.bare(base), tower(model)
        else:
            visual = CLIP(**copy.deepcopy(tiny_clip.OPEN_CLIP)).eval()
            visual.load_state_dict(tiny_clip.as_open_clip(tiny_clip.tensors(model)), strict=False)
            self.tower = open_clip_tower(visual.visual)
            self.base = self._visual(tiny_clip.tensors(model))
            self.experts = {task: self._visual(x) for task, x in experts.items()}
        merged = merge("task-arithmetic", self.base, list(self.experts.values()), scale=0.4)
        self.tower.load_all(merged)
        self.merged: Mapping[str, Tensor] = {k: p.clone() for k, p in self.tower.merged_parameters().items()}

    def _visual(self, state: State) -> State:
        found = tiny_clip.as_open_clip(state)
        return {k.removeprefix("visual."): x for k, x in found.items() if k.startswith("visual.")}

    def quantise(self, calibration: Calibration, experts: Mapping[str, State] | None = None) -> list[Tensor]:
        """GPTQ's codes of every layer group, rows of q, k and v stacked."""
        codes: list[Tensor] = []

        def solve(problem: Any) -> QuantizedWeight:
            found = get("gptq")(problem, QuantSpec(bits=4))
            codes.append(found.codes)
            return found

        list(walk(self.tower, experts or self.experts, inputs(), calibration, solve))
        return codes


def inputs() -> dict[str, Tensor]:
    return {"fruit": images(24, 4), "birds": images(17, 5)}


EXPERT = Calibration(target="expert", anchor=0.05)
MERGED = Calibration(target="merged", damping=0.01)


@pytest.mark.parametrize("source", ["merged", "quantised"])
def test_a_full_precision_walk_of_the_merged_target_changes_nothing(
    source: str, model: Any, experts: dict[str, State]
) -> None:
    family = Family("transformers", model, experts)
    before = family.tower(images(5))
    calibration = Calibration(target="merged", source=source)  # type: ignore[arg-type]
    reports = list(walk(family.tower, family.experts, inputs(), calibration, centre))
    assert [r.name for r in reports][:2] == [
        "blocks.0.self_attn.q_proj+self_attn.k_proj+self_attn.v_proj",
        "blocks.0.self_attn.out_proj",
    ]
    torch.testing.assert_close(family.tower(images(5)), before)


def test_a_full_precision_walk_of_the_expert_target_changes_the_output(
    model: Any, experts: dict[str, State]
) -> None:
    family = Family("transformers", model, experts)
    before = family.tower(images(5))
    list(walk(family.tower, family.experts, inputs(), EXPERT, centre))
    assert float((family.tower(images(5)) - before).abs().max()) > 1e-3


CLOSED = replace(
    EXPERT, mixing=0.5, patch_weight=0.1, patch_scope="queries", biases="closed-form", norms="closed-form"
)


@pytest.mark.parametrize("calibration", [MERGED, EXPERT, CLOSED], ids=["merged", "expert", "closed forms"])
def test_both_libraries_give_the_same_codes(
    calibration: Calibration, model: Any, experts: dict[str, State]
) -> None:
    """Fused or separate q, k and v: the same stacked problem."""
    one, other = Family("transformers", model, experts), Family("open_clip", model, experts)
    torch.testing.assert_close(one.tower(images(5)), other.tower(images(5)), rtol=1e-5, atol=1e-5)
    ours, theirs = one.quantise(calibration), other.quantise(calibration)
    assert len(ours) == len(theirs) == (9 if calibration.patch_scope == "queries" else 8)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(one.tower(images(5)), other.tower(images(5)), rtol=1e-4, atol=1e-4)


def test_experts_that_equal_the_merge_give_gptqs_codes(model: Any, experts: dict[str, State]) -> None:
    """With every W_t = W_m and the anchor equal to the damping the expert target is the merged one."""
    plain = Family("transformers", model, experts).quantise(Calibration(target="merged", damping=0.01))
    family = Family("transformers", model, experts)
    same = {task: dict(family.merged) for task in TASKS}
    guided = family.quantise(Calibration(target="expert", anchor=0.004, damping=0.006), same)
    assert all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))
