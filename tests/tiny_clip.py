"""A CLIP of transformers in miniature, as its library stores it and in open_clip's layout."""

from __future__ import annotations

import functools
import gzip
import json
import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

State = dict[str, Tensor]
WIDTH, DIM, IMAGE, PATCH = 16, 8, 16, 8
PREPROCESSOR = {
    "crop_size": IMAGE,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": IMAGE,
}
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": DIM,
    "quick_gelu": True,
    "vision_cfg": {"image_size": IMAGE, "patch_size": PATCH, "width": WIDTH, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
}
RENAMED = (  # from transformers to open_clip, applied in order
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.", ""),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_model\.", ""),
    (r"^vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"^vision_model\.embeddings\.", "visual."),
    (r"^vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"^vision_model\.post_layernorm", "visual.ln_post"),
    (r"^vision_model\.", "visual."),
    (r"encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn", "attn"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def config(**vision: Any) -> CLIPConfig:
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 49408, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    return CLIPConfig(
        text_config={**shape, **text},
        vision_config={**shape, "image_size": IMAGE, "patch_size": PATCH, **vision},
        projection_dim=DIM,
    )


def model(seed: int = 0, **vision: Any) -> Any:
    """An untrained CLIPModel whose parameters all differ from their initial zeros and ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built = CLIPModel(config(**vision)).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(seed)
    for parameter in built.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    return built


def tensors(built: Any) -> State:
    """The state dict as contiguous copies."""
    return {name: x.clone().contiguous() for name, x in built.state_dict().items()}


def bare(state: State, prefix: str = "") -> State:
    """The image tower as a ``CLIPVisionModel`` stores it, with ``vision_model.`` before names or not."""
    inner = "vision_model."
    return {prefix + k.removeprefix(inner): x for k, x in state.items() if k.startswith(inner)}


def expert(state: State, seed: int) -> State:
    """Every tensor of ``state`` with a little noise."""
    g = torch.Generator().manual_seed(seed)
    return {name: x + 0.05 * torch.randn(x.shape, generator=g) for name, x in state.items()}


def as_open_clip(state: State) -> State:
    """A ``CLIPModel``'s state dict in open_clip's layout."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("projection.weight"):
            found[{"visual": "visual.proj", "text": "text_projection"}[name.split("_")[0]]] = tensor.T
            continue
        if re.search(r"\.[kv]_proj\.", name):
            continue
        if ".q_proj." in name:
            tensor = torch.cat([state[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"])
            name = name.replace(".q_proj.", ".in_proj_")
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    return {name: x.clone().contiguous() for name, x in found.items()}


@functools.cache
def tokenizer(merged: bool = True) -> CLIPTokenizer:
    """CLIP's own tokenizer, from the vocabulary that open_clip ships; not ``merged``: of single letters."""
    with gzip.open(open_clip.tokenizer.default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]] if merged else []
    characters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({word: i for i, word in enumerate(words)}, merges, model_max_length=77)


def write_transformers(built: Any, folder: Path, words: CLIPTokenizer | None = None) -> None:
    """A base model's folder as the hub has it; its tokenizer is of single letters unless given."""
    folder.mkdir(parents=True)
    built.config.save_pretrained(folder)
    save_file(tensors(built), folder / "model.safetensors")
    (words or tokenizer(merged=False)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def write_open_clip(state: State, folder: Path) -> None:
    """The same weights as a folder that open_clip loads; it has the tokenizer itself."""
    folder.mkdir(parents=True)
    save_file(state, folder / "open_clip_model.safetensors")
    settings = {"interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": OPEN_CLIP, "preprocess_cfg": settings})
    )
