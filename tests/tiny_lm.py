"""Small causal language models of Llama's kind with experts around them, and batches for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from epmq.causal_lm import OUTPUT, tower
from epmq.tower import Tower

State = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # two heads of queries share one of keys and values
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
SLIDING = ["full_attention", "sliding_attention"]
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama with biases": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "tied llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral, sliding": (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen2, one layer sliding": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "layer_types": SLIDING},
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
}


def tiny_lm(family: str = "llama", attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
    """An untrained model none of whose biases and norms is at its start."""
    kind, form, own = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = form(**{**SIZES, **own, **changes})
        model = kind._from_config(config, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            nn.init.normal_(parameter, mean=around, std=0.3)
    return model.eval().requires_grad_(False)


def weights(model: Any) -> State:
    """A copy of the state dict, a tied tensor listed once."""
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return {k: v.clone() for k, v in model.state_dict().items() if not (tied and k == OUTPUT)}


def experts(model: Any, names: Sequence[str], spread: float = 0.1) -> dict[str, State]:
    """The model's weights with noise of a relative size, a checkpoint per name."""
    found = {}
    for seed, name in enumerate(names):
        g = torch.Generator().manual_seed(100 + seed)
        found[name] = {
            k: v + spread * v.std() * torch.randn(v.shape, generator=g) for k, v in weights(model).items()
        }
    return found


def batch(seed: int, n: int, padding: int = 0, uneven: bool = True) -> State:
    """Sentences, padded on the right; ``padding`` more positions than the longest needs."""
    g, longest = torch.Generator().manual_seed(seed), 9
    lengths = torch.randint(2, longest + 1, (n,), generator=g) if uneven else torch.full((n,), longest)
    lengths[0] = longest
    mask = (torch.arange(longest) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), torch.randint(3, SIZES["vocab_size"], (n, longest), generator=g), 0)
    pad = (0, padding)
    return {
        "input_ids": nn.functional.pad(ids, pad),
        "attention_mask": nn.functional.pad(mask, pad),
    }


@dataclass
class TinyLm:
    """A model, its tower, experts, and calibration batches per task."""

    model: Any
    tower: Tower
    experts: dict[str, State]
    inputs: dict[str, list[State]]


def setting(family: str = "llama") -> TinyLm:
    """Two tasks of two batches each."""
    model, tasks = tiny_lm(family), ["first", "second"]
    inputs = {task: [batch(10 * i + k, 6) for k in range(2)] for i, task in enumerate(tasks)}
    return TinyLm(model, tower(model), experts(model, tasks), inputs)


def copied(made: TinyLm) -> TinyLm:
    """The same with a model of its own."""
    model = copy.deepcopy(made.model)
    return TinyLm(model, tower(model), dict(made.experts), dict(made.inputs))
