"""Preprocessing: a picture to a model's input, in a geometric step that is cached and an arithmetic one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from epmq.errors import UserError

Which = Literal["slow", "fast"]
_SETTINGS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


@dataclass(frozen=True)
class Preprocess:
    """What a library does to a picture, in two steps.

    Attributes:
        geometry: a PIL image of any mode to ``(3, h, w)`` uint8: conversion to RGB, resize, crop.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        description: library, processor and settings; JSON.
    """

    geometry: Callable[[Any], NDArray[np.uint8]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    description: dict[str, Any]

    def normalise(self, images: Tensor) -> Tensor:
        """``(n, 3, h, w)`` uint8 to float32 with the channels' mean and spread taken out."""
        mean, std = (images.new_tensor(x, dtype=torch.float32).view(-1, 1, 1) for x in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def __call__(self, image: Any) -> Tensor:
        """A PIL image to ``(3, h, w)`` float32."""
        return self.normalise(torch.from_numpy(self.geometry(image)))


@dataclass(frozen=True)
class _OpenClipGeometry:
    """open_clip's steps before the picture becomes a tensor."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        image = image.convert("RGB")  # before the resize, which treats palettes differently
        for step in self.steps:
            image = step(image)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@dataclass(frozen=True)
class _TransformersGeometry:
    """A CLIP image processor without its arithmetic."""

    processor: Any

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        done = self.processor(
            images=image.convert("RGB"),
            do_rescale=False,
            do_normalize=False,
            return_tensors="pt",
        )
        pixels: NDArray[np.uint8] = done["pixel_values"][0].numpy()
        return pixels


def of_open_clip(settings: dict[str, Any]) -> Preprocess:
    """open_clip's evaluation transform of ``model.visual.preprocess_cfg``."""
    import open_clip  # takes seconds, and transformers' models do without

    config = open_clip.transform.PreprocessCfg(**settings)
    steps = list(open_clip.transform.image_transform_v2(config, is_train=False).transforms)
    arithmetic = next(i for i, step in enumerate(steps) if isinstance(step, open_clip.transform.ToTensor))
    description = {"library": "open_clip", "class": "image_transform_v2", **_plain(asdict(config))}
    return Preprocess(
        _OpenClipGeometry(tuple(steps[:arithmetic])), tuple(config.mean), tuple(config.std), description
    )


def of_transformers(folder: Path, which: Which) -> Preprocess:
    """The CLIP image processor that a model folder configures, in its slow or its fast implementation.

    They resize differently: ``slow`` is Pillow's resize, ``fast`` is torchvision's on a tensor.

    Raises:
        UserError: the folder's ``preprocessor_config.json`` is missing, damaged or asks for other arithmetic.
    """
    where = folder / "preprocessor_config.json"
    try:
        processor = _implementation(which).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{where}: cannot be used ({error}); get the base model again") from error
    settings = {name: _plain(processor.to_dict()[name]) for name in _SETTINGS}
    if not (settings["do_rescale"] and settings["do_normalize"]) or settings["rescale_factor"] != 1 / 255:
        raise UserError(f"{where}: expected pixels scaled by 1/255 and normalised; is it a CLIP model?")
    description = {"library": "transformers", "class": "CLIPImageProcessor", "implementation": which}
    mean, std = (tuple(settings[name]) for name in ("image_mean", "image_std"))
    return Preprocess(_TransformersGeometry(processor), mean, std, {**description, **settings})


def _implementation(which: Which) -> Any:
    """The class, whose plain name was the slow one's in transformers 4 and is the fast one's in 5."""
    renamed = hasattr(transformers, "CLIPImageProcessorPil")
    suffixes = {"slow": "Pil", "fast": ""} if renamed else {"slow": "", "fast": "Fast"}
    return getattr(transformers, f"CLIPImageProcessor{suffixes[which]}")


def _plain(value: Any) -> Any:
    """A setting as JSON: tuples and enumerations differ between versions, as do entries that are not set."""
    if isinstance(value, Mapping):
        return {name: _plain(x) for name, x in value.items() if x is not None}
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return int(value) if isinstance(value, IntEnum) else value
