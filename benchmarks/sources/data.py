"""A task's samples: loaded by ``datasets``, checked against the suite, drawn for calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from datasets import Dataset, Image, load_dataset

from benchmarks.suites.forms import DatasetSpec, ImageTask, TaskSpec, TextTask
from benchmarks.suites.load import locate
from benchmarks.suites.prompt import TaskFile
from epmq.checkpoints.lazy import sha256
from epmq.errors import UserError

if TYPE_CHECKING:  # text suites do not wait for open_clip
    pass

DATA_FILES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".tsv"}  # of a local data set
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def loaded(task: TaskSpec, split: str, arguments: Mapping[str, Any]) -> tuple[Dataset, str]:
    """A split, loaded by ``datasets`` with ``arguments``, and what to call it in errors.

    Raises:
        UserError: the data cannot be loaded, lack a column or differ in count from what the suite says.
    """
    spec, where = task.dataset, located(task, split)
    try:
        with quietly():
            data = load_dataset(**arguments)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = ": ".join(str(part).rstrip(".") for part in (error, error.__cause__) if part)
        raise UserError(f"{where} cannot be loaded: {reason}; check the path and split") from error
    refuse_other_columns(task, data.column_names, where)
    expected = {spec.train_split: spec.train_size, spec.eval_split: spec.eval_size}[split]
    if expected is not None and len(data) != expected:
        raise UserError(f"{where} has {len(data)} samples, the suite says {expected}; is it another version?")
    return data, where


def located(task: TaskSpec, split: str) -> str:
    """What to call a split in errors."""
    return f"data set {task.task} ({task.dataset.path}, {split})"


def refuse_other_columns(task: TaskSpec, there: list[str], where: str) -> None:
    """Refuse data that lack a column; raises UserError."""
    for column in (*task.dataset.inputs, task.dataset.label_column):
        if column not in there:
            raise UserError(f"{where} has no column {column!r}, only {there}; correct the suite")


def open_images(task: ImageTask, split: str, arguments: Mapping[str, Any]) -> Dataset:
    """A split of images, with columns, labels and size as the suite says.

    Raises:
        UserError: see :func:`loaded`; or a column holds no images, or a label is out of range.
    """
    data, where = loaded(task, split, arguments)
    column, classes = task.dataset.image_column, len(task.class_names)
    if not isinstance(data.features[column], Image):
        raise UserError(f"{where}: column {column!r} holds no images; correct the suite")
    for label in data[task.dataset.label_column][:]:
        if not isinstance(label, int) or not 0 <= label < classes:
            raise UserError(f"{where} has label {label!r}, outside 0..{classes - 1}; correct the class names")
    return data


def open_texts(task: TextTask, read: TaskFile, split: str, arguments: Mapping[str, Any]) -> Dataset:
    """A split of texts, with the columns of the prompt, labels and size as suite and task file say.

    Raises:
        UserError: see :func:`loaded`; or a field of the prompt or a label is not what the data hold.
    """
    data, where = loaded(task, split, arguments)
    read.require(data.column_names, where)
    read.check(data[task.dataset.label_column][:], where)
    return data


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars of ``datasets``, for the short local loads."""
    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


def sample_ids(task: TaskSpec, size: int, count: int, seed: int) -> list[int]:
    """Row numbers of a task's calibration samples: a seeded draw from the ``size`` rows of its train split.

    Labels are not seen.

    Raises:
        UserError: more samples asked for than the split has.
    """
    if not 1 <= count <= size:
        raise UserError(
            f"{count} calibration samples asked for, task {task.task!r} has {size} to draw from; "
            f"give 1 to {size}"
        )
    return draw(task.task, size, count, seed)


def draw(name: str, size: int, count: int, seed: int) -> list[int]:
    """``count`` different numbers below ``size``, by seed and name; a smaller draw begins a larger one."""
    key = hashlib.sha256(f"{name}:{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
    return [int(i) for i in torch.randperm(size, generator=generator)[:count]]


def digest(ids: list[int]) -> str:
    """SHA-256 of the calibration row numbers."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def revision(spec: DatasetSpec) -> str:
    """The pinned commit of a hub data set, or one SHA-256 over the files of a local one."""
    folder = locate(spec.path)
    if not folder.is_dir():
        return spec.revision or "unpinned"
    found = sorted(f for f in folder.rglob("*") if f.is_file() and _holds_samples(f))
    files = {f.relative_to(folder).as_posix(): sha256(f) for f in found}
    return hashlib.sha256(" ".join(f"{name}:{found}" for name, found in files.items()).encode()).hexdigest()


def _holds_samples(file: Path) -> bool:
    return bool(DATA_FILES & set(file.suffixes)) or file.suffix.lower() in PICTURES
