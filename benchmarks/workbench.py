"""A suite's models and data, opened and checked once, from which any cell is computed."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks import cache, data
from benchmarks.cells import Cell
from benchmarks.clip import open_models
from benchmarks.images import Images, decoded
from benchmarks.lock import Lock
from benchmarks.machine import Machine
from benchmarks.merged import MergedWeights
from benchmarks.sources import Sources
from benchmarks.suites import Suite, TaskSpec, fingerprint
from epmq.tower import Tower
from epmq.walk import layer_groups


@dataclass(frozen=True)
class Setting:
    """How a run computes: where, from which pinned revisions, with how much help.

    Attributes:
        lock: revisions and hashes that must be met; ``None`` without hub repositories, or unpinned.
        pinned: whether the revisions are fixed (a suite's bundled files are).
        together: models that are evaluated in one pass over the test images.
        workers: processes that decode images.
    """

    machine: Machine = field(default_factory=Machine)
    lock: Lock | None = None
    pinned: bool = True
    together: int = 1
    workers: int = min(8, os.cpu_count() or 1) - 1


class Bench:
    """A suite's models and data.

    Attributes:
        tower: the one tower of the run, on the run's device; every cell fills it with its own weights.
    """

    def __init__(self, suite: Suite, setting: Setting | None = None) -> None:
        self.suite, self.setting = suite, setting or Setting()
        self.sources = Sources(suite, self.setting.lock)
        self.models = open_models(suite, self.sources)
        self._splits = {
            (task.task, split): self._opened(task, split)
            for task in tqdm(suite.tasks, desc="loading data", leave=False, delay=2)
            for split in (task.dataset.train_split, task.dataset.eval_split)
        }
        self._calibration: tuple[tuple[int, int], data.CalibrationInputs] | None = None
        self.tower = self.models.tower.to(self.setting.machine.device)

    def _opened(self, task: TaskSpec, split: str) -> Dataset:
        rows = data.open_split(task, split, self.sources.arguments(task, split))
        self.sources.verify(task, split, rows)
        return rows

    @cached_property
    def revisions(self) -> dict[str, Any]:
        """Every model and data set by hash or commit."""
        return {
            "suite": fingerprint(self.suite),
            **self.models.revisions,
            "datasets": {
                t.task: self.sources.dataset_revision(t) or data.revision(t.dataset) for t in self.suite.tasks
            },
        }

    @cached_property
    def context(self) -> dict[str, Any]:
        """What every cell's key depends on besides the cell."""
        return {
            "suite": self.suite.name,
            "version": self.suite.version,
            "revisions": self.revisions,
            "preprocess": self.models.preprocess.description,
            "device": self.setting.machine.device.type,
            "dtype": self.setting.machine.dtype,
        }

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        """Zero-shot weights ``(classes, dim)`` by task."""
        tasks = tqdm(self.suite.tasks, desc="zero-shot heads", leave=False, delay=2)
        return {task.task: self.models.head(task) for task in tasks}

    @cached_property
    def test_sets(self) -> dict[str, Images]:
        """Decoded test images by task."""
        return {task.task: self.images(task, task.dataset.eval_split) for task in self.suite.tasks}

    def images(self, task: TaskSpec, split: str, ids: list[int] | None = None) -> Images:
        """Decoded images of a split, or of some of its rows."""
        rows = self._splits[task.task, split]
        spec = task.dataset
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

    def train_size(self, task: TaskSpec) -> int:
        """Samples that calibration can draw from."""
        return len(self._splits[task.task, task.dataset.train_split])

    def sample_ids(self, task: TaskSpec, samples: int, seed: int) -> list[int]:
        """Rows of the train split that calibrate a task; raises UserError if it has fewer."""
        return data.sample_ids(task, self.train_size(task), samples, seed)

    def calibration_inputs(self, samples: int, seed: int) -> data.CalibrationInputs:
        """Calibration images per task; labels are not used. The last draw is kept."""
        if self._calibration is None or self._calibration[0] != (samples, seed):
            found = {
                t.task: self.images(t, t.dataset.train_split, self.sample_ids(t, samples, seed)).all()
                for t in self.suite.tasks
            }
            inputs = data.CalibrationInputs(found, self.models.preprocess, self.setting.machine.device)
            self._calibration = (samples, seed), inputs
        return self._calibration[1]

    @cached_property
    def _merges(self) -> MergedWeights:
        experts = list(self.models.experts.values())
        return MergedWeights(self.models.base, experts, cache.folder("merged"), self.models.revisions)

    def merged(self, name: str, options: Mapping[str, Any]) -> Tower:
        """The tower, filled with a merge of the experts."""
        self._merges.load(self.tower, name, options)
        return self.tower

    def kept(self, tower: Tower) -> Tower:
        """A tower that later cells do not overwrite: a copy, unless every cell is evaluated on its own."""
        return tower if self.setting.together == 1 else copy.deepcopy(tower)

    def check(self, cell: Cell) -> None:
        """Refuse a cell that cannot be computed, before any work; raises UserError."""
        if cell.samples is not None:
            for task in self.suite.tasks:
                self.sample_ids(task, cell.samples, cell.seed)
        if cell.calibration is not None:
            for index, group in layer_groups(self.tower, cell.calibration.layers).values():
                weight = self.tower.blocks[index].get_parameter(f"{group[0]}.weight")
                if cell.spec is not None:
                    cell.spec.columns_per_group(weight.shape[1])
