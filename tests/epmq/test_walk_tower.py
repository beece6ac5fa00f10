"""The open_clip adapter computes what open_clip computes, on weights of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from open_clip.model import CLIP

from epmq.errors import UserError
from epmq.models.open_clip_vision import GROUPS, tower
from tests.fixtures.tiny_suite import CONFIG, TinyVisual


def image_tower(quick_gelu: bool = False, **changes: Any) -> Any:
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"] |= changes
    config["text_cfg"]["vocab_size"] = 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLIP(**config, quick_gelu=quick_gelu).eval().visual


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ls_init_value": 0.1},
        {"no_ln_pre": True},
        {"output_tokens": True},
        {"final_ln_after_pool": True},
        {"patch_dropout": 0.5},
    ],
    ids=str,
)
def test_the_tower_computes_what_open_clip_computes(changes: dict[str, Any]) -> None:
    visual = image_tower(**changes)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = visual(images)
        found = tower(visual)(images)
    torch.testing.assert_close(found, expected[0] if changes.get("output_tokens") else expected)


def test_quick_gelu_models_keep_their_activation() -> None:
    visual = image_tower(quick_gelu=True)
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tower(visual)(images), visual(images))


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True},
        {"qk_norm": True},
        {"layers": [1, 1, 1, 1], "patch_size": None},
    ],
    ids=str,
)
def test_other_towers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="is not supported; need"):
        tower(image_tower(**changes))


def test_checkpoint_names_are_those_of_the_state_dict(tiny_visual: TinyVisual) -> None:
    names = {name: p.shape for name, p in tiny_visual.visual.state_dict().items()}
    found = {tiny_visual.tower.keys[n]: p.shape for n, p in tiny_visual.tower.named_parameters()}
    assert found == names
    assert tiny_visual.tower.shared == {"proj"}
    assert tiny_visual.tower.groups == [GROUPS] * 2


def test_the_tower_does_not_share_memory_with_the_model(tiny_visual: TinyVisual) -> None:
    before = copy.deepcopy(tiny_visual.visual.state_dict())
    tiny_visual.tower.load_all(tiny_visual.experts["fruit"])
    after = tiny_visual.visual.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loading_a_checkpoint_equals_loading_it_into_open_clip(tiny_visual: TinyVisual) -> None:
    expert = tiny_visual.experts["birds"]
    images = tiny_visual.inputs["birds"]
    visual = copy.deepcopy(tiny_visual.visual)
    missing = visual.load_state_dict(expert, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["proj"], [])
    with torch.no_grad():
        torch.testing.assert_close(tiny_visual.tower.load_all(expert)(images), visual(images))


@pytest.mark.keeps_rng
def test_making_a_tower_draws_no_random_number(tiny_visual: TinyVisual) -> None:
    tower(tiny_visual.visual)


def test_a_shared_tensor_in_a_checkpoint_is_not_loaded(tiny_visual: TinyVisual) -> None:
    projection = tiny_visual.visual.state_dict()["proj"]
    other = {**tiny_visual.experts["fruit"], "proj": projection + 1}
    assert torch.equal(dict(tiny_visual.tower.load_all(other).named_parameters())["head.proj"], projection)


def test_a_checkpoint_that_does_not_fit_is_refused(tiny_visual: TinyVisual) -> None:
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    expert = dict(tiny_visual.experts["fruit"])
    with pytest.raises(UserError, match=r"c_fc\.weight' is \(64,\), the model's is \(64, 16\)"):
        tiny_visual.tower.load_all({**expert, name: expert[name][:, 0]})
    del expert[name]
    with pytest.raises(UserError, match=r"no tensor 'transformer.resblocks.1.mlp.c_fc.weight'"):
        tiny_visual.tower.load_all(expert)
