"""A complete suite in miniature: model, experts, data and suite file. A cell takes milliseconds.

The fixture ``tiny`` is one such suite for the whole session, not to be changed; ``tiny_visual`` is a small
image tower with experts around it, for tests that need no suite.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import suites
from benchmarks.clip import BASE_FILE, EXPERT_FILE
from benchmarks.micro_clip_8.train import build_tokenizer, write_model
from benchmarks.suites import ClipSuite
from epmq.checkpoint import sha256
from epmq.open_clip_vision import tower
from epmq.tower import Tower

Described = dict[str, Any]  # the content of a suite file, or a part of it
TASKS = {"fruit": ["apple", "pear", "fig"], "birds": ["crow", "owl"], "tools": ["saw", "axe", "hoe", "pick"]}
TEMPLATES = ["a photo of {c}.", "a drawing of {c}."]
TRAIN, TEST = 24, 40
CONFIG: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {
        "context_length": 8,
        "vocab_size": 0,
        "hf_tokenizer_name": "tiny",
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}
COMPARISON = {
    "merge": ["task-arithmetic"],
    "method": ["rtn", "gptq"],
    "target": ["merged", "expert"],
    "bits": [4],
    "samples": 8,
    "controls": ["zero-shot", "experts", "merged"],
}


@dataclass(frozen=True)
class TinySuite:
    """The suite file and what it names; `folder` holds `base`, `experts/<task>` and `data/<task>`."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "tiny.json"

    @property
    def suite(self) -> ClipSuite:
        return suites.load_clip(str(self.file))

    def expert(self, task: str) -> Path:
        return self.folder / "experts" / task / EXPERT_FILE

    def variant(self, path: Path, edit: Callable[[Described], object]) -> Path:
        """A changed copy of the suite file, at ``path``, over the same models and data."""
        described = json.loads(self.file.read_text())
        edit(described)
        path.write_text(json.dumps(described))
        return path


def first_task(suite: Described) -> Described:
    found: Described = suite["tasks"][0]
    return found


def described(folder: Path) -> Described:
    """The suite file's content."""
    files = [folder / "base" / BASE_FILE, *(folder / "experts" / task / EXPERT_FILE for task in TASKS)]
    return {
        "name": "tiny",
        "version": 1,
        "kind": "clip",
        "description": "Three made-up tasks on an untrained model.",
        "library": "open_clip",
        "base": str(folder / "base"),
        "metric": "top-1 accuracy",
        "comparisons": {"default": COMPARISON},
        "checkpoints": {str(file): sha256(file) for file in files},
        "tasks": [
            {
                "task": task,
                "dataset": {
                    "path": str(folder / "data" / task),
                    "config": None,
                    "revision": None,
                    "train_split": "train",
                    "eval_split": "test",
                    "image_column": "image",
                    "label_column": "label",
                    "train_size": TRAIN,
                    "eval_size": TEST,
                    "licence": "CC0-1.0",
                },
                "expert": str(folder / "experts" / task),
                "class_names": names,
                "templates": TEMPLATES,
            }
            for task, names in TASKS.items()
        ],
    }


def small_clip(seed: int, vocabulary: int = 16) -> CLIP:
    """An untrained CLIP whose image tower has 2 blocks of width 16."""
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["vocab_size"] = vocabulary
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CLIP(**config).eval()


def expert_of(base: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The base plus a low-rank change of every matrix and a small one of everything else."""
    g = torch.Generator().manual_seed(seed)
    changed = {}
    for name, tensor in base.items():
        size = 0.5 * (float(tensor.std()) or 0.02)
        noise = torch.randn(tensor.shape, generator=g)
        if tensor.dim() == 2:
            noise = torch.randn(len(tensor), 2, generator=g) @ torch.randn(2, tensor.shape[1], generator=g)
        changed[name] = tensor + size * noise
    return changed


def write_images(folder: Path, names: list[str], seed: int) -> None:
    """Noisy copies of one random picture per class, as parquet in the hub's layout."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (len(names), 16, 16, 3))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    (folder / "data").mkdir(parents=True)
    for split, count in (("train", TRAIN), ("test", TEST)):
        labels = rng.integers(0, len(names), count)
        noisy = (pictures[labels] + rng.normal(0, 60, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)
        rows = {"image": [Image.fromarray(x) for x in noisy], "label": labels.tolist()}
        data = datasets.Dataset.from_dict(rows, features=features)
        data.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def write_suite(folder: Path) -> TinySuite:
    """Write the whole suite into ``folder``."""
    corpus = [t.format(c=c) for t in TEMPLATES for names in TASKS.values() for c in names]
    tokenizer = build_tokenizer(corpus)
    model = small_clip(0, len(tokenizer))
    config = copy.deepcopy(CONFIG)
    config["text_cfg"]["vocab_size"] = len(tokenizer)
    write_model(model, tokenizer, config, folder / "base")
    base = {name: x.half().float() for name, x in model.visual.state_dict().items() if name != "proj"}
    for seed, (task, names) in enumerate(TASKS.items(), start=1):
        (folder / "experts" / task).mkdir(parents=True)
        tensors = {name: x.half().contiguous() for name, x in expert_of(base, seed).items()}
        save_file(tensors, folder / "experts" / task / EXPERT_FILE)
        write_images(folder / "data" / task, names, seed)
    (folder / "tiny.json").write_text(json.dumps(described(folder), indent=1))
    return TinySuite(folder)


@dataclass(frozen=True)
class TinyVisual:
    """An image tower of open_clip, a :class:`Tower` of its weights, two experts and their samples."""

    visual: Any
    tower: Tower
    experts: dict[str, dict[str, Tensor]]
    inputs: dict[str, Tensor]

    def checkpoint(self) -> dict[str, Tensor]:
        """The tower's merged tensors by checkpoint name."""
        return {
            self.tower.keys[n]: p.detach().clone()
            for n, p in self.tower.named_parameters()
            if self.tower.keys[n] not in self.tower.shared
        }


def make_visual() -> TinyVisual:
    """A tower whose parameters all differ from their initial zeros and ones."""
    visual = small_clip(7).visual
    g = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=g)
    base = {name: x for name, x in visual.state_dict().items() if name != "proj"}
    experts = {task: expert_of(base, seed) for seed, task in enumerate(("fruit", "birds"), start=20)}
    inputs = {task: torch.randn(n, 3, 16, 16, generator=g) for task, n in (("fruit", 20), ("birds", 13))}
    return TinyVisual(visual, tower(visual), experts, inputs)
