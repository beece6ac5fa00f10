"""Adapter: the vision transformer of a transformers CLIP model."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from epmq.errors import UserError
from epmq.models.tower import Tower

GROUPS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.out_proj",),
    ("mlp.fc1",),
    ("mlp.fc2",),
)
NORMS = {"layer_norm1": GROUPS[0], "layer_norm2": GROUPS[2]}
PROJECTION = "visual_projection.weight"


class _Stem(nn.Module):
    """Patches, class token, positions, first LayerNorm (whose name transformers misspells)."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.embeddings, self.pre_layrnorm = vision.embeddings, vision.pre_layrnorm

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.pre_layrnorm(self.embeddings(images))
        return hidden


class _Block(nn.Module):
    """An encoder layer; written out, because its own arguments and results differ between versions."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = layer.layer_norm1, layer.self_attn
        self.layer_norm2, self.mlp = layer.layer_norm2, layer.mlp

    def forward(self, hidden: Tensor) -> Tensor:
        mixed: Tensor = hidden + self.self_attn(self.layer_norm1(hidden), attention_mask=None)[0]
        result: Tensor = mixed + self.mlp(self.layer_norm2(mixed))
        return result


class _Head(nn.Module):
    """Last LayerNorm of the class token and the projection."""

    def __init__(self, vision: Any, projection: Any) -> None:
        super().__init__()
        self.post_layernorm, self.visual_projection = vision.post_layernorm, projection

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.visual_projection(self.post_layernorm(hidden[:, 0]))
        return projected


def tower(model: Any) -> Tower:
    """A :class:`Tower` with a copy of the weights of a ``CLIPModel`` or ``CLIPVisionModelWithProjection``.

    Checkpoint names are those of a ``CLIPVisionModel`` without the ``vision_model.`` prefix; the projection
    is shared, not merged. The attention implementation (sdpa, eager) is the model's.

    Raises:
        UserError: not a CLIP model with an image tower and a projection.
    """
    vision, projection = getattr(model, "vision_model", None), getattr(model, "visual_projection", None)
    vision = getattr(vision, "vision_model", vision)  # transformers 4 may nest it once more
    parts = ("embeddings", "pre_layrnorm", "encoder", "post_layernorm")
    if vision is None or projection is None or not all(hasattr(vision, part) for part in parts):
        raise UserError(
            f"model {type(model).__name__} is not supported; need a CLIP model of transformers with an image "
            "tower and its projection"
        )
    vision, projection = (copy.deepcopy(part).float() for part in (vision, projection))
    stem, blocks = _Stem(vision), [_Block(layer) for layer in vision.encoder.layers]
    head = _Head(vision, projection)
    probe = nn.ModuleDict({"stem": stem, "blocks": nn.ModuleList(blocks), "head": head})
    keys = {name: _checkpoint_name(name) for name, _ in probe.named_parameters()}
    groups, norms = [GROUPS] * len(blocks), [NORMS] * len(blocks)
    built = Tower(stem, blocks, head, groups, keys, frozenset({PROJECTION}), pooled=True, norms=norms)
    return built.eval().requires_grad_(False)


def _checkpoint_name(name: str) -> str:
    part, rest = name.split(".", 1)
    return f"encoder.layers.{rest}" if part == "blocks" else rest
