"""A suite's models and data, opened and checked once, from which any cell is computed."""

from __future__ import annotations

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.sources import cache, data
from benchmarks.sources.fetch import Sources
from benchmarks.sources.lock import Lock
from benchmarks.suites.forms import Suite, TaskSpec
from benchmarks.suites.load import fingerprint
from benchmarks.workbench.machine import Machine
from benchmarks.workbench.merged import MergedWeights
from epmq.gather.passes import Batches
from epmq.merging import known
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.descent import Lessons, teach
from epmq.refinement.objective import Objective
from epmq.refinement.samples import Rows
from results.store.samples import spearman


@dataclass(frozen=True)
class Setting:
    """How a run computes: where, from which pinned revisions, with how much help.

    Attributes:
        lock: revisions and hashes that must be met; ``None`` without hub repositories, or unpinned.
        pinned: whether the revisions are fixed (a suite's bundled files are).
        together: models that are evaluated in one pass over the test images.
        workers: processes that decode images.
        keep_models: whether the models of computed cells are kept in the cache.
    """

    machine: Machine = field(default_factory=Machine)
    lock: Lock | None = None
    pinned: bool = True
    together: int = 1
    workers: int = min(8, os.cpu_count() or 1) - 1
    keep_models: bool = False


@dataclass(frozen=True)
class Models:
    """Everything of a suite that is a model.

    Attributes:
        tower: the base, float32 on the CPU.
        base: its merged tensors; ``experts``: the same tensors per task, read lazily.
        revisions: of the base and of the expert of each task.
    """

    tower: Tower
    base: Mapping[str, Tensor]
    experts: dict[str, Mapping[str, Tensor]]
    revisions: dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """What a model said on a task's test samples, and what is right, each ``(n,)`` in the data set's order.

    Classes are integers (-1 where a text is none of the task's answers), scores are float64. ``ranked`` has,
    of generated classes, those whose answer is the likeliest: plainly, and by the answer's length.
    """

    predicted: NDArray[Any]
    actual: NDArray[Any]
    metric: Literal["accuracy", "spearman"] = "accuracy"
    ranked: tuple[NDArray[Any], NDArray[Any]] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which samples are right; only of classes."""
        found: NDArray[np.bool_] = self.predicted == self.actual
        return found

    @property
    def value(self) -> float:
        """Accuracy, or Spearman's rho, which is 0 where either side is constant."""
        if self.metric == "accuracy":
            return float(self.correct.mean())
        return spearman(self.predicted, self.actual)


class Workbench(ABC):
    """A suite's models and data; the workbenches of images and of texts fill it.

    Attributes:
        tower: the one tower of the run, on the run's device; every cell fills it with its own weights.
    """

    models: Models

    def __init__(self, suite: Suite, setting: Setting | None = None, sources: Sources | None = None) -> None:
        self.suite, self.setting = suite, setting or Setting()
        self.sources = sources or Sources(suite, self.setting.lock)
        self._open_models()
        self._splits = {
            (task.task, split): self._opened(task, split)
            for task in tqdm(suite.tasks, desc="loading data", leave=False, delay=2)
            for split in (task.dataset.train_split, task.dataset.eval_split)
        }
        self._lessons: tuple[tuple[Any, ...], Lessons] | None = None
        self._calibration: tuple[tuple[Any, ...], Mapping[str, Batches]] | None = None
        self.tower = self.models.tower.to(self.setting.machine.device)

    @abstractmethod
    def _open_models(self) -> None:
        """Set ``models``; raises UserError for a model that is not what the suite says."""

    @abstractmethod
    def _open_split(self, task: Any, split: str) -> Dataset:
        """A split, checked; raises UserError."""

    @abstractmethod
    def inputs(self, ids: Mapping[str, list[int]], decoder: str | None) -> Mapping[str, Batches]:
        """Model inputs of rows of the train splits, per task; ``decoder`` is for text suites."""

    @abstractmethod
    def calibration_rows(self, samples: int, seed: int, decoder: str | None) -> Mapping[str, Rows]:
        """The calibration samples of :meth:`calibration_inputs`, which make batches when asked."""

    @abstractmethod
    def objective(self, budget: Budget) -> Objective:
        """The distance to the experts that a refinement makes smaller."""

    @abstractmethod
    def features(self, tower: Tower, batch: Any) -> Tensor:
        """What a model makes of a batch without labels: a unit vector per sample, ``(n, dim)``."""

    @abstractmethod
    def answers(self, towers: Sequence[Tower], task: TaskSpec) -> list[Answers]:
        """What each tower says on a task's test samples."""

    @property
    @abstractmethod
    def preprocess(self) -> dict[str, Any]:
        """How samples become a model's inputs; JSON."""

    def _opened(self, task: TaskSpec, split: str) -> Dataset:
        rows = self._open_split(task, split)
        self.sources.verify(task, split, rows)
        return rows

    def rows(self, task: TaskSpec, split: str) -> Dataset:
        """The samples of a split."""
        return self._splits[task.task, split]

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
            "preprocess": self.preprocess,
            "device": self.setting.machine.device.type,
            "dtype": self.setting.machine.dtype,
        }

    def train_size(self, task: TaskSpec) -> int:
        """Samples that calibration can draw from."""
        return len(self.rows(task, task.dataset.train_split))

    def sample_ids(self, task: TaskSpec, samples: int, seed: int) -> list[int]:
        """Rows of the train split that calibrate a task; raises UserError if it has fewer."""
        return data.sample_ids(task, self.train_size(task), samples, seed)

    def calibration_inputs(
        self, samples: int, seed: int, decoder: str | None = None
    ) -> Mapping[str, Batches]:
        """Calibration inputs per task; the last draw is kept.

        ``decoder`` is what the decoder of an encoder-decoder reads (see ``cells.DECODERS``).
        """
        wanted = samples, seed, decoder
        if self._calibration is None or self._calibration[0] != wanted:
            ids = {task.task: self.sample_ids(task, samples, seed) for task in self.suite.tasks}
            self._calibration = wanted, self.inputs(ids, decoder)
        return self._calibration[1]

    def lessons(self, samples: int, seed: int, decoder: str | None, budget: Budget) -> Lessons:
        """Calibration samples and what the experts make of them; the last are kept."""
        objective = self.objective(budget)
        wanted = samples, seed, decoder, objective
        if self._lessons is None or self._lessons[0] != wanted:
            rows = self.calibration_rows(samples, seed, decoder)
            taught = teach(self.tower, self.models.experts, rows, objective)
            self._lessons = wanted, Lessons(rows, taught, objective, seed)
        return self._lessons[1]

    @cached_property
    def _merges(self) -> MergedWeights:
        experts = list(self.models.experts.values())
        return MergedWeights(self.models.base, experts, cache.folder("merged"), self.models.revisions)

    def merged(self, name: str, options: Mapping[str, Any]) -> Tower:
        """The tower, filled with a merge of the experts."""
        takes = inspect.signature(known()[name]).parameters
        tied = (
            {"multiplicity": self.tower.multiplicity} if self.tower.tied and "multiplicity" in takes else {}
        )
        self._merges.load(self.tower, name, {**options, **tied})
        return self.tower

    def kept(self, tower: Tower) -> Tower:
        """A tower that later cells do not overwrite: a copy, unless every cell is evaluated on its own."""
        return tower if self.setting.together == 1 else copy.deepcopy(tower)
