"""Rehearsal suites: the bundled ones with the replica's sample counts, marked so as never to be results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import suites
from tests.hub.data import DATA

NAMES = ("clip-vit-b32-8", "clip-vit-l14-20")  # the paper's


def rehearsal(name: str) -> dict[str, Any]:
    """A bundled suite as a file's content: ids, columns, class names and prompts are untouched.

    Besides the sample counts of data sets, a comparison's calibration samples become those that there are.
    """
    content: dict[str, Any] = json.loads((suites.FOLDER / f"{name}.json").read_bytes())
    for entry, task in zip(content["tasks"], suites.load(name).tasks, strict=True):
        counts = DATA[task.task].splits
        here = {"train_size": counts[task.dataset.train_split], "eval_size": counts[task.dataset.eval_split]}
        entry["dataset"] = {**task.dataset.model_dump(), **here}
    most = min(entry["dataset"]["train_size"] for entry in content["tasks"])
    for comparison in content["comparisons"].values():
        comparison["samples"] = min(comparison["samples"], most)
    return {**content, "rehearsal": True}


def write_suites(folder: Path) -> list[Path]:
    """``NAME.json`` of each of the paper's CLIP suites."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json" for name in NAMES]
    for name, file in zip(NAMES, files, strict=True):
        file.write_text(json.dumps(rehearsal(name), indent=1, ensure_ascii=False), encoding="utf-8")
    return files
