"""The runner: computes the cells of a request that a results folder lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from benchmarks.run import provenance
from benchmarks.run.cells import DECODERS, Cell, Request, expand
from benchmarks.run.compute import refuse_impossible, together
from benchmarks.run.executors import Executor, one_by_one, open_workbench
from benchmarks.run.outcome import Outcome
from benchmarks.suites.forms import Suite
from benchmarks.suites.load import identity
from benchmarks.workbench.base import Setting, Workbench
from epmq.errors import UserError, choose
from epmq.refinement.descent import Curve
from epmq.walk import LayerReport
from results.store.claim import claimed, refuse_held
from results.store.folder import RunFolder
from results.store.records import (
    LayerResult,
    Record,
    RefinementPoint,
    RefinementResult,
    SearchResult,
    TaskResult,
    mean_ranked,
)
from results.store.samples import PREDICTION, RANKED, RANKED_NORM, REFERENCE, scores


def run(
    suite: Suite,
    request: Request,
    out: Path,
    asked: dict[str, Any],
    setting: Setting | None = None,
    execute: Executor = one_by_one,
) -> RunFolder:
    """Compute every cell of ``request`` that ``out`` lacks; returns the folder.

    Raises:
        UserError: bad input, found before any cell is computed.
        UserError: the folder belongs to another suite, another run writes to it, or it cannot be written.
    """
    request = decoding(suite, request)
    cells = expand(request)
    provenance.refuse_unusable(out, suite)
    refuse_held(out)
    workbench = open_workbench(suite, setting)
    for cell in cells:
        refuse_impossible(workbench, cell)
    keyed = {cell.key(workbench.context): cell for cell in cells}
    manifest = provenance.manifest(workbench, keyed, request, asked)
    provenance.refuse_other_origin(out, manifest)
    with claimed(out):
        folder = RunFolder.open(out, manifest, create=True)
        _compute(workbench, keyed, folder, execute)
    return folder


def _compute(workbench: Workbench, keyed: Mapping[str, Cell], folder: RunFolder, execute: Executor) -> None:
    """Compute the cells that the folder lacks, and put them there."""
    finished = {r.key: r for r in folder.records()}
    experts = next((r for r in finished.values() if r.method == "experts"), None)
    todo = [cell for key, cell in keyed.items() if key not in finished]
    todo.sort(key=lambda cell: cell.own != "all")  # the other records are relative to them
    with tqdm(total=len(todo), desc=workbench.suite.name, unit="cell", disable=not todo) as bar:
        for group, outcomes in execute(workbench, list(together(todo, workbench.setting.together))):
            for cell, outcome in zip(group, outcomes, strict=True):
                line = record(workbench, cell, outcome, experts)
                if cell.own == "all":
                    experts = line
                folder.append(line, *arrays(outcome))
                bar.set_postfix_str(" ".join(str(x) for x in (cell.merge, cell.method, cell.bits) if x))
                bar.update()


def decoding(suite: Suite, request: Request) -> Request:
    """The request with what calibration reads beside prompts: of text suites, by default experts' answers.

    Their models have no class token.

    Raises:
        UserError: it is unknown, or a suite of images is asked for one.
    """
    if suite.kind == "text":
        asked = request.decoder or "experts"
        choose("decoder", asked, DECODERS)
        return replace(request, decoder=asked, pooled=False)
    if request.decoder is not None:
        raise UserError(f"--decoder {request.decoder!r} changes nothing in {suite.name}; leave it out")
    return request


def arrays(done: Outcome) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a folder keeps of every sample: right or wrong by task, and predictions and references."""
    correct = {task: x.correct for task, x in done.answers.items() if x.metric == "accuracy"}
    found: dict[str, Any] = {}
    for task, x in done.answers.items():
        found |= {f"{task}{PREDICTION}": x.predicted, f"{task}{REFERENCE}": x.actual}
        if x.ranked is not None:
            found |= {f"{task}{RANKED}": x.ranked[0], f"{task}{RANKED_NORM}": x.ranked[1]}
    return correct, found


def results_of(done: Outcome) -> dict[str, TaskResult]:
    """The scores by task."""
    correct, found = arrays(done)
    return {
        task: TaskResult(
            metric=x.metric,
            value=x.value,
            samples=len(x.actual),
            **scores({**correct, **found}, task, x.metric),
        )
        for task, x in done.answers.items()
    }


def record(workbench: Workbench, cell: Cell, done: Outcome, experts: Record | None) -> Record:
    """The cell's line in the results."""
    tasks = results_of(done)
    values = {task: result.value for task, result in tasks.items()}
    bits = [x.packed_bits for x in done.layers if x.packed_bits is not None]
    sizes = [x.rows * x.columns for x in done.layers if x.packed_bits is not None]
    return Record(
        key=cell.key(workbench.context),
        suite=workbench.suite.name,
        suite_version=workbench.suite.version,
        suite_sha256=identity(workbench.suite, workbench.revisions),
        kind=cell.kind,  # type: ignore[arg-type]
        merge=cell.merge,
        merge_options=dict(cell.merge_options),
        method=cell.method,
        rounding=cell.rounding,
        target=cell.target,
        bits=cell.bits,
        axes=cell.axes,
        seed=cell.seed,
        device=workbench.setting.machine.device.type,  # type: ignore[arg-type]
        dtype=workbench.setting.machine.dtype,
        pinned=workbench.setting.pinned,
        tasks=tasks,
        average=math.fsum(values.values()) / len(values),
        average_ranked=mean_ranked(result.ranked for result in tasks.values()),
        normalised=normalised(values, experts.tasks) if experts else None,
        layers=tuple(_layer(x) for x in done.layers),
        refinements={place: _curve(x) for place, x in done.curves.items()},
        search=None if done.choice is None else SearchResult(**asdict(done.choice)),
        seconds=done.seconds,
        peak_memory_bytes=done.peak_memory,
        packed_bytes=(sum(bits) + 7) // 8 if bits else None,
        bits_per_weight=sum(bits) / sum(sizes) if bits else None,
        warnings=tuple(sorted({*done.warnings, *workbench.suite.shared_samples})),
    )


def normalised(values: Mapping[str, float], experts: Mapping[str, TaskResult]) -> float | None:
    """The mean over tasks of the value over the expert's, in whatever order; None where an expert has 0."""
    if not all(result.value for result in experts.values()):
        return None
    return math.fsum(values[task] / result.value for task, result in experts.items()) / len(experts)


def _layer(report: LayerReport) -> LayerResult:
    apart = report.deviations
    return LayerResult(
        name=report.name,
        rows=report.rows,
        columns=report.columns,
        objective=report.objective,
        quantisation_deviation=apart.quantisation,
        rounding_deviation=apart.rounding,
        move_deviation=apart.move,
        expert_deviation=apart.expert,
        centre_deviation=apart.centre,
        merging_deviation=apart.merging,
        warnings=report.warnings,
    )


def _curve(curve: Curve) -> RefinementResult:
    points = [RefinementPoint(step=p.step, learnt=p.learnt, held_out=p.held_out) for p in curve.points]
    return RefinementResult(points=tuple(points), best=curve.best, seconds=curve.seconds)
