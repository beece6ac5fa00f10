"""The walk poses the problems that full forward passes over the whole model pose.

Everything here is recomputed the plain way: whole towers, hooks, all tokens at once, float64 formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import baselines
from epmq.calibration import Calibration
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.walk import LayerReport, walk
from tests.fixtures.tiny_suite import TinyVisual

TASKS = ("fruit", "birds")
SOURCES = ("merged", "quantised", "expert")


def layer_of(tower: Tower, name: str) -> nn.Linear:
    """The layer of a group's name: in open_clip's tower every group is one layer."""
    layer = tower.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


@torch.no_grad()
def layer_input(tower: Tower, name: str, images: Tensor) -> Tensor:
    """Input ``(tokens, columns)`` float64 of one layer in a full forward pass."""
    seen: list[Tensor] = []
    handle = layer_of(tower, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tower(images)
    handle.remove()
    return seen[0].flatten(0, 1).double()


@dataclass
class Expected:
    """One layer's problem, diagnostics and bias, from all tokens at once."""

    hessian: Tensor
    centre: Tensor
    target_mean: Tensor
    input_mean: Tensor
    total: float
    inputs: list[Tensor]
    shares: list[float]
    weights: list[Tensor]
    merged: Tensor
    outputs: list[Tensor]
    counts: list[Tensor]

    def from_targets(self, weight: Tensor) -> float:
        """sum_t c_t E||y_t - weight x_t||^2, tokens weighed."""
        parts = zip(self.shares, self.outputs, self.inputs, self.counts, strict=True)
        return sum(c * float(w @ (y - x @ weight.T).square().sum(1) / w.sum()) for c, y, x, w in parts)

    def deviation(self, *gaps: Tensor) -> float:
        """sum_t c_t E||gap_t x_t||^2."""
        parts = zip(self.shares, gaps, self.inputs, self.counts, strict=True)
        return sum(c * float(w @ (x @ gap.T).square().sum(1) / w.sum()) for c, gap, x, w in parts)


class Brute:
    """What each layer should be asked, given the model as it stands."""

    def __init__(self, made: TinyVisual, calibration: Calibration) -> None:
        self.made, self.calibration = made, calibration
        self.pristine = copy.deepcopy(made.tower)
        self.experts = {t: copy.deepcopy(made.tower).load_all(e) for t, e in made.experts.items()}

    def expected(self, name: str) -> Expected:
        axes, merged = self.calibration, layer_of(self.pristine, name)
        columns = merged.weight.shape[1]
        hessian, right = torch.zeros(columns, columns).double(), torch.zeros(merged.weight.shape).double()
        mean, target_mean, total = torch.zeros(columns).double(), torch.zeros(len(right)).double(), 0.0
        inputs, shares, weights, outputs, counts = [], [], [], [], []
        for task in TASKS:
            images = self.made.inputs[task]
            expert = self.pristine if axes.teacher == "merged" else self.experts[task]
            source = {"merged": self.pristine, "quantised": self.made.tower, "expert": expert}[axes.source]
            x, own = layer_input(source, name, images), layer_input(expert, name, images)
            if axes.source == "expert":
                x = own
            a = axes.mixing if axes.target == "expert" else 0.0
            mixed = (1 - a) * x + a * own
            keep = axes.off_diagonal + (1 - axes.off_diagonal) * torch.eye(columns).double()
            count = self.counted(name, images)
            share_of = count / count.sum()
            weighed = share_of[:, None] * x
            gram, cross = keep * (x.T @ weighed), keep * (mixed.T @ weighed)
            share = 1 / float(gram.square().sum().sqrt()) if axes.task_weight == "frobenius" else 1.0
            layer = layer_of(expert, name)
            weight, bias = layer.weight.double(), layer.bias.double()
            hessian += share * gram
            right += share * weight @ cross
            mean += share * (share_of @ x)
            target_mean += share * (weight @ (share_of @ mixed) + bias)
            total += share
            inputs.append(x)
            shares.append(share)
            weights.append(weight)
            outputs.append(mixed @ weight.T)
            counts.append(count)
        mean_diagonal, eye = float(hessian.diagonal().mean()), torch.eye(columns).double()
        centre = merged.weight.double()
        if axes.target == "expert":
            anchor = axes.anchor * (mean_diagonal if axes.anchor_scale == "relative" else 1.0)
            hessian += anchor * eye
            centre = torch.linalg.solve(hessian, (right + anchor * centre).T).T
        else:
            target_mean = centre @ mean + total * merged.bias.double()
        hessian += axes.damping * mean_diagonal * eye
        shapes = (inputs, shares, weights)
        kept = merged.weight.double(), outputs, counts
        return Expected(hessian, centre, target_mean, mean, total, *shapes, *kept)

    def counted(self, name: str, images: Tensor) -> Tensor:
        """What every token counts for: behind the last attention the class token 1, the others less."""
        tokens = layer_input(self.pristine, name, images).shape[0] // len(images)
        counts = torch.ones(len(images), tokens).double()
        if f"blocks.{len(self.pristine.blocks) - 1}." in name and "in_proj" not in name:
            counts[:, 1:] = self.calibration.patch_weight
        return counts.flatten()


def steps(
    made: TinyVisual, calibration: Calibration, **options: Any
) -> Iterator[tuple[Expected, LayerProblem, LayerReport, nn.Linear]]:
    """Walk with 3-bit rounding; before each step, work out what it should see."""
    brute, posed = Brute(made, calibration), []
    rounding = baselines.get("rtn")

    def solve(problem: LayerProblem) -> QuantizedWeight:
        posed.append(problem)
        return rounding(problem, QuantSpec(bits=3))

    reports = walk(made.tower, made.experts, made.inputs, calibration, solve, **options)
    for name in layer_groups(made.tower, calibration.layers):
        expected = brute.expected(name)
        report = next(reports)
        assert report.name == name
        yield expected, posed[-1], report, layer_of(made.tower, name)
    assert list(reports) == []


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Equal up to float32 activations, relative to the largest entry."""
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mixing", [0.0, 0.3, 1.0])
def test_every_layer_is_posed_the_expert_guided_problem(
    tiny_visual: TinyVisual, source: Any, mixing: float
) -> None:
    calibration = Calibration("expert", source=source, mixing=mixing, anchor=0.05)
    for expected, problem, _, _ in steps(tiny_visual, calibration, batch_size=8):
        close(problem.hessian, expected.hessian)
        close(problem.centre, expected.centre)
        assert torch.equal(problem.reference, expected.merged)


@pytest.mark.parametrize("source", SOURCES)
def test_every_layer_is_posed_the_merged_problem(tiny_visual: TinyVisual, source: Any) -> None:
    for expected, problem, _, _ in steps(tiny_visual, Calibration("merged", source=source, damping=0.02)):
        close(problem.hessian, expected.hessian)
        assert torch.equal(problem.centre, expected.centre)


@pytest.mark.parametrize(
    "axes",
    [
        {"off_diagonal": 0.5},
        {"off_diagonal": 0.5, "mixing": 0.3},
        {"task_weight": "frobenius"},
        {"task_weight": "frobenius", "mixing": 0.3, "off_diagonal": 0.9},
        {"anchor_scale": "absolute", "anchor": 0.3},
        {"damping": 0.3},
        {"teacher": "merged", "mixing": 1.0},
        {"teacher": "merged", "mixing": 0.4, "anchor": 0.5},
        {"patch_weight": 0.0, "anchor": 0.05},
        {"patch_weight": 0.25, "mixing": 0.6},
        {"patch_weight": 0.01, "mixing": 0.6, "off_diagonal": 0.9},
    ],
    ids=str,
)
def test_axes_enter_the_problem_as_their_names_say(tiny_visual: TinyVisual, axes: dict[str, Any]) -> None:
    for expected, problem, _, _ in steps(tiny_visual, Calibration("expert", **axes)):
        close(problem.hessian, expected.hessian)
        close(problem.centre, expected.centre)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("target", ["merged", "expert"])
@pytest.mark.parametrize("task_weight", ["uniform", "frobenius"])
@pytest.mark.parametrize("patch_weight", [1.0, 0.3])
def test_deviations_are_those_of_all_tokens(
    tiny_visual: TinyVisual, source: Any, target: Any, task_weight: Any, patch_weight: float
) -> None:
    axes = {"mixing": 0.3, "task_weight": task_weight, "patch_weight": patch_weight}
    for expected, problem, report, layer in steps(tiny_visual, Calibration(target, source=source, **axes)):
        rounded, merged, found = layer.weight.double(), expected.merged, report.deviations
        parts = {
            "quantisation": expected.deviation(*[merged - rounded] * len(TASKS)),
            "rounding": expected.deviation(*[problem.centre - rounded] * len(TASKS)),
            "move": expected.deviation(*[problem.centre - merged] * len(TASKS)),
            "expert": expected.from_targets(rounded),
            "centre": expected.from_targets(problem.centre),
            "merging": expected.from_targets(merged),
        }
        for name, value in parts.items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-3, abs=1e-9), name
        gap = rounded - problem.centre
        assert report.objective == pytest.approx(float((gap @ problem.hessian * gap).sum()), rel=1e-9)
        assert (report.rows, report.columns) == layer.weight.shape


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "axes", [{}, {"mixing": 1.0}, {"task_weight": "frobenius"}, {"patch_weight": 0.2, "mixing": 0.5}], ids=str
)
@pytest.mark.parametrize("target", ["merged", "expert"])
def test_recalibrated_biases_make_mean_outputs_meet_the_target(
    tiny_visual: TinyVisual, source: Any, target: Any, axes: dict[str, Any]
) -> None:
    calibration = Calibration(target, source=source, recalibrate="bias", **axes)
    for expected, _, _, layer in steps(tiny_visual, calibration):
        output = layer.weight.double() @ expected.input_mean + expected.total * layer.bias.double()
        close(output, expected.target_mean)


def test_biases_and_norms_stay_the_merged_ones_by_default(tiny_visual: TinyVisual) -> None:
    before = tiny_visual.checkpoint()
    for _ in steps(tiny_visual, Calibration("expert")):
        pass
    changed = {name for name, x in tiny_visual.checkpoint().items() if not torch.equal(x, before[name])}
    linear = ("attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    assert changed == {f"transformer.resblocks.{i}.{name}" for i in range(2) for name in linear}


def test_only_the_matching_layers_are_walked_and_changed(tiny_visual: TinyVisual) -> None:
    before = tiny_visual.checkpoint()
    found = [report.name for _, _, report, _ in steps(tiny_visual, Calibration(layers="*.1.mlp.*"))]
    assert found == ["blocks.1.mlp.c_fc", "blocks.1.mlp.c_proj"]
    changed = {name for name, x in tiny_visual.checkpoint().items() if not torch.equal(x, before[name])}
    assert changed == {f"transformer.resblocks.1.mlp.{name}.weight" for name in ("c_fc", "c_proj")}
