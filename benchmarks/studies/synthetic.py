"""A suite of full-size CLIP models with random weights on disk, to measure what the real ones would take."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset, Features, Value
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from benchmarks.embedded.micro_clip_8.train import build_tokenizer
from epmq.checkpoints.lazy import LazyCheckpoint

# The shapes of the published openai checkpoints.
SHAPES: dict[str, dict[str, Any]] = {
    "b32": {
        "projection_dim": 512,
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 32,
        },
        "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
    },
    "l14": {
        "projection_dim": 768,
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    },
}
NAMES = ["cat", "dog", "fox"]
TEMPLATES = ["a photo of a {c}."]
PICTURE = (500, 375)  # pixels, wide and high: an ordinary photograph in these data sets
NOISE = 1e-3  # of an expert's weights around the base's


def write_models(folder: Path, shape: str, experts: int) -> None:
    """The base in float32, the experts' image towers in float16; files that are there are kept."""
    base = folder / "base"
    if not (base / "model.safetensors").exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CLIPModel(CLIPConfig(**SHAPES[shape]))
        tokenizer = build_tokenizer([t.format(c=c) for t in TEMPLATES for c in NAMES])
        tokenizer.save_pretrained(base)
        CLIPImageProcessor().save_pretrained(base)
        model.save_pretrained(base)
        del model
    for number in tqdm(range(experts), desc=f"writing {shape} experts", leave=False):
        write_expert(base / "model.safetensors", folder / f"expert-{number}", number)


def write_expert(base: Path, folder: Path, seed: int) -> None:
    """The base's image tower with noise, as a bare vision model of float16."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    origin, generator = LazyCheckpoint(base, "vision_model."), torch.Generator().manual_seed(seed)
    tensors = {}
    for name in origin:
        tensor = origin[name]
        if tensor.is_floating_point():
            tensor = (tensor + NOISE * torch.randn(tensor.shape, generator=generator)).half()
        tensors[name] = tensor
    save_file(tensors, folder / "partial.safetensors")
    (folder / "partial.safetensors").replace(folder / "model.safetensors")


def write_pictures(folder: Path, train: int, test: int) -> None:
    """A data set of made-up photographs, as parquet in the hub's layout."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    features = Features(image=datasets.Image(), label=Value("int64"))
    for split, count in (("train", train), ("test", test)):
        rows = [{"bytes": _picture(rng), "path": None} for _ in range(count)]
        labels = [i % len(NAMES) for i in range(count)]
        data = Dataset.from_dict({"image": rows, "label": labels}, features=features)
        data.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def _picture(rng: np.random.Generator) -> bytes:
    """A JPEG of smooth shapes with a little grain, which compresses as photographs do."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC), dtype=np.float32)
    grained = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grained).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_suite(folder: Path, shape: str, experts: int, train: int, test: int) -> Path:
    """Models, data and the suite file that names them; returns the suite file."""
    write_models(folder / shape, shape, experts)
    data = folder / f"data-{train}-{test}"
    if not data.exists():
        write_pictures(data, train, test)
    dataset = {
        "path": str(data),
        "config": None,
        "revision": None,
        "train_split": "train",
        "eval_split": "test",
        "image_column": "image",
        "label_column": "label",
        "train_size": train,
        "eval_size": test,
        "licence": "made up",
    }
    suite = {
        "name": f"synthetic-{shape}-{experts}",
        "version": 1,
        "kind": "clip",
        "description": "Random weights of full size.",
        "library": "transformers",
        "image_processor": "slow",
        "rehearsal": True,
        "base": str(folder / shape / "base"),
        "metric": "top-1 accuracy",
        "comparisons": {
            "default": {
                "merge": ["task-arithmetic"],
                "method": ["gptq", "epmq", "epmq-features"],
                "target": ["merged"],
                "bits": [4],
                "samples": train,
                "controls": [],
            }
        },
        "checkpoints": {},
        "tasks": [
            {
                "task": f"task-{number}",
                "dataset": dataset,
                "expert": str(folder / shape / f"expert-{number}"),
                "class_names": NAMES,
                "templates": TEMPLATES,
            }
            for number in range(experts)
        ],
    }
    file = folder / f"{suite['name']}-{train}-{test}.json"
    file.write_text(json.dumps(suite, indent=1))
    return file
