"""The workbench of a CLIP suite: image towers under zero-shot heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from benchmarks.images.decoded import Images, decoded
from benchmarks.images.models import ClipModels, open_models
from benchmarks.images.predict import predictions
from benchmarks.sources import cache, data
from benchmarks.suites.forms import ClipSuite, ImageTask, TaskSpec
from benchmarks.workbench.base import Answers, Workbench
from epmq.gather.passes import Batches
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.objective import FeatureDistance, Objective
from epmq.refinement.samples import Rows

if TYPE_CHECKING:  # text suites do not wait for open_clip
    from benchmarks.images.preprocess import Preprocess


class ImageWorkbench(Workbench):
    """A CLIP suite's models and data."""

    suite: ClipSuite
    models: ClipModels

    def _open_models(self) -> None:
        self.models = open_models(self.suite, self.sources)

    def _open_split(self, task: ImageTask, split: str) -> Dataset:
        return data.open_images(task, split, self.sources.arguments(task, split))

    @property
    def preprocess(self) -> dict[str, Any]:
        return self.models.preprocess.description

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        """Zero-shot weights ``(classes, dim)`` by task."""
        tasks = tqdm(self.suite.tasks, desc="zero-shot heads", leave=False, delay=2)
        return {task.task: self.models.head(task) for task in tasks}

    @cached_property
    def test_sets(self) -> dict[str, Images]:
        """Decoded test images by task."""
        return {task.task: self.images(task, task.dataset.eval_split) for task in self.suite.tasks}

    def images(self, task: ImageTask, split: str, ids: list[int] | None = None) -> Images:
        """Decoded images of a split, or of some of its rows."""
        rows, spec = self.rows(task, split), task.dataset
        return decoded(
            rows if ids is None else rows.select(ids),
            (spec.image_column, spec.label_column),
            self.models.preprocess,
            cache.folder("images"),
            identity={
                "path": spec.path,
                "config": spec.config,
                "revision": self.revisions["datasets"][task.task],
                "split": split,
                "rows": "all" if ids is None else data.digest(ids),
            },
            what=f"{task.task} ({spec.path}, {split})",
            workers=self.setting.workers,
        )

    def inputs(self, ids: Mapping[str, list[int]], decoder: str | None) -> Mapping[str, Batches]:
        found = {t.task: self.images(t, t.dataset.train_split, ids[t.task]).all() for t in self.suite.tasks}
        return CalibrationInputs(found, self.models.preprocess, self.setting.machine.device)

    def calibration_rows(self, samples: int, seed: int, decoder: str | None) -> Mapping[str, Rows]:
        inputs = self.calibration_inputs(samples, seed, decoder)
        assert isinstance(inputs, CalibrationInputs)
        return {task: inputs.rows(task) for task in inputs}

    def objective(self, budget: Budget) -> Objective:
        """Squared distance of unit-norm features, and of class tokens between blocks."""
        return FeatureDistance(budget.intermediate)

    def features(self, tower: Tower, batch: Any) -> Tensor:
        """Image features of unit norm."""
        return F.normalize(tower(batch), dim=-1)

    def answers(self, towers: Sequence[Tower], task: TaskSpec) -> list[Answers]:
        """All towers in one pass over the test images."""
        machine, images = self.setting.machine, self.test_sets[task.task]
        ready = [machine.ready(tower) for tower in towers]
        found = predictions(ready, self.heads[task.task], images, self.models.preprocess, machine)
        return [Answers(classes, images.labels) for classes in found]


class CalibrationInputs(Mapping[str, Tensor]):
    """Calibration images per task as model inputs ``(n, 3, h, w)`` float32, made when they are asked for."""

    def __init__(self, images: Mapping[str, Tensor], preprocess: Preprocess, device: torch.device) -> None:
        self._images, self._preprocess, self._device = images, preprocess, device

    def __getitem__(self, task: str) -> Tensor:
        return self._preprocess.normalise(self._images[task].to(self._device))

    def rows(self, task: str) -> ImageRows:
        """A task's images, normalised batch by batch."""
        return ImageRows(self._images[task], self._preprocess, self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


@dataclass(frozen=True)
class ImageRows:
    """Decoded images of one task ``(n, 3, h, w)`` uint8, which become model inputs a batch at a time."""

    images: Tensor
    preprocess: Preprocess
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor) -> Tensor:
        """Model inputs of the images at ``index``, float32."""
        return self.preprocess.normalise(self.images[index].to(self.device))
