"""The calibration walk: block by block, gather moments, pose each layer's problem, write its solution.

The states at the boundary of the current block, batch by batch, are all the activations that are kept.
Experts are read block by block into one scratch block. The walk never looks at labels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.gather import Batches, Counts, Gathered, Stream, gather_task, has_bias, linears, stacked
from epmq.layer.moments import Deviations, Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.weight import QuantizedWeight
from epmq.merging import Checkpoint
from epmq.models.layers import group_name, layer_groups
from epmq.models.tower import SharedInput, Tower

Solver = Callable[[LayerProblem], QuantizedWeight | Tensor]


@dataclass(frozen=True)
class LayerReport:
    """What happened to one group of linear layers that read the same input.

    ``deviations`` are claim C3's, on the inputs that the walk calibrated on. ``packed_bits`` and ``solution``
    (the group's layers, their rows stacked) are ``None`` for a full-precision solution.
    """

    name: str
    rows: int
    columns: int
    objective: float
    deviations: Deviations
    packed_bits: int | None
    warnings: tuple[str, ...]
    calibrate_seconds: float
    solve_seconds: float
    solution: QuantizedWeight | None = field(default=None, repr=False)


def centre(problem: LayerProblem) -> Tensor:
    """The solver that does not round: W* (or W_m) in full precision, the ceiling of the target."""
    return problem.centre


@torch.no_grad()
def walk(
    tower: Tower,
    experts: Mapping[str, Checkpoint],
    inputs: Mapping[str, Batches],
    calibration: Calibration,
    solve: Solver,
    *,
    batch_size: int = 64,
) -> Iterator[LayerReport]:
    """Quantise ``tower`` (which holds the merged weights) in place, yielding a report per layer group.

    Args:
        experts: a checkpoint per task.
        inputs: model inputs per task, a tensor ``(n, ...)`` or a sequence of batches, the same tasks in the
            same order.
        solve: turns a layer problem into a quantised weight, or a dense matrix (:func:`centre`).

    Raises:
        UserError: tasks differ, a task has no sample, or no layer matches ``calibration.layers``.
    """
    _check(experts, inputs)
    if calibration.patch_weight != 1 and not tower.pooled:
        raise UserError(
            f"patch_weight {calibration.patch_weight} needs a head that reads a class token alone, as an "
            "image tower has; leave it out"
        )
    if calibration.teacher == "merged":
        own = {key: parameter.detach().clone() for key, parameter in tower.merged_parameters().items()}
        experts = dict.fromkeys(inputs, own)
    chosen = layer_groups(tower, calibration.layers)
    clock = time.perf_counter()
    stem = copy.deepcopy(tower.stem)
    for name in (n for n, (part, _) in chosen.items() if part == "stem"):
        yield _solve_embedding(name, tower, solve)
    source = stem if calibration.source == "merged" else tower.stem
    streams = {task: _through(source, _batches(x, batch_size)) for task, x in inputs.items()}
    expert_streams = dict(streams)
    if calibration.follows_experts:
        for task, x in inputs.items():
            tower.load(stem, "stem", experts[task])
            expert_streams[task] = _through(stem, _batches(x, batch_size))
    del stem
    for index, (path, block) in enumerate(_parts(tower)):
        counts = Counts(tower, index, calibration.patch_weight)
        source = block if calibration.source != "merged" else copy.deepcopy(block)
        scratch = copy.deepcopy(block)
        groups = [group for where, group in chosen.values() if where == path]
        # Only inputs that see this block's quantised layers have to be gathered layer after layer.
        stages = [[g] for g in groups] if calibration.source == "quantised" else [groups] if groups else []
        for stage in stages:
            gathered = {g: Gathered.empty(block, g, calibration) for g in stage}
            for task, states in streams.items():
                tower.load(scratch, path, experts[task])
                seen_in = scratch if calibration.source == "expert-block" else source
                pair = (seen_in, states), (scratch, expert_streams[task])
                gather_task(gathered, pair, calibration, counts)
            elapsed = (time.perf_counter() - clock) / len(stage)
            for group in stage:
                yield _solve_group(
                    group_name(path, group), block, group, gathered[group], calibration, solve, elapsed
                )
            clock = time.perf_counter()
        if path == "head" or not _later(chosen, index, len(tower.blocks)):
            return
        for task in streams:
            if calibration.source != "expert":
                streams[task] = _through(source, streams[task])
            if calibration.follows_experts:
                tower.load(scratch, path, experts[task])
                expert_streams[task] = _through(scratch, expert_streams[task])


def _check(experts: Mapping[str, Checkpoint], inputs: Mapping[str, Batches]) -> None:
    if list(experts) != list(inputs):
        raise UserError(
            f"experts are of tasks {list(experts)}, calibration inputs of {list(inputs)}; they must agree"
        )
    for task, x in inputs.items():
        if not len(x):
            raise UserError(f"task {task!r} has no calibration sample; give at least one")


def _parts(tower: Tower) -> list[tuple[str, nn.Module]]:
    """The blocks and the head, with their paths."""
    return [*((f"blocks.{i}", block) for i, block in enumerate(tower.blocks)), ("head", tower.head)]


def _later(chosen: Mapping[str, tuple[str, SharedInput]], index: int, blocks: int) -> bool:
    """Whether a part after block ``index`` has layers to quantise (with all blocks walked, only the head)."""
    return index + 1 < blocks or any(part == "head" for part, _ in chosen.values())


def _batches(x: Batches, batch_size: int) -> Sequence[Any]:
    return x.split(batch_size) if isinstance(x, Tensor) else x


def _through(module: nn.Module, batches: Sequence[Any]) -> Stream:
    return [module(batch) for batch in batches]


def _solve_embedding(name: str, tower: Tower, solve: Solver) -> LayerReport:
    """Round an embedding, row by row: its inputs are one-hot, so within a row every entry counts alike."""
    start = time.perf_counter()
    parameter = tower.get_parameter(f"{name}.weight")
    table = parameter.detach().cpu().double()
    problem = LayerProblem(table, torch.eye(table.shape[1], dtype=torch.float64), table, ())
    solution = solve(problem)
    dense = solution.dequantize() if isinstance(solution, QuantizedWeight) else solution.float()
    parameter.copy_(dense)
    return LayerReport(
        name=name,
        rows=table.shape[0],
        columns=table.shape[1],
        objective=(moved := problem.objective(dense)),
        deviations=Deviations(moved, moved, 0.0, None, None, None),
        packed_bits=solution.packed_bits if isinstance(solution, QuantizedWeight) else None,
        warnings=(),
        calibrate_seconds=0.0,
        solve_seconds=time.perf_counter() - start,
        solution=solution if isinstance(solution, QuantizedWeight) else None,
    )


def _solve_group(
    name: str,
    block: nn.Module,
    group: SharedInput,
    gathered: Gathered,
    calibration: Calibration,
    solve: Solver,
    calibrate_seconds: float,
) -> LayerReport:
    start = time.perf_counter()
    merged, bias = (tensor.cpu() for tensor in stacked(block, group))
    gathered = gathered.cpu()  # problems are posed and solved there, in float64, wherever the model is
    moments = gathered.moments
    problem = _problem(merged, moments, calibration)
    solution = solve(problem)
    dense = solution.dequantize() if isinstance(solution, QuantizedWeight) else solution.float()
    if calibration.recalibrate == "bias":
        wanted = gathered.mean_target
        if calibration.target == "merged":
            wanted = merged @ gathered.mean_input + moments.weight_total * bias
        if moments.weight_total:  # all tasks weigh nothing where the inputs are all zero
            bias = (wanted - dense.double() @ gathered.mean_input) / moments.weight_total
    _write(block, group, dense, bias)
    return LayerReport(
        name=name,
        rows=merged.shape[0],
        columns=merged.shape[1],
        objective=problem.objective(dense),
        deviations=moments.deviations(dense, problem.centre, merged),
        packed_bits=solution.packed_bits if isinstance(solution, QuantizedWeight) else None,
        warnings=problem.warnings,
        calibrate_seconds=calibrate_seconds,
        solve_seconds=time.perf_counter() - start,
        solution=solution if isinstance(solution, QuantizedWeight) else None,
    )


def _problem(merged: Tensor, moments: Moments, calibration: Calibration) -> LayerProblem:
    return LayerProblem.from_moments(
        merged,
        moments,
        target=calibration.target,
        anchor=calibration.anchor,
        anchor_scale=calibration.anchor_scale,
        damping=calibration.damping,
    )


def _write(block: nn.Module, group: SharedInput, weight: Tensor, bias: Tensor) -> None:
    start = 0
    for layer in linears(block, group):
        rows = slice(start, start + len(layer.weight))
        layer.weight.copy_(weight[rows])
        if has_bias(layer):
            layer.bias.copy_(bias[rows])
        start = rows.stop
