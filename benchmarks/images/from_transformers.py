"""A base model of transformers: a ``CLIPModel``'s configuration, weights, tokenizer and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from benchmarks.images.preprocess import Which, of_transformers
from benchmarks.images.zero_shot import Base, Encode
from benchmarks.sources.weights import configured
from epmq.checkpoints.lazy import LazyCheckpoint
from epmq.errors import UserError
from epmq.experts import merged_tensors
from epmq.models.transformers_vision import tower as vision_tower


def open_base(folder: Path, weights: Path, processor: Which) -> Base:
    """The model in a folder as the hub has it, with ``weights``; image tower and text tower apart.

    Raises:
        UserError: a file is missing or damaged, or the weights are not of the configured model.
    """
    config, tokenizer = _configuration(folder)
    stored = LazyCheckpoint(weights)
    with torch.device("meta"):  # a text tower that does not fit is found before any work
        _check(CLIPTextModelWithProjection(config.text_config), stored)
    tower = vision_tower(_filled(CLIPVisionModelWithProjection, config.vision_config, stored))

    def open_text() -> Encode:
        model = _filled(CLIPTextModelWithProjection, config.text_config, stored)
        limit = config.text_config.max_position_embeddings

        def encode(prompts: list[str]) -> Tensor:
            tokens = tokenizer(prompts, padding=True, return_tensors="pt")
            if tokens["input_ids"].shape[1] > limit:
                raise UserError(
                    f"prompts such as {max(prompts, key=len)!r} are longer than the model's {limit} tokens; "
                    "shorten the templates or class names of the suite"
                )
            found = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            features: Tensor = found.text_embeds
            return features

        return encode

    tensors = merged_tensors(weights, tower, str(weights))
    return Base(tower, tensors, of_transformers(folder, processor), open_text)


def _configuration(folder: Path) -> tuple[Any, Any]:
    config, tokenizer = configured(folder)
    if not isinstance(config, CLIPConfig):
        raise UserError(
            f"{folder / 'config.json'}: describes a {config.model_type} model; expected a clip one"
        )
    for part in (config.vision_config, config.text_config):  # CLIPModel goes by the outer one
        part.projection_dim = config.projection_dim
    return config, tokenizer


@torch.no_grad()
def _filled(kind: Any, config: Any, stored: LazyCheckpoint) -> Any:
    """A model with stored weights, copied tensor by tensor: no second copy, none missed."""
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn from the global generator
        model = kind(config).eval().requires_grad_(False)
    _check(model, stored)
    for name, parameter in model.named_parameters():
        parameter.copy_(stored[name])
    return model


def _check(model: Any, stored: LazyCheckpoint) -> None:
    for name, parameter in model.named_parameters():
        if name not in stored or stored.shape(name) != tuple(parameter.shape):
            found = f"is {stored.shape(name)}" if name in stored else "is missing"
            raise UserError(
                f"{stored.path}: tensor {name!r} {found}, config.json describes a CLIP model with "
                f"{tuple(parameter.shape)}; is it the right model?"
            )
