"""Merged LoRA experts are exactly PEFT's ``merge_and_unload``, from folders as PEFT writes them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.checkpoints.lora import lora_merged
from epmq.errors import UserError

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}
MODELS: dict[str, Callable[[], Any]] = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=24, num_key_value_heads=2, **SIZES)
    ),
    "tied llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16, intermediate_size=24, num_key_value_heads=2, tie_word_embeddings=True, **SIZES
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32)),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5: q and v": ("t5", {"target_modules": ["q", "v"], "lora_alpha": 16}),
    "t5: all linear layers": ("t5", {"target_modules": ["q", "k", "v", "o", "wi", "wo"]}),
    "llama: rank-stabilised": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "llama: patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 3},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 9},
        },
    ),
    "llama: embedding": ("llama", {"target_modules": ["embed_tokens", "o_proj"]}),
    "llama: head adapted": ("llama", {"target_modules": ["lm_head", "down_proj"]}),
    "llama: head trained whole": ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}),
    "llama: some layers": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "tied llama: layers": ("tied llama", {"target_modules": ["q_proj", "gate_proj"]}),
    "gpt2: transposed": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
}


def trained(model: Any, options: dict[str, Any]) -> Any:
    """An adapted model none of whose trained tensors is at its start."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # of tied weights, and of what is saved besides the adapter
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 4, **options}))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    return adapted


def made(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return MODELS[family]().eval()


def saved(model: nn.Module, adapted: Any, folder: Path) -> tuple[LazyCheckpoint, Path]:
    model.save_pretrained(folder / "base")  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder / "adapter")
    return LazyCheckpoint(folder / "base"), folder / "adapter"


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_pefts(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    model = made(family)
    adapted = trained(model, options)
    base, folder = saved(model, adapted, tmp_path)
    ours = lora_merged(base, folder)
    theirs = state(adapted.merge_and_unload())
    changed = {name for name in base if not torch.equal(theirs[name], base[name])}
    assert changed == ours.changed
    assert changed
    for name in base:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("family", ["t5", "tied llama"])
@pytest.mark.parametrize("kind", ["target_modules", "modules_to_save"])
def test_tied_embeddings_are_refused(family: str, kind: str, tmp_path: Path) -> None:
    """PEFT merges them to a model that computes something else than the adapted one."""
    word = {"t5": "shared", "tied llama": "embed_tokens"}[family]
    options = {"target_modules": ["q" if family == "t5" else "q_proj"]}
    options[kind] = [*options.get(kind, []), word]
    model = made(family)
    base, folder = saved(model, trained(model, options), tmp_path)
    with pytest.raises(UserError, match="which the base ties to another tensor"):
        lora_merged(base, folder)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
    ],
    ids=str,
)
def test_what_is_no_plain_sum_is_refused_as_peft_writes_it(
    option: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    model = made("t5")
    base, folder = saved(model, trained(model, {"target_modules": ["q"], **option}), tmp_path)
    with pytest.raises(UserError, match=complaint):
        lora_merged(base, folder)
