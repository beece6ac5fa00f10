"""A small T5 of FLAN-T5's architecture with experts around it, and batches for it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from epmq.t5 import TIED, tower
from epmq.tower import Tower

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 4,
    "num_heads": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def tiny_t5(seed: int = 0, attention: str = "eager", tied: bool = False, **changes: Any) -> Any:
    """A T5 whose output layer is its own, as FLAN-T5's is, unless ``tied`` (the first T5's)."""
    config = T5Config(**{**SIZES, **changes, "tie_word_embeddings": tied})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration._from_config(config, attn_implementation=attention)
        if not tied:
            model.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(config.vocab_size, config.d_model))
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name or "layer_norm" in name:
                torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model.eval().requires_grad_(False)


def weights(model: Any) -> dict[str, Tensor]:
    """A copy of the state dict without the copies of the shared embedding."""
    return {k: v.clone() for k, v in model.state_dict().items() if k not in TIED}


def experts(model: Any, names: list[str], spread: float = 0.1) -> dict[str, dict[str, Tensor]]:
    """The model's weights with noise of a relative size, a checkpoint per name."""
    found = {}
    for seed, name in enumerate(names):
        g = torch.Generator().manual_seed(100 + seed)
        found[name] = {
            k: v + spread * v.std() * torch.randn(v.shape, generator=g) for k, v in weights(model).items()
        }
    return found


def batch(seed: int, n: int, padding: int = 0) -> dict[str, Tensor]:
    """Sentences of different lengths; ``padding`` more positions than the longest needs."""
    g = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for prefix, longest in (("", 9), ("decoder_", 5)):
        lengths = torch.randint(2, longest + 1, (n,), generator=g)
        lengths[0] = longest
        ids = torch.randint(3, SIZES["vocab_size"], (n, longest), generator=g)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        ids = torch.where(mask.bool(), ids, 0)
        if prefix:
            ids[:, 0] = 0  # the start token, which is the padding token and yet counts
        pad = (0, padding)
        found[f"{prefix}input_ids"] = torch.nn.functional.pad(ids, pad)
        found[f"{prefix}attention_mask"] = torch.nn.functional.pad(mask, pad)
    return found


@dataclass
class TinyT5:
    """A model, its tower, experts, and calibration batches per task."""

    model: Any
    tower: Tower
    experts: dict[str, dict[str, Tensor]]
    inputs: dict[str, list[dict[str, Tensor]]]


@pytest.fixture
def tiny_t5_setting() -> TinyT5:
    model = tiny_t5()
    tasks = ["first", "second"]
    inputs = {task: [batch(10 * i + k, 6) for k in range(2)] for i, task in enumerate(tasks)}
    return TinyT5(model, tower(model), experts(model, tasks), inputs)


def copied(made: TinyT5) -> TinyT5:
    """The same with a model of its own."""
    model = copy.deepcopy(made.model)
    return TinyT5(model, tower(model), made.experts, made.inputs)
