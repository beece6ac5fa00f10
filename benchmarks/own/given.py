"""A workbench over samples that were drawn already: it calibrates, and there is nothing to test on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset

from benchmarks.own.models import OwnSources
from benchmarks.own.samples import Samples
from benchmarks.suites.forms import Suite, TaskSpec
from benchmarks.workbench.base import Setting, Workbench


class GivenSamples(Workbench):
    """What both kinds have: samples that were drawn already, and no fingerprint of a suite."""

    def __init__(
        self, suite: Suite, setting: Setting, sources: OwnSources, samples: Mapping[str, Samples]
    ) -> None:
        self._given = samples
        super().__init__(suite, setting, sources)

    def _open_split(self, task: Any, split: str) -> Dataset:
        return self._given[task.task].rows

    def sample_ids(self, task: TaskSpec, samples: int, seed: int) -> list[int]:
        """All rows: they are the draw."""
        return list(range(self.train_size(task)))

    @cached_property
    def revisions(self) -> dict[str, Any]:
        """Of every model, and of every task's samples."""
        found = {task: given.revision for task, given in self._given.items()}
        return {**self.models.revisions, "datasets": found}
