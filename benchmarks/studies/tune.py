"""How the axes' defaults were chosen: on training samples without their labels, never on a test sample.

``python -m benchmarks.studies.tune micro-clip-8 --out FILE`` walks every setting of a grid on the calibration
samples and scores it on *other* training samples of the same tasks by how far the quantised model
is from the task's expert: the mean over tasks of E||z_Q - z_t||^2 for unit vectors z. Of an image tower they
are its normalised features, of a language model the square roots of the first answer token's probabilities
(so the distance is twice the squared Hellinger distance).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm.auto import tqdm

import baselines
from baselines.recipes import FEATURES, Reading
from benchmarks.run.executors import open_workbench
from benchmarks.run.solvers import solver
from benchmarks.suites import load as suites
from benchmarks.workbench.base import Workbench
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.files import replacing
from epmq.gather.passes import Batches
from epmq.layer.spec import QuantSpec
from epmq.merging import options_of
from epmq.models.tower import Tower
from epmq.walk import walk

ANCHORS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MIXINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATCH_WEIGHTS = (0.01, 0.0)  # besides 1
MERGES = ("task-arithmetic", "ties")
AXES = ("target", "mixing", "anchor", "patch_weight")
READINGS: dict[Reading, str] = {"weights": "Reading A", "features": "Reading B"}


def held_out(workbench: Workbench, samples: int, count: int) -> Mapping[str, Batches]:
    """Training samples that calibration with ``samples`` at seed 0 does not use, ``count`` a task at most."""
    ids = {}
    for task in workbench.suite.tasks:
        size = workbench.train_size(task)
        # The calibration draw is its beginning.
        order = workbench.sample_ids(task, min(samples + count, size), 0)
        ids[task.task] = order[samples:]
    return workbench.inputs(ids, "start" if workbench.suite.kind == "text" else None)


@torch.inference_mode()
def features(workbench: Workbench, tower: Tower, inputs: Batches) -> Tensor:
    """Unit vectors ``(n, dim)``."""
    batches = inputs.split(256) if isinstance(inputs, Tensor) else inputs
    return torch.cat([workbench.features(tower, part) for part in batches])


def distance(
    workbench: Workbench, tower: Tower, held: Mapping[str, Batches], experts: Mapping[str, Tensor]
) -> float:
    """Mean over tasks of the squared distance to the expert's unit vectors."""
    each = [
        float(((features(workbench, tower, x) - experts[task]) ** 2).sum(1).mean())
        for task, x in held.items()
    ]
    return sum(each) / len(each)


class Trials:
    """What was tried on a suite, as ``tuning.json`` holds it: a row per merge and setting."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def find(self, merge: str, calibration: Calibration) -> dict[str, Any] | None:
        """The row of a setting."""
        wanted = {"merge": merge, **calibration.recorded}
        return next((row for row in self.rows if row.items() >= wanted.items()), None)

    def mean(self, calibration: Calibration) -> float:
        """The distance of a setting in the mean over merges; infinite where it was not tried."""
        found = [self.find(merge, calibration) for merge in MERGES]
        return sum(float(row["distance"]) if row else math.inf for row in found) / len(found)

    def best(self, settings: Iterable[Calibration]) -> Calibration:
        """The setting of the least distance; raises UserError where none was tried."""
        found = min(settings, key=self.mean)
        if self.mean(found) == math.inf:
            raise UserError("the search holds no setting of the grid; make it again with another --out")
        return found


def settings(reading: Reading) -> list[Calibration]:
    """Every mixing and anchor of a reading."""
    mixings = MIXINGS[:1] if reading == "weights" else MIXINGS[1:]
    return [Calibration("expert", mixing=a, anchor=b) for a, b in product(mixings, ANCHORS)]


def finer(trials: Trials, reading: Reading) -> list[Calibration]:
    """The best mixing and anchor of a reading with every weight of the other tokens."""
    best = trials.best(settings(reading))
    return [best, *(replace(best, patch_weight=weight) for weight in PATCH_WEIGHTS)]


def choose(trials: Trials) -> dict[Reading, dict[str, float]]:
    """The axes that trials speak for, by reading, where they are not the defaults of all suites."""
    chosen: dict[Reading, dict[str, float]] = {}
    for reading in READINGS:
        best = asdict(trials.best(finer(trials, reading)))
        plain = asdict(Calibration("expert")) | (FEATURES if reading == "features" else {})
        chosen[reading] = {name: best[name] for name in AXES[1:] if best[name] != plain[name]}
    return chosen


def search(workbench: Workbench, bits: int, samples: int, file: Path) -> Trials:
    """Try every setting; trials are kept in ``file`` as they are made, so that a killed search goes on."""
    inputs = workbench.calibration_inputs(samples, 0)
    held = held_out(workbench, samples, 256)
    own = workbench.models.experts
    experts = {task: features(workbench, workbench.tower.load_all(x), held[task]) for task, x in own.items()}
    trials = Trials(json.loads(file.read_bytes()) if file.exists() else [])
    gptq = solver(baselines.get("gptq"), QuantSpec(bits))

    def run(wanted: Iterable[Calibration]) -> None:
        for merge, calibration in tqdm(list(product(MERGES, wanted)), desc="settings"):
            if trials.find(merge, calibration) is None:
                tower = workbench.merged(merge, options_of(merge, {}))
                for _ in walk(tower, own, inputs, calibration, gptq):
                    pass
                found = distance(workbench, tower, held, experts)
                trials.rows.append({"merge": merge, "bits": bits, **calibration.recorded, "distance": found})
                with replacing(file) as temporary:
                    temporary.write_text(json.dumps(trials.rows, indent=1) + "\n")

    run([Calibration(), *(each for reading in READINGS for each in settings(reading))])
    if workbench.tower.pooled:
        run(each for reading in READINGS for each in finer(trials, reading))
    return trials


def page(suite: str, trials: Trials) -> str:
    """The search in words and tables, Markdown: what ``tuning.md`` holds."""
    plain = trials.mean(Calibration())
    lines = [
        f"# How the axes of {suite} were chosen",
        "",
        f"`python -m benchmarks.studies.tune {suite} --out tuning.json`: GPTQ on every setting, scored on",
        "*other* training samples of the same tasks, without their labels, by the mean over tasks of the",
        "squared distance between the unit vectors of the quantised model and of the task's expert. No test",
        "sample was read. The least distance in the mean over the merges is chosen: mixing and anchor first,",
        "then what tokens other than the class token count for behind the last attention of an image tower.",
        "",
        f"Plain GPTQ: {plain:.4f}. Mean distance of both readings, anchors down, mixings across:",
        "",
        grid(trials),
        "",
    ]
    for reading in READINGS:
        best = trials.best(finer(trials, reading))
        lines.append(f"- {READINGS[reading]}: mixing {best.mixing:g}, anchor {best.anchor:g}{_edge(best)}.")
        tried = [(each.patch_weight, trials.mean(each)) for each in finer(trials, reading)]
        weights = ", ".join(f"{weight:g}: {mean:.4f}" for weight, mean in tried if mean < math.inf)
        if len(weights.split(",")) > 1:
            lines.append(f"  Weight of other tokens {weights}; chosen {best.patch_weight:g}.")
    lines += ["", "Every trial:", "", _table(trials), ""]
    return "\n".join(lines)


def grid(trials: Trials) -> str:
    """Distances in the mean over merges: anchors down, mixings across; the first column is reading A."""
    cells = [
        [f"{anchor:g}", *(trials.mean(Calibration("expert", mixing=a, anchor=anchor)) for a in MIXINGS)]
        for anchor in ANCHORS
    ]
    headings = ["anchor", "A: mixing 0", *(f"B: {a:g}" for a in MIXINGS[1:])]
    return tabulate(cells, headings, "pipe", floatfmt=".4f", disable_numparse=[0])


def _edge(best: Calibration) -> str:
    return ", at the edge of the grid" if best.anchor in (ANCHORS[0], ANCHORS[-1]) else ""


def _table(trials: Trials) -> str:
    shown = [[row["merge"], *(row[name] for name in AXES), row["distance"]] for row in trials.rows]
    digits = ("", "", "g", "g", "g", ".4f")
    return tabulate(shown, ["merge", *AXES, "distance"], "pipe", floatfmt=digits)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128, help="calibration samples per task (default 128)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="JSON; the page goes beside it"
    )
    options = parser.parse_args()
    suite = suites.load(options.suite)
    trials = search(open_workbench(suite), options.bits, options.samples, options.out)
    text = page(suite.name, trials)
    options.out.with_suffix(".md").write_text(text)
    print(f'{text}\nfor the suite file: "chosen": {json.dumps(choose(trials))}')


if __name__ == "__main__":
    main()
