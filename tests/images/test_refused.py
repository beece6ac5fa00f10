"""Experts that do not fit their base, and bases that do not hold together, are named before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from epmq.errors import UserError
from tests.fixtures import tiny_clip
from tests.fixtures.clip_models import Written, opened, write
from tests.fixtures.tiny_clip import State


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("models"))


def larger(_: State) -> State:
    """An expert of a bigger model with every tensor name of the smaller."""
    bigger = tiny_clip.model(hidden_size=24, num_hidden_layers=3, patch_size=4)
    return tiny_clip.bare(tiny_clip.tensors(bigger))


SPOILED: dict[str, tuple[Callable[[State], State], str]] = {
    "of L/14": (
        larger,
        "has 3 blocks, width 24 and patches of 4, the base has 2 blocks, width 16 and patches of 8",
    ),
    "the base": (
        lambda _: tiny_clip.bare(tiny_clip.tensors(tiny_clip.model())),
        "every tensor equals the base's",
    ),
    "another model": (lambda _: {"wte.weight": torch.ones(2)}, "no tensor is named like 'embeddings.class_"),
    "a tensor short": (
        lambda x: {k: v for k, v in tiny_clip.bare(x).items() if k != "post_layernorm.bias"},
        "tensor 'post_layernorm.bias' is missing",
    ),
    "with adapters": (
        lambda x: {**tiny_clip.bare(x), "encoder.layers.0.mlp.fc1.lora_a": torch.ones(2)},
        "tensor 'encoder.layers.0.mlp.fc1.lora_a' is not in the base",
    ),
    "with NaN": (
        lambda x: {**tiny_clip.bare(x), "post_layernorm.bias": torch.full((16,), torch.nan)},
        "tensor 'post_layernorm.bias' holds NaN or Inf",
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_an_expert_that_does_not_fit_is_refused(kind: str, written: Written, tmp_path: Path) -> None:
    arranged, message = SPOILED[kind]
    folder = written.write_experts(tmp_path, tiny_clip.bare, "model.safetensors")
    save_file(arranged(written.experts["birds"]), folder / "birds" / "model.safetensors")
    with pytest.raises(UserError) as caught:
        opened(written.suite("transformers", folder))
    assert str(caught.value).startswith(f"{folder / 'birds'}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def spoil_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, folder / "model.safetensors")


def spoil_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))


def spoil_shape(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    described["vision_config"]["intermediate_size"] = 32
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "cannot be loaded by transformers"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded by transformers"),
        (spoil_kind, r"config\.json: describes a clip_vision_model model; expected a clip one"),
        (
            lambda folder: (folder / "preprocessor_config.json").unlink(),
            "preprocessor_config.json: cannot be us",
        ),
        (
            spoil_weights,
            r"tensor 'text_projection\.weight' is missing, config\.json describes a CLIP model with",
        ),
        (
            spoil_shape,
            r"fc1\.weight' is \(64, 16\), config\.json describes a CLIP model with \(32, 16\); is it",
        ),
    ],
    ids=[
        "no configuration",
        "damaged configuration",
        "of a bare tower",
        "no processor",
        "no text tower",
        "other shapes",
    ],
)
def test_a_base_that_does_not_hold_together_is_refused(
    spoil: Callable[[Path], object], message: str, written: Written, tmp_path: Path
) -> None:
    experts = written.write_experts(tmp_path / "experts", tiny_clip.bare, "model.safetensors")
    tiny_clip.write_transformers(written.model, tmp_path / "base")
    spoil(tmp_path / "base")
    suite = written.suite("transformers", experts, base=str(tmp_path / "base"))
    with pytest.raises(UserError, match=message) as caught:
        opened(suite)
    assert "\n" not in str(caught.value)
