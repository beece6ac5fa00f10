"""The adapter of a model: which of the supported architectures it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from epmq.errors import UserError
from epmq.models import causal_lm, open_clip_vision, t5, transformers_vision
from epmq.models.tower import Tower


def tower_of(model: Any) -> Tower:
    """The :class:`Tower` of a model; a tower is its own.

    A T5 or a causal language model of transformers is quantised with its tower; of a CLIP model (of
    transformers, or open_clip's model or its ``visual``) the tower is a copy in float32.

    Raises:
        UserError: the model is of no supported architecture.
    """
    if isinstance(model, Tower):
        return model
    if hasattr(model, "visual"):
        model = model.visual
    if hasattr(model, "transformer") and hasattr(model.transformer, "resblocks"):
        return open_clip_vision.tower(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "t5":
        return t5.tower(model)
    if kind in causal_lm.FAMILIES:
        return causal_lm.tower(model)
    if hasattr(model, "vision_model"):
        return transformers_vision.tower(model)
    raise UserError(
        f"model {type(model).__name__} is not supported; need a Tower, a CLIP model of transformers or "
        f"open_clip, a T5, or a causal language model of type {', '.join(causal_lm.FAMILIES)}"
    )


@contextmanager
def opened(model: Any) -> Iterator[Tower]:
    """The tower of a model, whose training mode and wish for gradients are afterwards what they were.

    Raises:
        UserError: the model is of no supported architecture.
    """
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(part, part.training) for part in parts]
    wishes = [(p, p.requires_grad) for part in parts for p in part.parameters(recurse=False)]
    try:
        yield tower_of(model)
    finally:
        for part, training in modes:
            part.training = training
        for parameter, wish in wishes:
            parameter.requires_grad_(wish)
