"""What a library gives of a CLIP base model, and the zero-shot heads that its text tower makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.images.preprocess import Preprocess
from benchmarks.suites.forms import ImageTask
from epmq.models.tower import Tower

Encode = Callable[[list[str]], Tensor]  # prompts to text features (n, dim), not normalised
PROMPTS = 256  # encoded at a time


@dataclass(frozen=True)
class Base:
    """A base model.

    Attributes:
        tensors: those of the image tower that are merged.
        open_text: reads the text tower into memory, where it stays as long as the encoder is kept.
    """

    tower: Tower
    tensors: Mapping[str, Tensor]
    preprocess: Preprocess
    open_text: Callable[[], Encode]


@torch.no_grad()
def zero_shot_head(encode: Encode, task: ImageTask) -> Tensor:
    """Zero-shot weights ``(classes, dim)``: normalise prompts, average over templates, normalise again."""
    prompts = [t.replace("{c}", name) for name in task.class_names for t in task.templates]
    parts = [encode(prompts[start : start + PROMPTS]) for start in range(0, len(prompts), PROMPTS)]
    text = F.normalize(torch.cat(parts), dim=-1)
    return F.normalize(text.unflatten(0, (len(task.class_names), -1)).mean(1), dim=-1)
