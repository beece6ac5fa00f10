"""A CLIP suite's models: base with text tower, zero-shot heads, experts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from benchmarks.data import Transform
from benchmarks.suites import PACKAGE, Suite, TaskSpec, locate
from epmq.checkpoint import LazyCheckpoint, Without, check_expert, sha256
from epmq.errors import UserError
from epmq.open_clip_vision import tower as vision_tower
from epmq.tower import Tower

BASE_FILE = "open_clip_model.safetensors"
EXPERT_FILE = "model.safetensors"


class ClipModels:
    """Everything of a suite that is a model.

    Attributes:
        tower: the base's vision tower.
        base: its merged tensors; ``experts``: the same tensors per task, read lazily.
        transform: the eval preprocessing, a PIL image to ``(3, h, w)``.
        revisions: SHA-256 of every checkpoint file.

    Raises:
        UserError: a checkpoint is missing, damaged, does not fit its base or has another SHA-256.
    """

    def __init__(self, suite: Suite) -> None:
        folder = locate(suite.base)
        files = {task.task: locate(task.expert) / EXPERT_FILE for task in suite.tasks}
        for file in (folder / BASE_FILE, *files.values()):
            LazyCheckpoint(file)  # all headers, before the first long look at a file
        self.revisions = {
            "base": _verified(suite, folder / BASE_FILE),
            "experts": {task: _verified(suite, file) for task, file in _shown("hashing", files)},
        }
        self._model: Any
        self.transform: Transform
        self._model, self.transform, self._tokenizer = _create(f"local-dir:{folder}")
        self.tower: Tower = vision_tower(self._model.visual)
        self.base: Mapping[str, Tensor] = Without(
            LazyCheckpoint(folder / BASE_FILE, "visual."), self.tower.shared
        )
        self.experts: dict[str, Mapping[str, Tensor]] = {}
        for task, file in _shown("checking", files):
            self.experts[task] = Without(LazyCheckpoint(file), self.tower.shared)
            check_expert(self.base, self.experts[task], str(file))

    @torch.no_grad()
    def head(self, task: TaskSpec) -> Tensor:
        """Zero-shot weights ``(classes, dim)``: normalise prompts, average, normalise again."""
        prompts = [t.replace("{c}", name) for name in task.class_names for t in task.templates]
        text = self._model.encode_text(self._tokenizer(prompts), normalize=True)
        return F.normalize(text.unflatten(0, (len(task.class_names), -1)).mean(1), dim=-1)


def _shown(action: str, files: dict[str, Path]) -> Iterable[tuple[str, Path]]:
    """The items, with a bar when they take their time."""
    return tqdm(files.items(), desc=f"{action} experts", leave=False, delay=2)


def _create(name: str) -> tuple[Any, Transform, Any]:
    try:
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads them
            model, transform = open_clip.create_model_from_pretrained(
                name, precision="fp32", return_transform=True
            )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a folder that does not hold together fails in any of many places
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"{name}: cannot be loaded by open_clip ({reason}); is the folder complete?"
        ) from error
    return model.eval(), transform, tokenizer


def _verified(suite: Suite, file: Path) -> str:
    """SHA-256 of a checkpoint file, compared with the suite's where it names one."""
    found = sha256(file)
    name = file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else str(file)
    expected = suite.checkpoints.get(name, found)
    if found != expected:
        raise UserError(
            f"{file}: SHA-256 is {found[:12]}..., the suite pins {expected[:12]}...; get the file again"
        )
    return found
