"""The model of ``micro-glue-8``'s recipe: its size, and how it is made, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.embedded.training import atomically, step_seed

MODEL_CFG: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "num_heads": 4,
    "d_ff": 192,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
EMBEDDED = 0.25  # standard deviation of a fresh embedding: small, so that rare words are soon learnt


def fresh_model(vocabulary: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(step_seed("model"))
        model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **MODEL_CFG))
        torch.nn.init.normal_(model.shared.weight, std=EMBEDDED)
        return faster(model)


def faster(model: Any) -> Any:
    """The same model with its activation, GELU's tanh form, in one kernel."""
    for module in model.modules():
        if hasattr(module, "act"):
            module.act = torch.nn.GELU("tanh")
    return model


def write_model(model: Any, out: Path) -> None:
    """A transformers model folder's config and float16 weights, a tied output layer as the embedding."""
    out.mkdir(parents=True, exist_ok=True)
    own = getattr(model.lm_head, "weight", model.shared.weight)
    tied = {"tie_word_embeddings": own is model.shared.weight}
    config = json.loads(model.config.to_json_string()) | tied
    atomically(out / "config.json", lambda p: p.write_text(json.dumps(config, indent=2) + "\n"))
    tensors = {name: p.detach().half().contiguous() for name, p in model.named_parameters()}
    atomically(out / "model.safetensors", lambda p: save_file(tensors, p, metadata={"format": "pt"}))


def read_model(folder: Path, dropout: float) -> Any:
    """The float32 model of a folder that ``write_model`` made."""
    return faster(
        T5ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, dropout_rate=dropout, attn_implementation="eager"
        )
    )


class FixedOutput(nn.Module):
    """An output layer that is the embedding, and through which a gradient reaches ``learnt`` rows alone.

    AdamW would move the rows of all words by the softmax's small gradients, those of absent words too.
    """

    def __init__(self, embedding: nn.Embedding, learnt: Tensor) -> None:
        super().__init__()
        self.learnt = torch.zeros(embedding.num_embeddings, 1).index_fill(0, learnt, 1.0).bool()
        self.rows = [embedding]  # in a list, so that its weight has one name

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(..., vocabulary)`` of states ``(..., width)``."""
        rows = self.rows[0].weight
        return nn.functional.linear(x, torch.where(self.learnt, rows, rows.detach()))


def fixed_output(model: Any, rows: Tensor, learnt: Tensor) -> Any:
    """The model with ``FixedOutput``; the embeddings of ``rows`` stay."""
    model.lm_head = FixedOutput(model.shared, learnt)
    model.shared.weight.register_hook(lambda gradient: gradient.index_fill(0, rows, 0.0))
    return model
