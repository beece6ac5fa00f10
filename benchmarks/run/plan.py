"""What a run would take, before anything is downloaded or computed: cells, downloads, disk, memory, time.

What is not known is said to be unknown; estimates stand beside their assumptions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import torch
from huggingface_hub import try_to_load_from_cache
from tabulate import tabulate

from benchmarks.run.cells import Cell, Refining
from benchmarks.run.refining import SHARED
from benchmarks.sources import hub, lock, resolve
from benchmarks.sources.hub import Kind
from benchmarks.sources.lock import Lock
from benchmarks.suites.forms import Suite, TaskSpec
from benchmarks.suites.load import on_hub
from benchmarks.suites.towers import TextTowerSpec, TowerSpec
from benchmarks.workbench.machine import Machine
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.refinement.descent import MEASURED

PROBE_SECONDS = 1.0
GATHERS = (
    4  # times that a walk reads a block's inputs: before q/k/v, the output projection and both MLP layers
)


@dataclass(frozen=True)
class Download:
    """A repository that a run reads: bytes in all and bytes in the hub's cache; ``None`` where unknown."""

    name: str
    revision: str
    size: int | None
    cached: int | None
    remark: str = ""


@dataclass(frozen=True)
class Plan:
    """The parts of a plan; sizes in bytes, ``rate`` in floating-point operations per second."""

    suite: Suite
    cells: Sequence[Cell]
    downloads: list[Download]
    rate: float
    machine: Machine

    def __str__(self) -> str:
        return "\n\n".join([self._cells(), self._downloads(), self.needs()])

    def _cells(self) -> str:
        rows = [[c.kind, c.merge, c.method, c.bits, c.samples, c.seed] for c in self.cells]
        table = tabulate(rows, ["kind", "merge", "method", "bits", "samples", "seed"], missingval="-")
        return f"{self.suite.name}, version {self.suite.version}: {len(rows)} cells\n\n{table}"

    def _downloads(self) -> str:
        if not self.downloads:
            return "Downloads: none, everything is bundled or in local folders"
        rows = [[d.name, d.revision[:12], size(d.size), size(d.cached), d.remark] for d in self.downloads]
        total, cached = _sum(d.size for d in self.downloads), _sum(d.cached for d in self.downloads)
        rows.append(["together", "", size(total), size(cached), ""])
        return tabulate(rows, ["repository", "commit", "size", "cached", ""], disable_numparse=True)

    def needs(self) -> str:
        """Disk, memory and time, each with what it was estimated from."""
        if self.suite.tower is None:
            return "Disk, memory and time: unknown, the size of the tower is not given"
        rows = [self._disk(self.suite.tower), self._memory(self.suite.tower), *self._time(self.suite.tower)]
        assumed = (
            f"Assumed: {self.rate:.2g} operations per second, that of a {self.machine.dtype} matrix product "
            f"measured now on {self.machine.device}; float32 models and hidden states; every calibrated "
            f"cell passes each block {GATHERS} times, and once more, per stream."
        )
        return f"{tabulate(rows, ['', 'estimate', ''], disable_numparse=True)}\n\n{assumed}"

    @property
    def _test_samples(self) -> int:
        """Test samples of all tasks; a task that does not say how many counts none."""
        return sum(task.dataset.eval_size or 0 for task in self.suite.tasks)

    def _disk(self, tower: TowerSpec | TextTowerSpec) -> list[str]:
        draws = {(c.samples, c.seed) for c in self.cells if c.samples is not None}
        drawn = sum(samples for samples, _ in draws) * len(self.suite.tasks)
        if isinstance(tower, TextTowerSpec):
            merges = len({c.merge for c in self.cells if c.merge})
            return ["disk", size(merges * 4 * tower.parameters), f"{merges} merges in float32"]
        tested = f"{self._test_samples} test and " if self._test_samples else ""
        remark = f"{tested}{drawn} calibration images, decoded to 3 bytes a pixel"
        return ["disk", size((self._test_samples + drawn) * 3 * tower.image_size**2), remark]

    def _memory(self, tower: TowerSpec | TextTowerSpec) -> list[str]:
        images = max((c.samples or 0 for c in self.cells), default=0) * len(self.suite.tasks)
        refined = max((refinement_bytes(each, tower) for each in _refinings(self.cells)), default=0)
        streams = max((_streams(each) for c in self.cells for each in c.passes), default=0)
        hidden = streams * images * tower.tokens * tower.width * 4
        models = 4 * tower.parameters * (2 if any(c.merge for c in self.cells) else 1)
        return [
            "memory",
            size(models + max(hidden, refined)),
            f"models {size(models)}, hidden states {size(hidden)}, refinement {size(refined)}; at least",
        ]

    def _time(self, tower: TowerSpec | TextTowerSpec) -> list[list[str]]:
        tasks = len(self.suite.tasks)
        work = {"calibration": sum(_calibration_flops(cell, tower, tasks) for cell in self.cells)}
        if self._test_samples:
            work = {"evaluation": len(self.cells) * self._test_samples * tower.flops, **work}
        if any(_refinings(self.cells)):
            work["refinement"] = _refinement_flops(self.cells, tower, tasks)
        return [
            *(
                [f"time, {name}", duration(flops / self.rate), f"{flops:.2g} operations; at least"]
                for name, flops in work.items()
            ),
            ["time, the rest", "unknown", "downloads, decoding, merging and rounding are not estimated"],
        ]


def plan(suite: Suite, cells: Sequence[Cell], pinned: Lock | None, machine: Machine) -> Plan:
    """The plan of a run; asks the hub for sizes where there is no lock, and downloads nothing."""
    tasks = [task for task in suite.tasks if on_hub(task.dataset.path)]
    if pinned is None:  # all that is known is what whole repositories hold: each counts once
        tasks = list({task.dataset.path: task for task in tasks}.values())
    with ThreadPoolExecutor(hub.JOBS) as pool:
        models = pool.map(lambda where: _model(suite, where, pinned), lock.models_of(suite))
        data = pool.map(lambda task: _data(task, pinned), tasks)
        downloads = [*models, *data]
    return Plan(suite, cells, downloads, machine_rate(machine), machine)


def _model(suite: Suite, where: str, pinned: Lock | None) -> Download:
    if pinned is not None:
        repo = pinned.models[where]
        return _download(where, repo.revision, {n: f.size for n, f in repo.files.items()}, "model")
    found = _asked(where, "model")
    if isinstance(found, Download):
        return found
    names = resolve.chosen(found.sizes, resolve.model_files(suite, where))
    return _download(where, found.revision, {n: found.sizes[n] for n in names}, "model", "newest, not pinned")


def _data(task: TaskSpec, pinned: Lock | None) -> Download:
    if pinned is not None:
        repo = pinned.datasets[task.task]
        return _download(repo.id, repo.revision, {n: f.size for n, f in repo.files.items()}, "dataset")
    spec = task.dataset
    found = _asked(spec.path, "dataset", spec.revision)
    if isinstance(found, Download):
        return found
    return _download(
        spec.path,
        found.revision,
        found.sizes,
        "dataset",
        "newest, not pinned; at most: every split is counted",
    )


def _asked(repo: str, kind: Kind, revision: str | None = None) -> hub.Listing | Download:
    """What the hub says of a repository, or a download of unknown size if it cannot be asked."""
    try:
        return hub.listing(repo, kind, revision, waits=())  # a plan is asked again by whoever wants it
    except UserError as error:
        return Download(repo, "unknown", None, None, str(error).partition("(")[2][:60])


def _download(repo: str, revision: str, sizes: dict[str, int], kind: Kind, remark: str = "") -> Download:
    def here(name: str) -> bool:
        return isinstance(try_to_load_from_cache(repo, name, revision=revision, repo_type=kind), str)

    cached = sum(number for name, number in sizes.items() if here(name))
    return Download(repo, revision, sum(sizes.values()), cached, remark)


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum, unknown if any part is."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _streams(calibration: Calibration) -> int:
    return 2 if calibration.follows_experts else 1


def _calibration_flops(cell: Cell, tower: TowerSpec | TextTowerSpec, tasks: int) -> int:
    """Forward passes and Grams of a cell's walks over its calibration images."""
    inputs = 3 * tower.width**2 + tower.mlp_width**2  # sides of a block's Gram matrices, squared
    grams = tower.layers * 2 * tower.tokens * inputs
    per_image = sum(_streams(c) * ((GATHERS + 1) * tower.flops + grams) for c in cell.passes)
    walks = 1.0
    if cell.search is not None:  # every value of an axis but the one that stands, on what is not held out
        tried = 1 + sum(len(values) - 1 for values in cell.search.axes.values())
        walks += tried * (1 - cell.search.held_out)
    return int(tasks * (cell.samples or 0) * per_image * walks)


def _refinings(cells: Sequence[Cell]) -> list[Refining]:
    return [each for cell in cells for each in (cell.before, cell.after) if each is not None]


def _refinement_flops(cells: Sequence[Cell], tower: TowerSpec | TextTowerSpec, tasks: int) -> int:
    """Passes both ways, the experts' outputs and the held-out losses; a shared start counts once."""
    starts = {}
    total = 0
    for cell in cells:
        for refining in (cell.before, cell.after):
            if refining is None or cell.samples is None:
                continue
            budget = refining.budget
            passes = budget.steps * budget.batch * (4 if budget.checkpointing else 3)
            measured = (MEASURED + 1) * budget.split("", cell.samples)[1]
            flops = tasks * (passes + measured + cell.samples) * tower.flops
            if refining is cell.before:
                shared = {name: part for name, part in asdict(cell).items() if name in SHARED}
                starts[json.dumps(shared, sort_keys=True)] = flops
            else:
                total += flops
    return total + sum(starts.values())


def refinement_bytes(refining: Refining, tower: TowerSpec | TextTowerSpec) -> int:
    """Gradients, Adam's two moments, the state that is kept and a part's activations, in float32."""
    budget = refining.budget
    inside = 8 * tower.width + 3 * tower.mlp_width  # of a token in a block: what the backward pass reads
    kept = tower.width + inside / tower.layers if budget.checkpointing else inside
    samples = budget.batch // budget.accumulate
    return 4 * 4 * tower.parameters + int(4 * samples * tower.layers * tower.tokens * kept)


def machine_rate(machine: Machine) -> float:
    """Floating-point operations per second of a square matrix product, measured for about a second."""
    side = 4096 if machine.device.type == "cuda" else 1024
    a = torch.ones(side, side, device=machine.device, dtype=getattr(torch, machine.dtype))
    float((a @ a)[0, 0])  # the first one pays for start-up
    products, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < PROBE_SECONDS:
        float((a @ a)[0, 0])  # reading an entry waits for the device
        products += 1
    return products * 2 * side**3 / spent


def size(number: int | None) -> str:
    """Bytes with a decimal unit."""
    if number is None:
        return "unknown"
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
