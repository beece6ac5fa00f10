"""A base model of open_clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from benchmarks.images.preprocess import of_open_clip
from benchmarks.images.zero_shot import Base, Encode
from benchmarks.sources.weights import refuse_code
from epmq.errors import UserError
from epmq.experts import merged_tensors
from epmq.models.open_clip_vision import tower as vision_tower


def open_base(folder: Path, weights: Path) -> Base:
    """The model in a folder with open_clip's configuration, its tokenizer and ``weights``.

    Raises:
        UserError: the folder does not hold together or names code of its own, or its image tower is not
            supported.
    """
    refuse_code(folder)
    model, tokenizer = _create(f"local-dir:{folder}")
    preprocess, tower = of_open_clip(model.visual.preprocess_cfg), vision_tower(model.visual)
    del model.visual  # the tower has its own

    def encode(prompts: list[str]) -> Tensor:
        features: Tensor = model.encode_text(tokenizer(prompts))
        return features

    def open_text() -> Encode:
        return encode

    tensors = merged_tensors(weights, tower, str(weights))
    return Base(tower, tensors, preprocess, open_text)


def _create(name: str) -> tuple[Any, Any]:
    try:
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads them
            model = open_clip.create_model_from_pretrained(name, precision="fp32", return_transform=False)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a folder that does not hold together fails in any of many places
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{name}: cannot be loaded by open_clip ({reason}); is the folder complete?"
        ) from error
    return model.eval(), tokenizer
