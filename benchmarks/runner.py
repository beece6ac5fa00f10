"""The runner: computes the cells of a request that a results folder lacks."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

import baselines
from benchmarks import data, environment
from benchmarks.cells import Cell, Request, expand
from benchmarks.clip import ClipModels
from benchmarks.evaluate import correct
from benchmarks.suites import Suite
from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.merge import merge
from epmq.spec import QuantSpec
from epmq.tower import Tower
from epmq.walk import LayerReport, Solver, centre, walk
from results.folder import RunFolder
from results.records import LayerResult, Manifest, Record, TaskResult

Correct = dict[str, NDArray[np.bool_]]


class Bench:
    """A suite's models and data, opened and checked once, from which any cell is computed."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.models = ClipModels(suite)
        self._splits = {
            (task.task, split): data.open_split(task, split)
            for task in suite.tasks
            for split in (task.dataset.train_split, task.dataset.eval_split)
        }
        self._merges: dict[str, dict[str, Tensor]] = {}
        self._calibration: dict[tuple[int, int], dict[str, Tensor]] = {}

    @cached_property
    def revisions(self) -> dict[str, Any]:
        """Every model and data set by hash or commit."""
        return {
            "models": self.models.revisions,
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
            for task in self.suite.tasks:
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
        if cell.spec is not None:
            block = self.models.tower.blocks[0]
            for group in self.models.tower.groups:
                cell.spec.columns_per_group(block.get_submodule(group[0]).weight.shape[1])  # type: ignore[arg-type, index, union-attr]


class Computation:
    """One cell at work: its model, then its accuracy; seconds by phase as it goes."""

    def __init__(self, bench: Bench, cell: Cell) -> None:
        self.bench, self.cell = bench, cell
        self.seconds: dict[str, float] = {}
        self.layers: list[LayerReport] = []

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def run(self) -> Correct:
        """Per-sample correctness of every task."""
        if self.cell.method == "experts":
            towers = {t: self.bench.tower().load_all(e) for t, e in self.bench.models.experts.items()}
        else:
            towers = dict.fromkeys(self.bench.models.experts, self._model())
        with self.timed("evaluate"):
            sets, heads = self.bench.test_sets, self.bench.heads
            return {task: correct(tower, heads[task], sets[task]) for task, tower in towers.items()}

    def _model(self) -> Tower:
        cell = self.cell
        if cell.merge is None:
            return self.bench.tower()
        with self.timed("merge"):
            regmean = cell.merge == "regmean"
            tower = self.bench.merged("simple-average" if regmean else cell.merge, cell.merge_options)
        if cell.calibration is None:
            return tower
        if regmean or cell.method == "featcal-gptq":  # two steps: first W* in full precision, then plain rounding
            self._walk(tower, cell.calibration, centre)
            if cell.rounding:
                self._walk(tower, Calibration(), self._solver())
        else:
            self._walk(tower, cell.calibration, self._solver() if cell.rounding else centre)
        return tower

    def _solver(self) -> Solver:
        assert self.cell.rounding is not None
        return partial(_round, baselines.get(self.cell.rounding), self.cell.spec)

    def _walk(self, tower: Tower, calibration: Calibration, solve: Solver) -> None:
        cell = self.cell
        assert cell.samples is not None
        inputs = self.bench.calibration_inputs(cell.samples, cell.seed)
        steps = walk(tower, self.bench.models.experts, inputs, calibration, solve)
        total = len(tower.blocks) * len(tower.groups)
        self.layers = list(tqdm(steps, desc="  layers", total=total, leave=False, delay=2))
        self.seconds["calibrate"] = self.seconds.get("calibrate", 0) + sum(x.calibrate_seconds for x in self.layers)
        self.seconds["quantise"] = self.seconds.get("quantise", 0) + sum(x.solve_seconds for x in self.layers)


def _round(rounding: baselines.Baseline, spec: QuantSpec, problem: Any) -> Any:
    return rounding(problem, spec)


def record(bench: Bench, cell: Cell, done: Computation, hits: Correct, experts: Record | None) -> Record:
    """The cell's line in the results."""
    values = {task: float(hit.mean()) for task, hit in hits.items()}
    bits = [x.packed_bits for x in done.layers if x.packed_bits is not None]
    sizes = [x.rows * x.columns for x in done.layers if x.packed_bits is not None]
    normalised = [values[task] / result.value for task, result in experts.tasks.items()] if experts else []
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
        warnings=tuple(sorted({f"{x.name}: {w}" for x in done.layers for w in x.warnings})),
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
    bench = Bench(suite)
    for cell in cells:
        bench.check(cell)
    keyed = {cell.key(bench.context): cell for cell in cells}
    folder = RunFolder.open(out, _manifest(bench, keyed, request, asked), create=True)
    _same_code(folder)
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


def _manifest(bench: Bench, keyed: Mapping[str, Cell], request: Request, asked: dict[str, Any]) -> Manifest:
    listed = [
        {"key": k, "kind": c.kind, "method": c.method, "merge": c.merge, "target": c.target, "bits": c.bits}
        for k, c in keyed.items()
    ]
    ids = {t.task: data.sample_ids(t, request.samples, request.seed) for t in bench.suite.tasks}
    return Manifest(
        suite=bench.suite.name,
        suite_version=bench.suite.version,
        asked={**asked, "cells": listed},
        environment=environment.describe(),
        revisions=bench.revisions,
        calibration={task: data.digest(rows) for task, rows in ids.items()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _same_code(folder: RunFolder) -> None:
    made_by, now = folder.manifest.environment.get("code"), environment.code_digest()
    if made_by != now and folder.records():
        raise UserError(
            f"{folder.path}: its records were computed by another version of epmq or baselines; "
            "choose another --out, or check out the version that made it"
        )
