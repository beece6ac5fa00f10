"""The library's front door: a merged model quantised in place, in one call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from epmq.calibration import Calibration
from epmq.checkpoints.lazy import prefix_of
from epmq.errors import UserError, choose
from epmq.experts import fitting
from epmq.gather.passes import Batches
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.merging import Checkpoint
from epmq.merging import known as known_merges
from epmq.methods import Rounding, chosen
from epmq.models.adapters import opened
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.walk import LayerReport, refuse_unfit, walk


@dataclass(frozen=True)
class Quantised:
    """What :func:`quantise` did.

    Attributes:
        layers: a report per group of linear layers that read the same input, in the order of the model.
        weights: codes and grid of every group, by the report's name; the rows of its layers are stacked in
            the order of the name (``q_proj+k_proj+v_proj``).
        spec: the grid that was asked for.
        calibration: every axis of the calibration.
    """

    layers: tuple[LayerReport, ...]
    weights: dict[str, QuantizedWeight]
    spec: QuantSpec
    calibration: Calibration

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a quantised weight, with scales, zero points and input scales."""
        sizes = [weight.codes.numel() for weight in self.weights.values()]
        return sum(weight.packed_bits for weight in self.weights.values()) / sum(sizes)

    @property
    def warnings(self) -> list[str]:
        """What was done to make layers well posed, with their names."""
        return [f"{layer.name}: {warning}" for layer in self.layers for warning in layer.warnings]


def quantise(
    model: Tower | nn.Module,
    experts: Mapping[str, Any],
    inputs: Mapping[str, Any],
    method: str | Rounding = "epmq",
    spec: QuantSpec | None = None,
    *,
    merge: str | None = None,
    merge_options: Mapping[str, Any] | None = None,
    calibration: Calibration | Mapping[str, Any] | None = None,
    base: Any = None,
    batch_size: int = 64,
) -> Quantised:
    """Quantise the linear layers of a merged model in place; labels are never looked at.

    Args:
        model: holds the merged weights, or with ``merge`` those of the base: a CLIP model of transformers or
            open_clip (its image tower is quantised), a T5, a causal language model built like Llama, or any
            :class:`epmq.models.tower.Tower`, in float32.
        experts: of each task a state dict, a model like ``model``, or a checkpoint of
            :func:`epmq.load_experts`.
        inputs: of the same tasks, what calibrates: images ``(n, 3, height, width)`` as the model takes them,
            or what a tokenizer gives (padded on the right), whole or as a list of batches.
        method: a name of ``epmq list``, as ``"gptq"`` or ``"epmq-features"``, or a function that turns a
            :class:`epmq.LayerProblem` and a :class:`epmq.QuantSpec` into a :class:`epmq.QuantizedWeight`.
        spec: bits and grid; 4 bits with a scale per output channel where it is left out.
        merge: merge the experts into the model first, by this method of ``epmq list``.
        merge_options: the merging method's own, as ``{"scale": 0.3}``.
        calibration: axes over the method's own, as ``{"anchor": 0.01}``; with a rounding (``"gptq"``, or a
            function) a whole :class:`epmq.Calibration` will do. A rounding's target is ``"merged"`` unless
            it is named here.
        base: the model that the experts were fine-tuned from, as an expert is given; read only by the axis
            ``anchor_point``. With ``merge`` it is what ``model`` holds at first.
        batch_size: samples that pass the model together.

    Raises:
        UserError: any argument is not what is asked for. It is raised before the model is changed, except for
            a merging method's or a rounding's own complaints.
    """
    spec = QuantSpec() if spec is None else spec
    if not isinstance(spec, QuantSpec):
        raise UserError(f"spec is a {type(spec).__name__}; give a QuantSpec, as QuantSpec(bits=4)")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} is out of range; give 1 or more")
    rounding, axes = chosen(method, calibration)
    options = _merge_options(merge, merge_options)
    with opened(model) as tower:
        if base is not None:
            if not axes.needs_base:
                raise UserError("base changes nothing where anchor_point is 1; leave it out")
            base = fitting(base, tower, "base")
        elif merge is not None and axes.needs_base:
            base = {name: p.detach().cpu().clone() for name, p in tower.merged_parameters().items()}
        _refuse_impossible(model, tower, axes, spec, base)
        batches = _batches(experts, inputs, tower, batch_size)
        checkpoints = {
            task: fitting(expert, tower, f"expert of {task!r}") for task, expert in experts.items()
        }
        if merge is not None:
            _merge_into(tower, merge, checkpoints, options)
        report = _walked(tower, checkpoints, batches, axes, rounding, spec, base)
        if tower is not model and tower.model is None:
            _write_back(tower, model)
        return report


def _refuse_impossible(
    model: nn.Module, tower: Tower, calibration: Calibration, spec: QuantSpec, base: Checkpoint | None
) -> None:
    refuse_unfit(tower, calibration, base)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(f"parameter {name!r} is {parameter.dtype}, expected float32; call model.float()")
    for part, group in layer_groups(tower, calibration.layers).values():
        spec.columns_per_group(tower.get_parameter(f"{part}.{group[0]}.weight").shape[1])


def _merge_options(merge: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    if merge is None:
        if options:
            raise UserError("merge_options without a merge change nothing; name the merge or leave them out")
        return {}
    choose("merge", merge, known_merges())
    parameters = inspect.signature(known_merges()[merge]).parameters.values()
    for name in options or {}:
        choose(f"option of {merge}", name, [p.name for p in parameters if p.kind is p.KEYWORD_ONLY])
    return dict(options or {})


def _merge_into(
    tower: Tower, merge: str, experts: Mapping[str, Checkpoint], options: Mapping[str, Any]
) -> None:
    method = known_merges()[merge]
    if tower.tied and "multiplicity" in inspect.signature(method).parameters:
        options = {"multiplicity": tower.multiplicity, **options}
    base = {name: p.detach().cpu().clone() for name, p in tower.merged_parameters().items()}
    tower.load_stream(method(base, list(experts.values()), **options))


def _batches(
    experts: Mapping[str, Any], inputs: Mapping[str, Any], tower: Tower, size: int
) -> Mapping[str, Batches]:
    """The inputs on the model's device, cut into batches, in the order of the experts' tasks.

    Raises:
        UserError: tasks differ, a task has no sample, or the model cannot read one.
    """
    for name, value in (("experts", experts), ("inputs", inputs)):
        if not isinstance(value, Mapping):
            raise UserError(f"{name} is a {type(value).__name__}; give a mapping from tasks")
    if not experts or set(experts) != set(inputs):
        raise UserError(
            f"experts are of tasks {sorted(experts)}, inputs of {sorted(inputs)}; give both of the same tasks"
        )
    device = next(tower.parameters()).device
    found = {task: [_moved(x, device) for x in _cut(task, inputs[task], size)] for task in experts}
    for task, batches in found.items():
        _refuse_unreadable(task, batches[0], tower)
    return found


def _cut(task: str, x: Any, size: int) -> list[Any]:
    if isinstance(x, Tensor) and x.dim():
        parts = list(x.split(size)) if len(x) else []
    elif isinstance(x, Mapping) and x and all(isinstance(v, Tensor) and v.dim() for v in x.values()):
        count = len(next(iter(x.values())))
        parts = [{k: v[i : i + size] for k, v in x.items()} for i in range(0, count, size)]
    elif isinstance(x, list | tuple):
        parts = list(x)
    else:
        raise UserError(
            f"inputs of {task!r} are a {type(x).__name__}; give a tensor, a mapping of tensors or a list of "
            "either"
        )
    if not parts:
        raise UserError(f"inputs of {task!r} hold no sample; give at least one")
    return parts


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Mapping):
        return {name: value.to(device) for name, value in batch.items()}
    return batch.to(device) if isinstance(batch, Tensor) else batch


@torch.no_grad()
def _refuse_unreadable(task: str, batch: Any, tower: Tower) -> None:
    """Pass one sample through the model, which says at once what would otherwise fail layers later."""
    try:
        one = {k: v[:1] for k, v in batch.items()} if isinstance(batch, Mapping) else batch[:1]
        found = tower(one)
    except Exception as error:  # whatever a model raises over inputs that are not its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"inputs of {task!r} cannot be read by the model ({reason}); give what it takes"
        ) from error
    if not bool(torch.isfinite(found).all()):
        raise UserError(f"inputs of {task!r} give NaN or Inf in the model; check the samples and the weights")


def _walked(
    tower: Tower,
    experts: Mapping[str, Checkpoint],
    inputs: Mapping[str, Batches],
    calibration: Calibration,
    rounding: Rounding,
    spec: QuantSpec,
    base: Checkpoint | None,
) -> Quantised:
    solved: list[QuantizedWeight] = []

    def solve(problem: LayerProblem) -> QuantizedWeight:
        found: Any = rounding(problem, spec)
        if not isinstance(found, QuantizedWeight) or found.codes.shape != problem.centre.shape:
            shape = tuple(problem.centre.shape)
            raise UserError(
                f"method returned a {type(found).__name__}, expected a QuantizedWeight of shape {shape}"
            )
        solved.append(found)
        return found

    layers = tuple(walk(tower, experts, inputs, calibration, solve, base=base))
    weights = {layer.name: weight for layer, weight in zip(layers, solved, strict=True)}
    return Quantised(layers, weights, spec, calibration)


@torch.no_grad()
def _write_back(tower: Tower, model: Any) -> None:
    """Copy a tower's weights to the model that it is a copy of."""
    ours, theirs = tower.merged_parameters(), dict(model.named_parameters())
    prefix = prefix_of(theirs, ours, f"model {type(model).__name__}")
    for name, parameter in ours.items():
        theirs[prefix + name].copy_(parameter)
