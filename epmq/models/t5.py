"""Adapter: the encoder-decoder of transformers' T5 (T5, T5 1.1, FLAN-T5) as one chain of blocks.

Encoder blocks come first, decoder blocks after them. A state carries both streams, so that a decoder block
finds the encoder's output; the relative position bias is computed by a stack's first block and passed on.
Attention is written out, because its arguments and results differ between versions of transformers; it is
eager attention, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from epmq.errors import UserError
from epmq.models.tower import SharedInput, Tower

SELF = tuple(f"block.layer.0.SelfAttention.{name}" for name in "qkvo")
CROSS = tuple(f"block.layer.1.EncDecAttention.{name}" for name in "qkvo")
KEY_VALUE = (CROSS[1], CROSS[2])  # read the encoder's output, unlike every other layer of a decoder block
EMBEDDING, OUTPUT = "shared.weight", "lm_head.weight"
TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # copies that older files hold


@dataclass(frozen=True)
class State:
    """Both streams of one batch; biases are ``None`` before the stack that computes them.

    Attributes:
        encoder: ``(n, s, width)``; after the last encoder block the encoder's output.
        mask: ``(n, s)`` bool, which source positions are no padding.
        bias: ``(1, heads, s, s)``, relative position bias of the encoder's self-attention.
        decoder: ``(n, t, width)``.
        decoder_mask: ``(n, t)`` bool, which target positions are no padding.
        decoder_bias: ``(1, heads, t, t)``.
    """

    encoder: Tensor
    mask: Tensor
    decoder: Tensor
    decoder_mask: Tensor
    bias: Tensor | None = None
    decoder_bias: Tensor | None = None


class _Stem(nn.Module):
    """The shared embedding of both token sequences."""

    def __init__(self, shared: nn.Embedding) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, batch: Mapping[str, Tensor]) -> State:
        return State(
            self.shared(batch["input_ids"]),
            batch["attention_mask"].bool(),
            self.shared(batch["decoder_input_ids"]),
            batch["decoder_attention_mask"].bool(),
        )


def _attend(attention: Any, hidden: Tensor, context: Tensor, scores_bias: Tensor) -> Tensor:
    """Multi-head attention of ``hidden`` ``(n, t, width)`` on ``context``; T5 does not scale its scores."""

    def heads(x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(-1, (attention.n_heads, -1))
        return split.transpose(1, 2)

    queries = heads(attention.q(hidden))
    keys, values = heads(attention.k(context)), heads(attention.v(context))
    weights = torch.softmax(queries @ keys.mT + scores_bias, dim=-1)
    mixed: Tensor = attention.o((weights @ values).transpose(1, 2).flatten(2))
    return mixed


def _hidden(seen: Tensor, like: Tensor) -> Tensor:
    """0 where a position may be attended to and the least number elsewhere, ``(n, 1, t or 1, s)``."""
    nothing = torch.zeros(seen.shape, dtype=like.dtype, device=like.device)
    return nothing.masked_fill(~seen, torch.finfo(like.dtype).min)


class _EncoderBlock(nn.Module):
    """Self-attention and feed-forward; the last one applies the encoder's final norm."""

    def __init__(self, block: Any, norm: nn.Module | None) -> None:
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, state: State) -> State:
        attention, norm = self.block.layer[0].SelfAttention, self.block.layer[0].layer_norm
        hidden, length = state.encoder, state.encoder.shape[1]
        bias = attention.compute_bias(length, length) if state.bias is None else state.bias
        normed = norm(hidden)
        hidden = hidden + _attend(
            attention, normed, normed, bias + _hidden(state.mask[:, None, None], hidden)
        )
        hidden = self.block.layer[-1](hidden)
        return replace(state, encoder=hidden if self.norm is None else self.norm(hidden), bias=bias)


class _DecoderBlock(nn.Module):
    """Causal self-attention, attention on the encoder's output, feed-forward."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: State) -> State:
        own, cross, feed_forward = self.block.layer
        hidden, length = state.decoder, state.decoder.shape[1]
        attention, bias = own.SelfAttention, state.decoder_bias
        bias = attention.compute_bias(length, length) if bias is None else bias
        seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
        seen = seen & state.decoder_mask[:, None, None]
        normed = own.layer_norm(hidden)
        hidden = hidden + _attend(attention, normed, normed, bias + _hidden(seen, hidden))
        outside = _hidden(state.mask[:, None, None], hidden)
        hidden = hidden + _attend(cross.EncDecAttention, cross.layer_norm(hidden), state.encoder, outside)
        return replace(state, decoder=feed_forward(hidden), decoder_bias=bias)


class _Head(nn.Module):
    """The decoder's final norm and the output layer."""

    def __init__(self, norm: nn.Module, lm_head: nn.Linear, scale: float) -> None:
        super().__init__()
        self.norm, self.lm_head, self.scale = norm, lm_head, scale

    def forward(self, state: State) -> Tensor:
        logits: Tensor = self.lm_head(self.norm(state.decoder) * self.scale)
        return logits


def has_own_output(checkpoint: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint's output layer is another matrix than its embedding, as FLAN-T5's is.

    transformers 5 ties them in every fresh T5 and leaves it to the files whether they stay tied.
    """
    if OUTPUT not in checkpoint:
        return False
    own = checkpoint[OUTPUT]
    return EMBEDDING not in checkpoint or not torch.equal(own, checkpoint[EMBEDDING])


def tower(model: Any) -> Tower:
    """A :class:`Tower` over the modules of a ``T5ForConditionalGeneration``, which it quantises in place.

    A batch is a mapping of ``input_ids`` and ``attention_mask`` ``(n, s)``, ``decoder_input_ids`` and
    ``decoder_attention_mask`` ``(n, t)``; the head gives logits ``(n, t, vocabulary)``. Checkpoint names are
    those of the model's state dict without the copies of the shared embedding. ``lm_head`` and ``shared``
    are quantised only where a pattern of layers names them.

    Raises:
        UserError: another model; a decoder-only one in particular.
    """
    config = model.config
    if getattr(config, "model_type", None) != "t5" or not hasattr(model, "lm_head"):
        kind = "encoder-decoder" if getattr(config, "is_encoder_decoder", False) else "decoder-only"
        raise UserError(
            f"model {type(model).__name__} ({kind}, type {getattr(config, 'model_type', 'unknown')!r}) "
            "is not supported; need a T5 model with an output layer (T5ForConditionalGeneration)"
        )
    model = model.eval().requires_grad_(False)
    encoder, decoder = model.encoder, model.decoder
    last = len(encoder.block) - 1
    blocks: list[nn.Module] = [
        _EncoderBlock(block, encoder.final_layer_norm if i == last else None)
        for i, block in enumerate(encoder.block)
    ]
    blocks += [_DecoderBlock(block) for block in decoder.block]
    tied = model.lm_head.weight is model.shared.weight
    # T5 1.1 and FLAN-T5 do not scale; transformers 4 knows them by their untied output layer.
    scaled = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    head = _Head(decoder.final_layer_norm, model.lm_head, config.d_model**-0.5 if scaled else 1.0)
    stem = _Stem(model.shared)
    probe = nn.ModuleDict({"stem": stem, "blocks": nn.ModuleList(blocks), "head": head})
    parameters = probe.named_parameters(remove_duplicate=False)
    keys = {name: _checkpoint_name(name, last, tied) for name, _ in parameters}
    return Tower(
        stem,
        blocks,
        head,
        [_groups(block) for block in blocks],
        keys,
        valid=partial(_valid, len(encoder.block)),
        outer=["stem.shared"] if tied else ["stem.shared", "head.lm_head"],
        norms=[_norms(block) for block in blocks],
        tied={EMBEDDING: (*TIED, OUTPUT) if tied else TIED},
        model=model,
    )


def _groups(block: nn.Module) -> list[SharedInput]:
    inner: Any = block.block
    last = f"block.layer.{len(inner.layer) - 1}.DenseReluDense"
    gated = hasattr(inner.layer[-1].DenseReluDense, "wi_0")
    inside = (f"{last}.wi_0", f"{last}.wi_1") if gated else (f"{last}.wi",)
    cross = [(CROSS[0],), KEY_VALUE, (CROSS[3],)] if isinstance(block, _DecoderBlock) else []
    return [SELF[:3], (SELF[3],), *cross, inside, (f"{last}.wo",)]


def _norms(block: nn.Module) -> dict[str, SharedInput]:
    """The norm before each sub-layer; the encoder's final one, which no layer of its block reads, is not."""
    groups = _groups(block)
    read = (
        [groups[0], (CROSS[0],), groups[-2]] if isinstance(block, _DecoderBlock) else [groups[0], groups[-2]]
    )
    return {f"block.layer.{i}.layer_norm": group for i, group in enumerate(read)}


def _valid(encoder_blocks: int, index: int, group: SharedInput, state: State) -> Tensor:
    """Encoder layers and the decoder's keys and values read source positions, the rest target positions."""
    reads_source = index < encoder_blocks or group == KEY_VALUE
    return state.mask if reads_source else state.decoder_mask


def _checkpoint_name(name: str, last: int, tied: bool) -> str:
    part, rest = name.split(".", 1)
    if part == "stem" or (tied and rest.startswith("lm_head")):
        return EMBEDDING
    if part == "head":
        return rest.replace("norm.", "decoder.final_layer_norm.")
    number, rest = rest.split(".", 1)
    stack, index = ("encoder", int(number)) if int(number) <= last else ("decoder", int(number) - last - 1)
    return (
        f"{stack}.final_layer_norm.weight" if rest == "norm.weight" else f"{stack}.block.{index}.{rest[6:]}"
    )
