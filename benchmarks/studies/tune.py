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
from baselines.recipes import FEATURES
from benchmarks.embedded.training import atomically
from benchmarks.run.compute import solver
from benchmarks.run.executors import open_workbench
from benchmarks.suites import load as suites
from benchmarks.workbench.base import Workbench
from epmq.calibration import Calibration
from epmq.gather import Batches
from epmq.layer.spec import QuantSpec
from epmq.merging import options_of
from epmq.models.tower import Tower
from epmq.walk import walk

ANCHORS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MIXINGS = (0.0, 0.25, 0.5, 0.75, 1.0)
PATCH_WEIGHTS = (0.01, 0.0)  # besides 1
MERGES = ("task-arithmetic", "ties")
AXES = ("target", "mixing", "anchor", "patch_weight")
Setting = tuple[str, Calibration]  # a merge, and what is tried on it


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


class Search:
    """Trials of one suite, kept in a file as they are made: a search that was killed goes on."""

    def __init__(self, workbench: Workbench, bits: int, samples: int, file: Path) -> None:
        self.workbench, self.bits, self.file = workbench, bits, file
        self.rows: list[dict[str, Any]] = json.loads(file.read_bytes()) if file.exists() else []
        self.inputs = workbench.calibration_inputs(samples, 0, self._decoder)
        self.held = held_out(workbench, samples, 256)
        self.experts = {
            task: features(workbench, workbench.tower.load_all(expert), self.held[task])
            for task, expert in workbench.models.experts.items()
        }

    @property
    def _decoder(self) -> str | None:
        return "experts" if self.workbench.suite.kind == "text" else None

    def run(self, settings: Iterable[Calibration]) -> None:
        """Try settings on every merge; what the file holds already is not tried again."""
        for merge, calibration in tqdm(list(product(MERGES, settings)), desc="settings"):
            if self._found(merge, calibration) is None:
                self.rows.append(self._trial(merge, calibration))
                text = json.dumps(self.rows, indent=1) + "\n"
                atomically(self.file, lambda path, text=text: path.write_text(text))  # type: ignore[misc]

    def best(self, settings: Iterable[Calibration]) -> Calibration:
        """The setting of the least distance, in the mean over merges."""
        return min(settings, key=self.mean)

    def mean(self, calibration: Calibration) -> float:
        """The distance of a setting that was tried, in the mean over merges."""
        found = [self._found(merge, calibration) for merge in MERGES]
        return sum(float(row["distance"]) for row in found if row is not None) / len(MERGES)

    def _found(self, merge: str, calibration: Calibration) -> dict[str, Any] | None:
        wanted = {"merge": merge, "bits": self.bits, **asdict(calibration)}
        return next((row for row in self.rows if row.items() >= wanted.items()), None)

    def _trial(self, merge: str, calibration: Calibration) -> dict[str, Any]:
        tower = self.workbench.merged(merge, options_of(merge, {}))
        gptq = solver(baselines.get("gptq"), QuantSpec(self.bits))
        for _ in walk(tower, self.workbench.models.experts, self.inputs, calibration, gptq):
            pass
        found = distance(self.workbench, tower, self.held, self.experts)
        return {"merge": merge, "bits": self.bits, **asdict(calibration), "distance": found}


def search(trials: Search) -> dict[str, dict[str, float]]:
    """The axes that are chosen, by reading: mixing and anchor first, then the weight of other tokens."""
    trials.run([Calibration()])
    chosen = {}
    for reading, mixings in {"weights": MIXINGS[:1], "features": MIXINGS[1:]}.items():
        settings = [Calibration("expert", mixing=a, anchor=b) for a, b in product(mixings, ANCHORS)]
        trials.run(settings)
        best = trials.best(settings)
        if trials.workbench.tower.pooled:
            finer = [best, *(replace(best, patch_weight=weight) for weight in PATCH_WEIGHTS)]
            trials.run(finer)
            best = trials.best(finer)
        axes = {name: getattr(best, name) for name in AXES[1:]}
        plain = asdict(Calibration("expert")) | (FEATURES if reading == "features" else {})
        chosen[reading] = {name: value for name, value in axes.items() if value != plain[name]}
        if best.anchor in (ANCHORS[0], ANCHORS[-1]):
            print(f"{reading}: the best anchor, {best.anchor:g}, is at the edge of the grid")
    return chosen


def grid(trials: Search) -> str:
    """Distances in the mean over merges: anchors down, mixings across; the first column is reading A."""
    cells = [
        [f"{anchor:g}", *(trials.mean(Calibration("expert", mixing=a, anchor=anchor)) for a in MIXINGS)]
        for anchor in ANCHORS
    ]
    headings = ["anchor", "A: mixing 0", *(f"B: {a:g}" for a in MIXINGS[1:])]
    return tabulate(cells, headings, "pipe", floatfmt=".4f", disable_numparse=[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--samples", type=int, default=128, help="calibration samples per task (default 128)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    trials = Search(open_workbench(suites.load(options.suite)), options.bits, options.samples, options.out)
    chosen = search(trials)
    shown = [[row["merge"], *(row[name] for name in AXES), row["distance"]] for row in trials.rows]
    digits = ("", "", "g", "g", "g", ".4f")
    print(tabulate(shown, ["merge", *AXES, "distance"], "pipe", floatfmt=digits))
    print(f"\n{grid(trials)}\n\nGPTQ: {trials.mean(Calibration()):.4f}")
    print(f'\nfor the suite file: "chosen": {json.dumps(chosen)}')


if __name__ == "__main__":
    main()
