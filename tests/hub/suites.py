"""Rehearsal suites: the bundled ones with the replica's sample counts, marked so as never to be results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.suites import forms, prompt
from benchmarks.suites import load as suites
from benchmarks.suites.forms import TaskSpec
from tests.hub import text_data
from tests.hub.data import DATA

NAMES = ("clip-vit-b32-8", "clip-vit-l14-20")  # the paper's, of images
TEXT_NAMES = ("flan-t5-base-glue8", "flan-t5-base-glue8-lora16")


def rehearsal(name: str) -> dict[str, Any]:
    """A bundled suite as a file's content: ids, columns, class names and prompts are untouched.

    Besides the sample counts of data sets, a comparison's calibration samples become as many as there are.
    """
    content: dict[str, Any] = json.loads((forms.FOLDER / f"{name}.json").read_bytes())
    for entry, task in zip(content["tasks"], suites.load(name).tasks, strict=True):
        counts = splits(task)
        here = {"train_size": counts[task.dataset.train_split], "eval_size": counts[task.dataset.eval_split]}
        entry["dataset"] = {**task.dataset.model_dump(), **here}
    most = min(entry["dataset"]["train_size"] for entry in content["tasks"])
    for comparison in content["comparisons"].values():
        comparison["samples"] = most
    return {**content, "rehearsal": True}


def splits(task: TaskSpec) -> dict[str, int]:
    """The replica's number of samples in each split of a task's data set."""
    if task.dataset.path == text_data.REPOSITORY:
        return text_data.TABLES[str(task.dataset.config)].splits
    return DATA[task.task].splits


def write_lm_tasks(folder: Path, names: Sequence[str]) -> list[Path]:
    """Bundled GLUE task files which name their data themselves, as ``epmq run lm`` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.yaml" for name in names]
    for name, file in zip(names, files, strict=True):
        data = {"dataset_path": text_data.REPOSITORY, "dataset_name": name}
        data |= {"training_split": "train", "validation_split": "validation"}
        lines = "".join(f"{field}: {value}\n" for field, value in data.items())
        bundled = (prompt.PROMPTS / "glue8" / f"{name}.yaml").read_text(encoding="utf-8")
        file.write_text(lines + bundled, encoding="utf-8")
    return files


def write_suites(folder: Path, names: Sequence[str] = NAMES) -> list[Path]:
    """``NAME.json`` of each suite."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json" for name in names]
    for name, file in zip(names, files, strict=True):
        file.write_text(json.dumps(rehearsal(name), indent=1, ensure_ascii=False), encoding="utf-8")
    return files
