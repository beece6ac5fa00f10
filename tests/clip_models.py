"""One tiny CLIP in the folders of both libraries, experts of it in any layout, and suites that name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.clip import ClipModels, open_models
from benchmarks.sources import Sources
from benchmarks.suites import ClipSuite
from tests import tiny_clip
from tests.tiny_clip import State

TASKS = {"fruit": ["apple", "pear", "fig"], "birds": ["crow", "T - shirt / top"]}
TEMPLATES = ["a photo of a {c}.", "a blurry drawing of the {c}, a type of thing."]


@dataclass(frozen=True)
class Written:
    """Folders of one model in the layouts of both libraries, and experts of it as ``CLIPModel`` states."""

    folder: Path
    model: Any
    experts: dict[str, State]

    def suite(self, library: str, experts: Path, **changes: Any) -> ClipSuite:
        tasks = [
            {
                "task": task,
                "dataset": {
                    "path": "unused",
                    "config": None,
                    "revision": None,
                    "train_split": "train",
                    "eval_split": "test",
                    "image_column": "image",
                    "label_column": "label",
                    "train_size": 1,
                    "eval_size": 1,
                    "licence": "CC0-1.0",
                },
                "expert": str(experts / task),
                "class_names": names,
                "templates": TEMPLATES,
            }
            for task, names in TASKS.items()
        ]
        described = {
            "name": "tiny",
            "version": 1,
            "kind": "clip",
            "description": "",
            "library": library,
            "image_processor": "slow" if library == "transformers" else None,
            "base": str(self.folder / library),
            "metric": "top-1 accuracy",
            "comparisons": {},
            "checkpoints": {},
            "tasks": tasks,
        }
        return ClipSuite.model_validate({**described, **changes})

    def write_experts(self, folder: Path, layout: Callable[[State], State], name: str) -> Path:
        for task, state in self.experts.items():
            (folder / task).mkdir(parents=True)
            if name.endswith((".bin", ".pt")):
                torch.save(layout(state), folder / task / name)
            else:
                save_file(layout(state), folder / task / name)
        return folder


def write(folder: Path) -> Written:
    """Write the base for both libraries."""
    model = tiny_clip.model()
    state = tiny_clip.tensors(model)
    tiny_clip.write_transformers(model, folder / "transformers")
    tiny_clip.write_open_clip(tiny_clip.as_open_clip(state), folder / "open_clip")
    vision = {name: x for name, x in state.items() if name.startswith("vision_model.")}
    experts = {task: {**state, **tiny_clip.expert(vision, seed)} for seed, task in enumerate(TASKS, start=1)}
    return Written(folder, model, experts)


def opened(suite: ClipSuite) -> ClipModels:
    return open_models(suite, Sources(suite, None))
