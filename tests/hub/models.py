"""CLIP base models and experts in miniature: the originals' classes, keys and files, two layers each.

The weights of a base model are random. An expert is the base with the last layer's ``fc2`` moved, by one
ridge regression on its training images, so that images point to their class's prompt, and with a little
low-rank noise on every other matrix: it is better at its task, and it differs from the base everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from tests.hub import tokenizer
from tests.hub.images import generator

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LOGIT_SCALE = 4.6052  # of the originals
RIDGE = 0.05  # relative to the mean squared feature
PUSH = 2.0  # length of the wanted move, in standard deviations of the features
DIGITS = 4  # of what is fitted, so that no rounding error of a machine can change a file's hash
LOW_RANK = 0.02  # size of the other moves, relative to the matrix
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """A base model's dimensions; ``legacy``: its weights are a pytorch_model.bin alone."""

    id: str
    width: int
    heads: int
    image: int
    patch: int
    projection: int
    legacy: bool

    @property
    def stem(self) -> str:
        """What ids of experts begin with."""
        return f"tanganke/{self.id.partition('/')[2]}_"


# the originals have 224-pixel images, widths 768 and 1024, 12 and 24 layers
BASES = (
    Size("openai/clip-vit-base-patch32", 32, 2, image=32, patch=8, projection=24, legacy=True),
    Size("openai/clip-vit-large-patch14", 48, 3, image=28, patch=7, projection=32, legacy=False),
)


def config(size: Size, vocabulary: int) -> Any:
    shared = {"num_hidden_layers": 2, "hidden_act": "quick_gelu", "projection_dim": size.projection}
    vision = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_attention_heads": size.heads,
    }
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": vocabulary}
    marks = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # as wrong as in the originals' files
    return CLIPConfig(
        text_config={**shared, **text, **marks, "max_position_embeddings": tokenizer.LENGTH},
        vision_config={**shared, **vision, "image_size": size.image, "patch_size": size.patch},
        projection_dim=size.projection,
        architectures=["CLIPModel"],
    )


def base_model(size: Size, vocabulary: int) -> Any:
    """A CLIPModel whose weights follow from the id alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        model = CLIPModel(config(size, vocabulary)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(drawn(size, name, weight))
    return model


def drawn(size: Size, name: str, weight: Tensor) -> Tensor:
    """A random tensor of the weight's shape: of a matrix so that it keeps the scale of what it multiplies."""
    random = torch.from_numpy(generator(size.id, name).standard_normal(weight.shape))
    if weight.ndim == 0:
        return torch.full_like(random, LOGIT_SCALE)
    if weight.ndim == 1:
        return 0.05 * random + float(name.endswith(("norm.weight", "norm1.weight", "norm2.weight")))
    is_table = name.endswith(("token_embedding.weight", "position_embedding.weight"))
    return random * (0.5 if is_table else weight[0].numel() ** -0.5)


def pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """Images as the processor makes them, nearly: float64 (n, 3, side, side)."""
    square = [ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC) for image in images]
    stacked = np.stack([np.asarray(image, dtype=np.float64) / 255 for image in square])
    return torch.from_numpy((stacked - MEAN) / STD).permute(0, 3, 1, 2)


@torch.no_grad()
def directions(model: Any, tokens: Any, prompts: list[str]) -> np.ndarray:
    """Unit vectors (classes, width): where an image's state has to move to be closest to one prompt.

    ``model`` is in float64.
    """
    encoded = tokens(prompts, padding=True, return_tensors="pt")
    text = model.text_projection(model.text_model(**encoded).pooler_output).numpy()
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    centred = text - text.mean(0)
    spread = centred.T @ centred
    apart = np.linalg.solve(
        spread + RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread)), centred.T
    ).T
    towards = apart @ model.visual_projection.weight.numpy()
    return np.asarray(towards / np.linalg.norm(towards, axis=1, keepdims=True))


@torch.no_grad()
def expert_weights(
    model: Any, size: Size, task: str, images: Sequence[Image.Image], wanted: np.ndarray
) -> Weights:
    """The vision tower's weights for a task, float32, from a base model in float64.

    ``wanted`` (n, width) has each training image's direction.
    """
    seen: list[Tensor] = []
    last = model.vision_model.encoder.layers[-1].mlp.fc2
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0]))
    state = model.vision_model(pixels(images, size.image)).last_hidden_state[:, 0]
    hook.remove()
    inputs = seen[0].numpy()
    ridge = RIDGE * (inputs**2).sum(1).mean() * np.eye(len(inputs))
    goal = PUSH * float(state.std()) * size.width**0.5 * wanted
    move = (inputs.T @ np.linalg.solve(inputs @ inputs.T + ridge, goal)).T.round(DIGITS)
    weights = {name: weight.numpy().copy() for name, weight in model.vision_model.named_parameters()}
    for name, weight in weights.items():
        if weight.ndim == 2:
            rng = generator(size.id, task, name)
            noise = np.outer(rng.standard_normal(weight.shape[0]), rng.standard_normal(weight.shape[1]))
            weight += LOW_RANK * weight.std() * noise
    weights["encoder.layers.1.mlp.fc2.weight"] += move
    return {name: torch.from_numpy(weight).float() for name, weight in weights.items()}
