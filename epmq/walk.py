"""The calibration walk: block by block, gather moments, pose each layer's problem, write its solution.

The states at the boundary of the current block, batch by batch, are kept, and within a budget what its passes
would compute twice (:mod:`epmq.gather.kept`). Experts are read block by block into one scratch block. The
walk never looks at labels.
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
from epmq.gather.passes import Batches, Passes, Stream
from epmq.gather.rows import Counts, Rows, affine, has_bias, linears, stacked
from epmq.gather.task import Gathered, gather_task
from epmq.layer.affine import NormMoments, solved_bias
from epmq.layer.moments import Deviations, Moments
from epmq.layer.problem import LayerProblem, anchor_strength
from epmq.layer.weight import QuantizedWeight
from epmq.merging import Checkpoint
from epmq.models.layers import group_name, layer_groups
from epmq.models.tower import SharedInput, Tower

Solver = Callable[[LayerProblem], QuantizedWeight | Tensor]


@dataclass(frozen=True)
class LayerReport:
    """What happened to one group of linear layers that read the same input, or to some rows of it.

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
    base: Checkpoint | None = None,
) -> Iterator[LayerReport]:
    """Quantise ``tower`` (which holds the merged weights) in place, yielding a report per layer group.

    Where queries weigh tokens otherwise than keys and values (``patch_scope``), the group of the last block
    that holds them has two reports, named by their rows.

    Args:
        experts: a checkpoint per task.
        inputs: model inputs per task, a tensor ``(n, ...)`` or a sequence of batches, the same tasks in the
            same order.
        solve: turns a layer problem into a quantised weight, or a dense matrix (:func:`centre`).
        base: the model that the experts were fine-tuned from; read only by ``calibration.anchor_point``.

    Raises:
        UserError: tasks differ, a task has no sample, no layer matches ``calibration.layers``, or an axis
            needs what the tower or the caller does not have.
    """
    _check(experts, inputs)
    refuse_unfit(tower, calibration, base)
    if calibration.own_teacher:
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
        counts = Counts(tower, index, calibration)
        source = block if calibration.source != "merged" else copy.deepcopy(block)
        scratch = copy.deepcopy(block)
        groups = [group for where, group in chosen.values() if where == path]
        points = block
        if calibration.needs_base:
            assert base is not None
            tower.load(points := copy.deepcopy(block), path, base)
            _extrapolate(points, block, calibration.anchor_point)
        stages = list(_stages(block, groups, counts, calibration))
        posed = [rows for problems, _ in stages for rows in problems]
        onward = path != "head" and _later(chosen, index, len(tower.blocks))
        passes = Passes(counts, path, source, scratch, experts, streams, expert_streams, posed, onward)
        for problems, norms in stages:
            gathered = {rows: Gathered.empty(block, rows, calibration) for rows in problems}
            of_norms = {norm: _no_norm_moments(block.get_submodule(norm)) for norm in norms}
            for task in streams:
                gather_task(gathered, of_norms, passes, task)
            for norm, moments in of_norms.items():
                _solve_norm(block.get_submodule(norm), points.get_submodule(norm), moments, calibration)
            if not problems:
                continue
            elapsed = (time.perf_counter() - clock) / len(problems)
            for rows in problems:
                name = group_name(path, rows.group) + rows.suffix
                point = stacked(points, rows)
                yield _solve_rows(name, block, rows, gathered[rows], point, calibration, solve, elapsed)
            clock = time.perf_counter()
        if not onward:
            return
        for task in streams:
            passes.advance(task)


def _check(experts: Mapping[str, Checkpoint], inputs: Mapping[str, Batches]) -> None:
    if list(experts) != list(inputs):
        raise UserError(
            f"experts are of tasks {list(experts)}, calibration inputs of {list(inputs)}; they must agree"
        )
    for task, x in inputs.items():
        if not len(x):
            raise UserError(f"task {task!r} has no calibration sample; give at least one")


def refuse_unfit(tower: Tower, calibration: Calibration, base: Checkpoint | None) -> None:
    """Refuse axes that need what the tower or the caller does not have; raises UserError."""
    if calibration.patch_weight != 1 and not tower.pooled:
        raise UserError(
            f"patch_weight {calibration.patch_weight} needs a head that reads a class token alone, as an "
            "image tower has; leave it out"
        )
    if calibration.closed_norms and not any(tower.norms):
        raise UserError(f"norms {calibration.norms!r} needs a tower that names its norms; leave it out")
    if calibration.needs_base and base is None:
        raise UserError(
            f"anchor_point {calibration.anchor_point} needs the base model's weights; give them as base"
        )


def _stages(
    block: nn.Module, groups: Sequence[SharedInput], counts: Counts, calibration: Calibration
) -> Iterator[tuple[list[Rows], list[str]]]:
    """What is gathered together: problems, and norms by path.

    Only inputs that see layers of this block as they are by now are gathered stage after stage.
    """
    if calibration.source == "quantised" and calibration.sequential == "group":
        for group in groups:
            if norms := counts.norms([group]):
                yield [], norms
            yield counts.problems(block, group), []
    elif groups:
        yield [rows for group in groups for rows in counts.problems(block, group)], counts.norms(groups)


def _extrapolate(base: nn.Module, merged: nn.Module, point: float) -> None:
    """Make the base's parameters those of the anchor's point, rho W_m + (1 - rho) W_0."""
    for origin, parameter in zip(base.parameters(), merged.parameters(), strict=True):
        origin.copy_((point * parameter.double() + (1 - point) * origin.double()).to(origin))


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


def _no_norm_moments(norm: nn.Module) -> NormMoments:
    scale, _ = affine(norm)
    return NormMoments.empty(len(scale), scale.device)


def _solve_norm(norm: nn.Module, point: nn.Module, moments: NormMoments, calibration: Calibration) -> None:
    ridge = anchor_strength(moments.energy, calibration.anchor, calibration.anchor_scale)
    scale, shift = moments.solve(affine(point), ridge)
    own = dict(norm.named_parameters())
    own["weight"].copy_(scale)
    if shift is not None:
        own["bias"].copy_(shift)


def _solve_rows(
    name: str,
    block: nn.Module,
    rows: Rows,
    gathered: Gathered,
    point: tuple[Tensor, Tensor],
    calibration: Calibration,
    solve: Solver,
    calibrate_seconds: float,
) -> LayerReport:
    start = time.perf_counter()
    merged, bias = (tensor.cpu() for tensor in stacked(block, rows))
    point_weight, point_bias = (tensor.cpu() for tensor in point)
    gathered = gathered.cpu()  # problems are posed and solved there, in float64, wherever the model is
    moments = gathered.moments
    problem = _problem(merged, moments, calibration, point_weight)
    solution = solve(problem)
    dense = solution.dequantize() if isinstance(solution, QuantizedWeight) else solution.float()
    if calibration.closed_biases:
        ridge = anchor_strength(moments.gram.diagonal(), calibration.anchor, calibration.anchor_scale)
        found = dense.double() @ gathered.mean_input
        bias = solved_bias(gathered.mean_target, found, moments.weight_total, point_bias, ridge)
    elif calibration.recalibrate == "bias":
        wanted = gathered.mean_target
        if calibration.target == "merged":
            wanted = merged @ gathered.mean_input + moments.weight_total * bias
        if moments.weight_total:  # all tasks weigh nothing where the inputs are all zero
            bias = (wanted - dense.double() @ gathered.mean_input) / moments.weight_total
    _write(block, rows, dense, bias)
    deviations = moments.deviations(dense, problem.centre, merged, problem.moved_on_inputs)
    # The Hessian is the Gram matrix and a ridge: the one product with them is in the deviations already.
    added = problem.hessian.diagonal() - moments.gram.diagonal()
    rounded = (dense.to(problem.centre) - problem.centre).square().sum(0)
    return LayerReport(
        name=name,
        rows=merged.shape[0],
        columns=merged.shape[1],
        objective=deviations.rounding + float(rounded @ added),
        deviations=deviations,
        packed_bits=solution.packed_bits if isinstance(solution, QuantizedWeight) else None,
        warnings=problem.warnings,
        calibrate_seconds=calibrate_seconds,
        solve_seconds=time.perf_counter() - start,
        solution=solution if isinstance(solution, QuantizedWeight) else None,
    )


def _problem(merged: Tensor, moments: Moments, calibration: Calibration, point: Tensor) -> LayerProblem:
    return LayerProblem.from_moments(
        merged,
        moments,
        target=calibration.target,
        anchor=calibration.anchor,
        anchor_scale=calibration.anchor_scale,
        damping=calibration.damping,
        point=point,
        anchor_in=calibration.anchor_in,
        asymmetry=calibration.asymmetry,
    )


def _write(block: nn.Module, rows: Rows, weight: Tensor, bias: Tensor) -> None:
    """Copy a problem's rows to the layers that they are of."""
    first, last, start = rows.start, rows.start + len(weight), 0
    for layer in linears(block, rows.group):
        stop = start + len(layer.weight)
        here = slice(max(start, first), min(stop, last))
        if here.start < here.stop:
            own, given = (slice(here.start - x, here.stop - x) for x in (start, first))
            layer.weight[own].copy_(weight[given])
            if has_bias(layer):
                layer.bias[own].copy_(bias[given])
        start = stop
