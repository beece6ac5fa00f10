"""Adapter: the decoder-only language models of transformers that are built like Llama.

Llama, Mistral, Qwen2 and Qwen3 are one chain of blocks: RMSNorm, rotary self-attention (grouped heads, and in
some a sliding window), RMSNorm, gated feed-forward. The attention modules are the model's own, so that its
attention implementation, biases and query norms come with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from epmq.errors import UserError
from epmq.models.tower import SharedInput, Tower

GROUPS: tuple[SharedInput, ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
NORMS = {"input_layernorm": GROUPS[0], "post_attention_layernorm": GROUPS[2]}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ATTENTION = ("eager", "sdpa")
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class State:
    """One batch between two blocks.

    Attributes:
        hidden: ``(n, t, width)``.
        mask: ``(n, t)`` bool, which positions are no padding.
        cos, sin: rotary embedding of the positions, ``(1, t, head width)``.
    """

    hidden: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor


class _Stem(nn.Module):
    """Word embeddings and the rotary embedding of positions."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.embed_tokens, self.rotary_emb = inner.embed_tokens, inner.rotary_emb

    def forward(self, batch: Mapping[str, Tensor]) -> State:
        hidden = self.embed_tokens(batch["input_ids"])
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        return State(hidden, batch["attention_mask"].bool(), *self.rotary_emb(hidden, position_ids=positions))


class _Block(nn.Module):
    """A decoder layer; written out, because its own arguments and results differ between versions.

    Args:
        window: how many positions a token attends to, itself included; ``None`` for all before it.
        eager: attention adds its mask to the scores, so that it needs numbers.
    """

    def __init__(self, layer: Any, window: int | None, eager: bool) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn
        self.post_attention_layernorm, self.mlp = layer.post_attention_layernorm, layer.mlp
        self.window, self.eager = window, eager

    def forward(self, state: State) -> State:
        mixed: Tensor = state.hidden + self._attended(self.input_layernorm(state.hidden), state)
        return replace(state, hidden=mixed + self.mlp(self.post_attention_layernorm(mixed)))

    def _attended(self, normed: Tensor, state: State) -> Tensor:
        found: Tensor = self.self_attn(
            hidden_states=normed,
            position_embeddings=(state.cos, state.sin),
            attention_mask=self._attention_mask(state),
        )[0]
        return found

    def _attention_mask(self, state: State) -> Tensor | None:
        """Which positions ``(n, 1, t, t)`` a token attends to; not kept, for it grows with t squared.

        Like transformers, ``None`` leaves plain causality to sdpa, whose sums then differ by rounding.
        """
        length = state.mask.shape[1]
        cut = self.window is not None and length >= self.window
        if not (self.eager or cut) and bool(state.mask.all()):
            return None
        seen = torch.ones(length, length, dtype=torch.bool, device=state.mask.device).tril()
        seen = seen.triu(1 - self.window) if self.window is not None else seen
        seen = seen & state.mask[:, None, None]
        if not self.eager:
            return seen
        zeros = torch.zeros_like(seen, dtype=state.hidden.dtype)
        return zeros.masked_fill(~seen, torch.finfo(state.hidden.dtype).min)


class _Head(nn.Module):
    """The final norm and the output layer."""

    def __init__(self, norm: nn.Module, lm_head: nn.Linear) -> None:
        super().__init__()
        self.norm, self.lm_head = norm, lm_head

    def forward(self, state: State) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(state.hidden))
        return logits


def tower(model: Any) -> Tower:
    """A :class:`Tower` over the modules of a causal language model, which it quantises in place.

    A batch is a mapping of ``input_ids`` and ``attention_mask``, ``(n, t)``, padded on the right; the head
    gives logits ``(n, t, vocabulary)``. Checkpoint names are those of the model's state dict; an output layer
    that is tied to the word embeddings is not named. Both are quantised only where a pattern of layers names
    them.

    Raises:
        UserError: the model is of another type, or computes attention neither eagerly nor by sdpa.
    """
    config = model.config
    _refuse_unsupported(model, config)
    model = model.eval().requires_grad_(False)
    inner, eager = model.model, config._attn_implementation == "eager"
    blocks = [_Block(layer, _window(config, i), eager) for i, layer in enumerate(inner.layers)]
    stem, head = _Stem(inner), _Head(inner.norm, model.lm_head)
    tied = model.lm_head.weight is inner.embed_tokens.weight
    probe = nn.ModuleDict({"stem": stem, "blocks": nn.ModuleList(blocks), "head": head})
    parameters = probe.named_parameters(remove_duplicate=False)
    return Tower(
        stem,
        blocks,
        head,
        [GROUPS] * len(blocks),
        {name: _checkpoint_name(name, tied) for name, _ in parameters},
        valid=_valid,
        norms=[NORMS] * len(blocks),
        outer=["stem.embed_tokens"] if tied else ["stem.embed_tokens", "head.lm_head"],
        tied={EMBEDDING: (OUTPUT,)} if tied else {},
        model=model,
    )


def _refuse_unsupported(model: Any, config: Any) -> None:
    kind = getattr(config, "model_type", "unknown")
    if kind not in FAMILIES or not hasattr(model, "lm_head"):
        raise UserError(
            f"model {type(model).__name__} (type {kind!r}) is not supported; need a causal language model "
            f"with an output layer, of type {', '.join(FAMILIES)}"
        )
    if config._attn_implementation not in ATTENTION:
        raise UserError(
            f"model {type(model).__name__} computes attention by {config._attn_implementation!r}; load it "
            f"with attn_implementation {' or '.join(ATTENTION)}"
        )


def _valid(_index: int, _group: SharedInput, state: State) -> Tensor:
    return state.mask


def _window(config: Any, index: int) -> int | None:
    """The sliding window of a layer: every layer's in Mistral, that of some layers in Qwen."""
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    slides = config.model_type == "mistral" or (types and types[index] == "sliding_attention")
    return window if slides else None


def _checkpoint_name(name: str, tied: bool) -> str:
    part, rest = name.split(".", 1)
    if part == "blocks":
        return f"model.layers.{rest}"
    if rest.startswith("lm_head."):
        return EMBEDDING if tied else OUTPUT
    return f"model.{rest}"
