"""Adapter: the vision transformer of an open_clip CLIP model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epmq.errors import UserError
from epmq.models.tower import Tower

GROUPS = (("attn.in_proj",), ("attn.out_proj",), ("mlp.c_fc",), ("mlp.c_proj",))
NORMS = {"ln_1": GROUPS[0], "ln_2": GROUPS[2]}


class _Stem(nn.Module):
    """Patches, class token, positions, first LayerNorm."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        self.class_embedding, self.positional_embedding = visual.class_embedding, visual.positional_embedding

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        token = self.class_embedding.expand(len(images), 1, -1)
        hidden: Tensor = self.ln_pre(torch.cat([token, patches], 1) + self.positional_embedding)
        return hidden


class _Attention(nn.Module):
    """Self-attention with its fused projections as linear layers, so that their inputs can be seen."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        width = fused.embed_dim
        self.heads = fused.num_heads
        # on "meta", because initial weights would be drawn from the global generator
        self.in_proj = nn.Linear(width, 3 * width, device="meta")
        self.out_proj = nn.Linear(width, width, device="meta")
        self.in_proj.weight, self.in_proj.bias = fused.in_proj_weight, fused.in_proj_bias
        self.out_proj.weight, self.out_proj.bias = fused.out_proj.weight, fused.out_proj.bias

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor]:
        parts = self.in_proj(q).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=attn_mask)
        return (self.out_proj(mixed.transpose(1, 2).flatten(2)),)


class _Head(nn.Module):
    """Last LayerNorm of the class token and the projection."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.ln_post, self.proj = visual.ln_post, visual.proj

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.ln_post(hidden[:, 0]) @ self.proj
        return projected


def tower(visual: Any) -> Tower:
    """A :class:`Tower` with a copy of the weights of ``open_clip``'s ``CLIP.visual``.

    Checkpoint names are those of ``visual.state_dict()``; the projection ``proj`` is shared, not merged.

    Raises:
        UserError: not open_clip's plain vision transformer with class-token pooling.
    """
    pooling = getattr(visual, "pool_type", None)
    plain = pooling == "tok" and visual.attn_pool is None and visual.proj is not None
    if not plain or not all(isinstance(b.attn, nn.MultiheadAttention) for b in visual.transformer.resblocks):
        raise UserError(
            f"vision tower {type(visual).__name__} (pooling {pooling!r}) is not supported; "
            "need open_clip's plain ViT with class-token pooling"
        )
    visual = copy.deepcopy(visual).float().eval().requires_grad_(False)
    blocks = list(visual.transformer.resblocks)
    for block in blocks:
        block.attn = _Attention(block.attn)
    parts = _Stem(visual), blocks, _Head(visual)
    probe = nn.ModuleDict({"stem": parts[0], "blocks": nn.ModuleList(blocks), "head": parts[2]})
    keys = {name: _checkpoint_name(name) for name, _ in probe.named_parameters()}
    groups, norms = [GROUPS] * len(blocks), [NORMS] * len(blocks)
    return Tower(*parts, groups, keys, frozenset({"proj"}), pooled=True, norms=norms).eval()


def _checkpoint_name(name: str) -> str:
    part, rest = name.split(".", 1)
    rest = rest.replace("attn.in_proj.", "attn.in_proj_")
    return f"transformer.resblocks.{rest}" if part == "blocks" else rest
