"""Small made-up records and result folders for the tests of `results`."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.folder import RunFolder
from results.records import LayerResult, Manifest, Record, TaskResult

Correct = dict[str, NDArray[np.bool_]]


def make_key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def make_correct(accuracies: Mapping[str, float] | None = None, samples: int = 200) -> Correct:
    """The first samples of each task are right, so that a better method is right wherever a worse one is."""
    accuracies = accuracies or {"digits": 0.8, "shapes": 0.6}
    return {task: np.arange(samples) < round(value * samples) for task, value in accuracies.items()}


def make_record(correct: Correct, name: str = "cell", **changes: Any) -> Record:
    tasks = {task: TaskResult(value=float(got.mean()), samples=got.size) for task, got in correct.items()}
    fields: dict[str, Any] = {
        "key": make_key(name),
        "suite": "toy",
        "suite_version": 1,
        "device": "cpu",
        "dtype": "float32",
        "pinned": True,
        "kind": "method",
        "merge": "ties",
        "method": "gptq",
        "rounding": "gptq",
        "target": "merged",
        "bits": 4,
        "axes": {"group_size": None, "symmetric": False, "samples": 256},
        "seed": 0,
        "tasks": tasks,
        "average": float(np.mean([task.value for task in tasks.values()])),
        "layers": [LayerResult(name="block.0", rows=8, columns=4, objective=0.25)],
        "seconds": {"quantise": 0.1},
        "peak_memory_bytes": 1000,
        "bits_per_weight": 4.25,
    }
    return Record(**{**fields, **changes})


def make_manifest(**changes: Any) -> Manifest:
    fields = {"suite": "toy", "suite_version": 1, "created": "2025-01-01T00:00:00Z"}
    return Manifest(**{**fields, **changes})


def make_folder(path: Path, *cells: tuple[Record, Correct], **manifest: Any) -> RunFolder:
    folder = RunFolder.open(path, make_manifest(**manifest), create=True)
    for record, correct in cells:
        folder.append(record, correct)
    return folder


def command(module: Any, *arguments: object) -> int:
    """The exit status of a command of one `cli_*` module."""
    parser = argparse.ArgumentParser()
    module.add_to(parser.add_subparsers(required=True))
    options = parser.parse_args([str(argument) for argument in arguments])
    return int(options.command(options))


def asking(*cells: tuple[Record, Correct]) -> dict[str, Any]:
    """What a manifest's `asked` holds where these cells were asked for."""
    names = ("key", "kind", "merge", "method", "target", "bits")
    return {"cells": [{name: getattr(record, name) for name in names} for record, _ in cells]}


def make_cell(
    name: str, accuracies: Mapping[str, float] | None = None, **changes: Any
) -> tuple[Record, Correct]:
    correct = make_correct(accuracies)
    return make_record(correct, name, **changes), correct
