"""A CLIP suite's models: the base's image tower, zero-shot heads, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.images import from_transformers
from benchmarks.images.preprocess import Preprocess
from benchmarks.images.zero_shot import Base, Encode, zero_shot_head
from benchmarks.sources.fetch import Fetched, Sources
from benchmarks.sources.resolve import model_files
from benchmarks.sources.weights import readable
from benchmarks.suites.forms import ClipSuite, ImageTask
from benchmarks.workbench.base import Models
from epmq.checkpoints.lazy import LazyCheckpoint, check_expert, check_finite
from epmq.checkpoints.lora import CONFIG, lora_merged
from epmq.experts import merged_tensors

BASE_FILE = "open_clip_model.safetensors"
EXPERT_FILE = "model.safetensors"
T = TypeVar("T")


class Heads:
    """Zero-shot weights of a suite's tasks, all made at the first request; then the text tower is let go."""

    def __init__(self, open_text: Callable[[], Encode], tasks: Sequence[ImageTask]) -> None:
        self._open_text: Callable[[], Encode] | None = open_text
        self._tasks = tasks
        self._made: dict[str, Tensor] = {}

    def __call__(self, task: ImageTask) -> Tensor:
        """Weights ``(classes, dim)`` of a task, float32 with rows of length 1."""
        if self._open_text is not None:
            encode = self._open_text()
            for each in _shown("encoding prompts", self._tasks):
                self._made[each.task] = zero_shot_head(encode, each)
            self._open_text = None
        return self._made[task.task]


@dataclass(frozen=True)
class ClipModels(Models):
    """The models of a CLIP suite; the tower is the base's image tower.

    Attributes:
        preprocess: a picture to the tower's input.
        head: zero-shot weights ``(classes, dim)`` of a task.
    """

    preprocess: Preprocess
    head: Callable[[ImageTask], Tensor]


def open_models(suite: ClipSuite, sources: Sources) -> ClipModels:
    """Open a suite's models; every expert is read once and checked against the base.

    Raises:
        UserError: a model is missing, damaged, not the pinned one, or an expert does not fit the base.
    """
    origin = sources.model(suite.base, model_files(suite, suite.base))
    fetched = {t.task: sources.model(t.expert, model_files(suite, t.expert)) for t in suite.tasks}
    base = _open_base(suite, origin)
    opened: dict[str, Mapping[str, Tensor]] = {}
    for task, found in fetched.items():  # all headers, before the first long look at a file
        opened[task] = _expert(found, base)
    check_finite(base.tensors, suite.base)
    for task, found in _shown("checking experts", list(fetched.items())):
        check_expert(base.tensors, opened[task], str(found.folder))
    revisions = {"base": origin.revision, "experts": {task: x.revision for task, x in fetched.items()}}
    heads = Heads(base.open_text, suite.tasks)
    return ClipModels(base.tower, base.tensors, opened, revisions, base.preprocess, heads)


def _expert(found: Fetched, base: Base) -> Mapping[str, Tensor]:
    """A full expert as it is stored; a LoRA expert merged into the base."""
    if CONFIG in found.files:
        return lora_merged(base.tensors, found.folder)
    return merged_tensors(readable(found.folder, found.files), base.tower, str(found.folder))


def _open_base(suite: ClipSuite, origin: Fetched) -> Base:
    weights = readable(origin.folder, origin.files)
    LazyCheckpoint(weights)  # its header says more of a damaged file than a library does
    if suite.library == "open_clip":
        from benchmarks.images import from_open_clip  # which takes seconds, and the others do without

        return from_open_clip.open_base(origin.folder, weights)
    assert suite.image_processor is not None
    return from_transformers.open_base(origin.folder, weights, suite.image_processor)


def _shown(action: str, items: Sequence[T]) -> Iterable[T]:
    """The items, with a bar when they take their time."""
    return tqdm(items, desc=action, leave=False, delay=2)
