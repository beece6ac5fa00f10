"""How the axes' defaults were chosen: on training samples without their labels, never on a test sample.

``python -m benchmarks.studies.tune micro-clip-8 --out FILE`` walks every setting of a small grid on the
calibration samples and scores it on *other* training samples of the same tasks by how far the quantised model
is from the task's expert: the mean over tasks of E||z_Q - z_t||^2 for unit vectors z. Of an image tower they
are its normalised features, of a language model the square roots of the first answer token's probabilities
(so the distance is twice the squared Hellinger distance).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

import baselines
from benchmarks.run.compute import solver
from benchmarks.run.executors import open_bench
from benchmarks.suites import load as suites
from benchmarks.workbench.base import Bench
from epmq.calibration import Calibration
from epmq.layer.spec import QuantSpec
from epmq.models.tower import Tower
from epmq.walk import Batches, walk

ANCHORS = (0.0, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
MIXINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
MERGES = ("task-arithmetic", "ties")


def held_out(bench: Bench, samples: int, count: int) -> Mapping[str, Batches]:
    """Training samples that calibration with ``samples`` at seed 0 does not use, ``count`` a task at most."""
    ids = {}
    for task in bench.suite.tasks:
        size = bench.train_size(task)
        order = bench.sample_ids(task, min(samples + count, size), 0)  # the calibration draw is its beginning
        ids[task.task] = order[samples:]
    return bench.inputs(ids, "start" if bench.suite.kind == "text" else None)


@torch.inference_mode()
def features(bench: Bench, tower: Tower, inputs: Batches) -> Tensor:
    """Unit vectors ``(n, dim)``."""
    batches = inputs.split(256) if isinstance(inputs, Tensor) else inputs
    return torch.cat([bench.features(tower, part) for part in batches])


def distance(bench: Bench, tower: Tower, held: Mapping[str, Batches], experts: Mapping[str, Tensor]) -> float:
    """Mean over tasks of the squared distance to the expert's unit vectors."""
    each = [
        float(((features(bench, tower, x) - experts[task]) ** 2).sum(1).mean()) for task, x in held.items()
    ]
    return sum(each) / len(each)


def search(bench: Bench, bits: int, samples: int) -> Iterator[dict[str, Any]]:
    """A row per merge and setting: its axes and its distance."""
    inputs = bench.calibration_inputs(samples, 0, "experts" if bench.suite.kind == "text" else None)
    held = held_out(bench, samples, 256)
    experts = {t: features(bench, bench.tower.load_all(e), held[t]) for t, e in bench.models.experts.items()}
    gptq = solver(baselines.get("gptq"), QuantSpec(bits))
    settings = [Calibration()] + [
        Calibration("expert", mixing=mixing, anchor=anchor) for mixing, anchor in product(MIXINGS, ANCHORS)
    ]
    for merge, calibration in tqdm(list(product(MERGES, settings)), desc="settings"):
        tower = bench.merged(merge, {})
        for _ in walk(tower, bench.models.experts, inputs, calibration, gptq):
            pass
        yield {
            "merge": merge,
            "bits": bits,
            **asdict(calibration),
            "distance": distance(bench, tower, held, experts),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128, help="calibration samples per task (default 128)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    rows = list(search(open_bench(suites.load(options.suite)), options.bits, options.samples))
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    shown = [[r["merge"], r["target"], r["mixing"], r["anchor"], r["distance"]] for r in rows]
    print(
        tabulate(
            shown,
            ["merge", "target", "mixing", "anchor", "distance"],
            "pipe",
            floatfmt=("", "", "g", "g", ".4f"),
        )
    )


if __name__ == "__main__":
    main()
