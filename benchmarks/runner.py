"""The runner: computes the cells of a request that a results folder lacks."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

import baselines
from benchmarks import data, provenance
from benchmarks.cells import Cell, Request, expand
from benchmarks.clip import ClipModels
from benchmarks.evaluate import correct
from benchmarks.suites import Suite, fingerprint
from epmq.calibration import Calibration
from epmq.merge import merge
from epmq.spec import QuantSpec
from epmq.tower import Tower
from epmq.walk import LayerReport, Solver, centre, layer_groups, walk
from results.folder import RunFolder
from results.records import LayerResult, Record, TaskResult

Correct = dict[str, NDArray[np.bool_]]


class Bench:
    """A suite's models and data, opened and checked once, from which any cell is computed."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.models = ClipModels(suite)
        self._splits = {
            (task.task, split): data.open_split(task, split)
            for task in tqdm(suite.tasks, desc="loading data", leave=False, delay=2)
            for split in (task.dataset.train_split, task.dataset.eval_split)
        }
        self._merges: dict[str, dict[str, Tensor]] = {}
        self._calibration: dict[tuple[int, int], dict[str, Tensor]] = {}

    @cached_property
    def revisions(self) -> dict[str, Any]:
        """Every model and data set by hash or commit."""
        return {
            "suite": fingerprint(self.suite),
            **self.models.revisions,
            "datasets": {task.task: data.revision(task.dataset) for task in self.suite.tasks},
        }

    @cached_property
    def context(self) -> dict[str, Any]:
        """What every cell's key depends on besides the cell."""
        return {
            "suite": self.suite.name,
            "version": self.suite.version,
            "revisions": self.revisions,
            "device": "cpu",
            "dtype": "float32",
        }

    @cached_property
    def heads(self) -> dict[str, Tensor]:
        return {task.task: self.models.head(task) for task in self.suite.tasks}

    @cached_property
    def test_sets(self) -> dict[str, data.Labelled]:
        sets = {}
        for task in tqdm(self.suite.tasks, desc="decoding test images", leave=False):
            split = self._splits[task.task, task.dataset.eval_split]
            sets[task.task] = data.tensors(split, task.dataset, self.models.transform)
        return sets

    def calibration_inputs(self, samples: int, seed: int) -> dict[str, Tensor]:
        """Preprocessed calibration images per task; labels are not read."""
        if (samples, seed) not in self._calibration:
            found = {}
            for task in tqdm(self.suite.tasks, desc="decoding calibration images", leave=False, delay=2):
                rows = self._splits[task.task, task.dataset.train_split]
                ids = data.sample_ids(task, samples, seed)
                found[task.task] = data.tensors(rows.select(ids), task.dataset, self.models.transform).images
            self._calibration[samples, seed] = found
        return self._calibration[samples, seed]

    def merged(self, name: str, options: Mapping[str, Any]) -> Tower:
        """A tower that holds a merge of the experts."""
        key = f"{name} {sorted(options.items())}"
        if key not in self._merges:
            self._merges[key] = merge(name, self.models.base, list(self.models.experts.values()), **options)
        return self.tower().load_all(self._merges[key])

    def tower(self) -> Tower:
        """A fresh copy of the base's tower."""
        return copy.deepcopy(self.models.tower)

    def check(self, cell: Cell) -> None:
        """Refuse a cell that cannot be computed, before any work; raises UserError."""
        if cell.samples is not None:
            for task in self.suite.tasks:
                data.sample_ids(task, cell.samples, cell.seed)
        if cell.calibration is not None:
            tower = self.models.tower
            for index, group in layer_groups(tower, cell.calibration.layers).values():
                weight = tower.blocks[index].get_parameter(f"{group[0]}.weight")
                if cell.spec is not None:
                    cell.spec.columns_per_group(weight.shape[1])


class Computation:
    """One cell at work: its model, then its accuracy; seconds by phase as it goes."""

    def __init__(self, bench: Bench, cell: Cell) -> None:
        self.bench, self.cell = bench, cell
        self.seconds: dict[str, float] = {}
        self.layers: list[LayerReport] = []
        self.warnings: set[str] = set()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._spend(phase, time.perf_counter() - start)

    def _spend(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def run(self) -> Correct:
        """Per-sample correctness of every task."""
        merged = None if self.cell.method == "experts" else self._model()
        hits = {}
        with self.timed("evaluate"):
            for task, expert in self.bench.models.experts.items():
                tower = self.bench.tower().load_all(expert) if merged is None else merged
                hits[task] = correct(tower, self.bench.heads[task], self.bench.test_sets[task])
        return hits

    def _model(self) -> Tower:
        """The cell's merge, calibrated and rounded."""
        cell = self.cell
        if cell.merge is None:
            return self.bench.tower()
        with self.timed("merge"):
            start = "simple-average" if cell.merge == "regmean" else cell.merge
            tower = self.bench.merged(start, cell.merge_options)
        if cell.then:
            self._walk(tower, cell.calibration, centre)
        if cell.calibration:
            self._walk(tower, cell.then or cell.calibration, self._solver() if cell.rounding else centre)
        return tower

    def _solver(self) -> Solver:
        assert self.cell.rounding is not None
        assert self.cell.spec is not None
        return solver(baselines.get(self.cell.rounding), self.cell.spec)

    def _walk(self, tower: Tower, calibration: Calibration | None, solve: Solver) -> None:
        cell = self.cell
        assert calibration is not None
        assert cell.samples is not None
        inputs = self.bench.calibration_inputs(cell.samples, cell.seed)
        steps = walk(tower, self.bench.models.experts, inputs, calibration, solve)
        total = len(layer_groups(tower, calibration.layers))
        self.layers = list(tqdm(steps, desc="  layers", total=total, leave=False, delay=2))
        for layer in self.layers:
            self._spend("calibrate", layer.calibrate_seconds)
            self._spend("quantise", layer.solve_seconds)
            self.warnings |= {f"{layer.name}: {warning}" for warning in layer.warnings}


def solver(rounding: baselines.Baseline, spec: QuantSpec) -> Solver:
    """A walk's solver that rounds every layer the same way."""
    return lambda problem: rounding(problem, spec)


def record(bench: Bench, cell: Cell, done: Computation, hits: Correct, experts: Record | None) -> Record:
    """The cell's line in the results."""
    values = {task: float(hit.mean()) for task, hit in hits.items()}
    bits = [x.packed_bits for x in done.layers if x.packed_bits is not None]
    sizes = [x.rows * x.columns for x in done.layers if x.packed_bits is not None]
    normalised = []
    if experts and all(result.value for result in experts.tasks.values()):
        normalised = [values[task] / result.value for task, result in experts.tasks.items()]
    return Record(
        key=cell.key(bench.context),
        suite=bench.suite.name,
        suite_version=bench.suite.version,
        kind=cell.kind,  # type: ignore[arg-type]
        merge=cell.merge,
        merge_options=dict(cell.merge_options),
        method=cell.method,
        rounding=cell.rounding,
        target=cell.target,
        bits=cell.bits,
        axes=cell.axes,
        seed=cell.seed,
        tasks={task: TaskResult(value=values[task], samples=len(hit)) for task, hit in hits.items()},
        average=sum(values.values()) / len(values),
        normalised=sum(normalised) / len(normalised) if normalised else None,
        layers=tuple(_layer(x) for x in done.layers),
        seconds=done.seconds,
        peak_memory_bytes=_peak_memory(),
        packed_bytes=(sum(bits) + 7) // 8 if bits else None,
        bits_per_weight=sum(bits) / sum(sizes) if bits else None,
        warnings=tuple(sorted(done.warnings)),
    )


def _layer(report: LayerReport) -> LayerResult:
    return LayerResult(
        name=report.name,
        rows=report.rows,
        columns=report.columns,
        objective=report.objective,
        quantisation_deviation=report.quantisation_deviation,
        expert_deviation=report.expert_deviation,
        merging_deviation=report.merging_deviation,
        warnings=report.warnings,
    )


def _peak_memory() -> int:
    """Peak resident bytes of this process so far (it never falls from one cell to the next)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(suite: Suite, request: Request, out: Path, asked: dict[str, Any]) -> RunFolder:
    """Compute every cell of ``request`` that ``out`` lacks; returns the folder.

    Raises:
        UserError: bad input, found before any cell is computed.
        results.errors.ResultError: the folder belongs to another suite or cannot be written.
    """
    cells = expand(request)
    provenance.refuse_unusable(out, suite)
    bench = Bench(suite)
    for cell in cells:
        bench.check(cell)
    keyed = {cell.key(bench.context): cell for cell in cells}
    manifest = provenance.manifest(suite, bench.revisions, keyed, request, asked)
    provenance.refuse_other_origin(out, manifest)
    folder = RunFolder.open(out, manifest, create=True)
    finished = {r.key: r for r in folder.records()}
    experts = next((r for r in finished.values() if r.method == "experts"), None)
    todo = {key: cell for key, cell in keyed.items() if key not in finished}
    bar = tqdm(todo.values(), desc=suite.name, unit="cell", disable=not todo)
    for cell in bar:
        bar.set_postfix_str(" ".join(str(part) for part in (cell.merge, cell.method, cell.bits) if part))
        computation = Computation(bench, cell)
        hits = computation.run()
        line = record(bench, cell, computation, hits, experts)
        if cell.method == "experts":
            experts = line
        folder.append(line, hits)
    return folder
