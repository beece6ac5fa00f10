"""The repositories of models: configuration, processor, tokenizer, and weights in the hub's forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.hub import tokenizer
from tests.hub.models import MEAN, STD, Size

PREFIX = "vision_model."
UNREAD = ("tf_model.h5", "flax_model.msgpack")  # weights for other frameworks, beside PyTorch's


@dataclass(frozen=True)
class Form:
    """How an expert is stored: keys with the old prefix and buffer or without, type, number of files."""

    prefixed: bool
    dtype: torch.dtype
    files: int = 1


FORMS = (
    Form(True, torch.float32),
    Form(False, torch.float32),
    Form(True, torch.float16),
    Form(False, torch.float16),
)
SHARDED = {"gtsrb": Form(True, torch.float32, files=2)}


def form_of(task: str, position: int) -> Form:
    """The form of the expert of a task, by its position in the 20-task suite."""
    return SHARDED.get(task, FORMS[position % len(FORMS)])


def positions(tower: Any, prefix: str) -> dict[str, Tensor]:
    """The buffer that older versions of transformers saved: int64 (1, positions)."""
    return {
        f"{prefix}embeddings.position_ids": torch.arange(tower.embeddings.position_embedding.num_embeddings)[
            None
        ]
    }


def write_base(
    home: Path, size: Size, model: Any, vocabulary: dict[str, int], merges: list[tokenizer.Pair]
) -> None:
    """A base model's repository; its weights also as model.safetensors unless ``legacy``."""
    home.mkdir(parents=True)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    weights |= positions(model.vision_model, PREFIX) | positions(model.text_model, "text_model.")
    torch.save(weights, home / "pytorch_model.bin")
    if not size.legacy:
        save_file(weights, home / "model.safetensors", {"format": "pt"})
    for name in UNREAD:
        (home / name).write_bytes(f"{name} of {size.id}, not for PyTorch".encode())
    write_json(home / "config.json", described(model.config, "CLIPModel"))
    write_json(home / "preprocessor_config.json", processor(size))
    tokenizer.write(home, vocabulary, merges)
    (home / "README.md").write_text("---\ntags:\n- vision\n---\n", encoding="utf-8")


def write_expert(home: Path, size: Size, model: Any, weights: Mapping[str, Tensor], form: Form) -> None:
    """An expert's repository: the vision tower alone."""
    home.mkdir(parents=True)
    stored = {name: weight.to(form.dtype) for name, weight in weights.items()}
    if form.prefixed:
        stored = {PREFIX + name: weight for name, weight in stored.items()} | positions(
            model.vision_model, PREFIX
        )
    write_weights(home, stored, form.files)
    stated = {"_name_or_path": size.id, "torch_dtype": str(form.dtype).removeprefix("torch.")}
    write_json(home / "config.json", stated | described(model.config.vision_config, "CLIPVisionModel"))
    card = f"---\nbase_model:\n- {size.id}\n---\n"
    (home / "README.md").write_text(card, encoding="utf-8")


def write_weights(home: Path, stored: dict[str, Tensor], files: int) -> None:
    """``model.safetensors``, or several files and the index of what is where."""
    if files == 1:
        save_file(stored, home / "model.safetensors", {"format": "pt"})
        return
    where: dict[str, str] = {}
    names = sorted(stored)
    for i in range(files):
        file = f"model-{i + 1:05}-of-{files:05}.safetensors"
        part = {name: stored[name] for name in names[i * len(names) // files : (i + 1) * len(names) // files]}
        save_file(part, home / file, {"format": "pt"})
        where.update(dict.fromkeys(part, file))
    total = sum(weight.numel() * weight.element_size() for weight in stored.values())
    write_json(
        home / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where}
    )


def described(config: Any, architecture: str) -> dict[str, Any]:
    """A configuration without what would change with the installed version of transformers."""
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    content.pop("transformers_version", None)
    return {**content, "architectures": [architecture]}


def processor(size: Size) -> dict[str, Any]:
    """As in the originals, with plain numbers for sizes, which newer versions write as dictionaries."""
    steps = {"do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3}
    sizes = {"size": size.image, "crop_size": size.image}
    return {
        "feature_extractor_type": "CLIPFeatureExtractor",
        **steps,
        **sizes,
        "image_mean": MEAN,
        "image_std": STD,
    }


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
