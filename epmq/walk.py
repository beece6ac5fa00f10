"""The calibration walk: block by block, gather moments, pose each layer's problem, write its solution.

The states at the boundary of the current block, batch by batch, are all the activations that are kept.
Experts are read block by block into one scratch block. The walk never looks at labels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from epmq.calibration import Calibration
from epmq.errors import UserError
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.weight import QuantizedWeight
from epmq.merging import Checkpoint
from epmq.models.layers import group_name, layer_groups
from epmq.models.tower import SharedInput, State, Tower

Solver = Callable[[LayerProblem], QuantizedWeight | Tensor]
Batches = Tensor | Sequence[Any]  # model inputs: (n, ...), cut into batches by the walk, or batches
Stream = list[State]  # one task's states, a batch each


@dataclass(frozen=True)
class LayerReport:
    """What happened to one group of linear layers that read the same input.

    Deviations are claim C3's, weighted by c_t: ``quantisation`` E||(W_m - Q) x||^2, ``expert``
    E||(W_t - Q) x||^2 and ``merging`` E||(W_t - W_m) x||^2, on the inputs that the walk calibrated on.
    ``packed_bits`` is ``None`` for a full-precision solution.
    """

    name: str
    rows: int
    columns: int
    objective: float
    quantisation_deviation: float
    expert_deviation: float | None
    merging_deviation: float | None
    packed_bits: int | None
    warnings: tuple[str, ...]
    calibrate_seconds: float
    solve_seconds: float


class _Reached(Exception):
    """The forward pass has come to the last layer whose input is wanted."""


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
        source = block if calibration.source != "merged" else copy.deepcopy(block)
        scratch = copy.deepcopy(block)
        groups = [group for where, group in chosen.values() if where == path]
        # Only inputs that see this block's quantised layers have to be gathered layer after layer.
        stages = [[g] for g in groups] if calibration.source == "quantised" else [groups] if groups else []
        for stage in stages:
            gathered = {g: _Gathered.empty(block, g, calibration) for g in stage}
            for task, states in streams.items():
                tower.load(scratch, path, experts[task])
                pair = (source, states), (scratch, expert_streams[task])
                _gather_task(gathered, pair, calibration, partial(tower.valid, index))
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


def _linears(block: nn.Module, group: SharedInput) -> list[nn.Linear]:
    found = [block.get_submodule(path) for path in group]
    assert all(isinstance(layer, nn.Linear) for layer in found)
    return found  # type: ignore[return-value]


def _stacked(block: nn.Module, group: SharedInput) -> tuple[Tensor, Tensor]:
    """Weights and biases of a group, stacked over output rows, float64."""
    layers = _linears(block, group)
    biases = [
        layer.bias if _has_bias(layer) else layer.weight.new_zeros(len(layer.weight)) for layer in layers
    ]
    return torch.cat([layer.weight.detach() for layer in layers]).double(), torch.cat(biases).double()


def _has_bias(layer: nn.Linear) -> bool:
    """Whether a linear layer has a bias (torch's annotation says it always does)."""
    return "bias" in dict(layer.named_parameters())


@dataclass
class _Gathered:
    """Moments of one group, and the weighted means that recalibrating the bias needs."""

    moments: Moments
    mean_input: Tensor
    mean_target: Tensor

    @classmethod
    def empty(cls, block: nn.Module, group: SharedInput, calibration: Calibration) -> _Gathered:
        weight, bias = _stacked(block, group)
        return cls(
            Moments.empty(weight, calibration.task_weight), weight.new_zeros(weight.shape[1]), bias * 0
        )

    def cpu(self) -> _Gathered:
        return _Gathered(self.moments.cpu(), self.mean_input.cpu(), self.mean_target.cpu())


def _gather_task(
    gathered: Mapping[SharedInput, _Gathered],
    pair: tuple[tuple[nn.Module, Stream], tuple[nn.Module, Stream]],
    calibration: Calibration,
    valid: Callable[[SharedInput, State], Tensor | None],
) -> None:
    """Fold one task's moments into every group: Gram of x, cross moment of x~ and x."""
    (source, states), (expert, expert_states) = pair
    sums = {g: _Sums() for g in gathered}
    groups = list(gathered)
    for state, expert_state in zip(states, expert_states, strict=True):
        seen = _layer_inputs(expert, expert_state, groups, valid) if calibration.follows_experts else {}
        own = seen if calibration.source == "expert" else _layer_inputs(source, state, groups, valid)
        for group, total in sums.items():
            total.add(own[group], seen.get(group))
    for group, total in sums.items():
        _fold(gathered[group], total, expert, group, calibration)


@dataclass
class _Sums:
    """Sums over one task's tokens: x x^T, x_expert x^T, x and x_expert."""

    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    mean: Tensor | float = 0.0
    expert_mean: Tensor | float = 0.0
    tokens: int = 0

    def add(self, x: Tensor, expert_x: Tensor | None) -> None:
        self.tokens += len(x)
        self.gram = self.gram + (x.T @ x).double()
        self.mean = self.mean + x.sum(0).double()
        if expert_x is not None:
            self.cross = self.cross + (expert_x.T @ x).double()
            self.expert_mean = self.expert_mean + expert_x.sum(0).double()


def _fold(
    into: _Gathered, total: _Sums, expert: nn.Module, group: SharedInput, calibration: Calibration
) -> None:
    weight, bias = _stacked(expert, group)
    gram, mean = total.gram / total.tokens, total.mean / total.tokens
    assert isinstance(gram, Tensor)
    assert isinstance(mean, Tensor)
    mixed_mean, cross = mean, None
    if calibration.target == "expert" and calibration.mixing:
        a = calibration.mixing
        cross = (1 - a) * gram + a * (total.cross / total.tokens)
        mixed_mean = (1 - a) * mean + a * (total.expert_mean / total.tokens)
        assert isinstance(cross, Tensor)
        cross = _shrunk(cross, calibration.off_diagonal)
    share = into.moments.add(_shrunk(gram, calibration.off_diagonal), weight, cross)
    into.mean_input += share * mean
    into.mean_target += share * (weight @ mixed_mean + bias)


def _shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    if off_diagonal == 1:
        return gram
    return off_diagonal * gram + (1 - off_diagonal) * torch.diag(gram.diagonal())


def _layer_inputs(
    block: nn.Module,
    state: State,
    groups: Sequence[SharedInput],
    valid: Callable[[SharedInput, State], Tensor | None],
) -> dict[SharedInput, Tensor]:
    """Inputs ``(tokens, columns)`` of each group's layers, without padding; the pass ends at the last one."""
    seen: dict[SharedInput, Tensor] = {}

    def watch(group: SharedInput) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            counts = valid(group, state)
            tokens = args[0].flatten(0, -2)
            seen[group] = tokens if counts is None else tokens[counts.flatten()]
            if len(seen) == len(groups):
                raise _Reached

        return hook

    handles = [block.get_submodule(g[0]).register_forward_pre_hook(watch(g)) for g in groups]
    try:
        block(state)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return seen


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
        objective=problem.objective(dense),
        quantisation_deviation=float(((dense.double() - table) ** 2).sum()),
        expert_deviation=None,
        merging_deviation=None,
        packed_bits=solution.packed_bits if isinstance(solution, QuantizedWeight) else None,
        warnings=(),
        calibrate_seconds=0.0,
        solve_seconds=time.perf_counter() - start,
    )


def _solve_group(
    name: str,
    block: nn.Module,
    group: SharedInput,
    gathered: _Gathered,
    calibration: Calibration,
    solve: Solver,
    calibrate_seconds: float,
) -> LayerReport:
    start = time.perf_counter()
    merged, bias = (tensor.cpu() for tensor in _stacked(block, group))
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
        quantisation_deviation=moments.quantisation_deviation(dense, merged),
        expert_deviation=moments.expert_deviation(dense),
        merging_deviation=moments.expert_deviation(merged),
        packed_bits=solution.packed_bits if isinstance(solution, QuantizedWeight) else None,
        warnings=problem.warnings,
        calibrate_seconds=calibrate_seconds,
        solve_seconds=time.perf_counter() - start,
    )


def _problem(merged: Tensor, moments: Moments, calibration: Calibration) -> LayerProblem:
    if calibration.target == "merged":
        return LayerProblem.from_moments(merged, moments, target="merged", ridge=calibration.damping)
    return LayerProblem.from_moments(
        merged, moments, target="expert", ridge=calibration.anchor, ridge_scale=calibration.anchor_scale
    )


def _write(block: nn.Module, group: SharedInput, weight: Tensor, bias: Tensor) -> None:
    start = 0
    for layer in _linears(block, group):
        rows = slice(start, start + len(layer.weight))
        layer.weight.copy_(weight[rows])
        if _has_bias(layer):
            layer.bias.copy_(bias[rows])
        start = rows.stop
