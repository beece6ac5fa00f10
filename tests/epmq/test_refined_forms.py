"""Refinement over levels, rotations, exceptions and real zero points: what stays, and its gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import baselines
from baselines import refinements
from epmq.calibration import Calibration
from epmq.layer.exceptions import Exceptions
from epmq.layer.grid import LEVELS, by_group, fit_grid
from epmq.layer.problem import LayerProblem
from epmq.layer.rotation import rotated
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.refinement.budget import Budget
from epmq.refinement.descent import Lessons, teach
from epmq.refinement.grids import FixedCodes, ThroughRounding, learnt_grids
from epmq.refinement.objective import FeatureDistance, outputs
from epmq.refinement.samples import TensorRows
from epmq.walk import walk
from tests.fixtures.tiny_suite import TinyVisual

pytestmark = pytest.mark.keeps_rng
CPU = torch.device("cpu")
NARROW = QuantSpec(grid="fp4", group_size=16, scale_dtype="e8m0")  # MXFP4 of layers with 16 columns
FORMS: dict[str, tuple[str, QuantSpec]] = {
    "NF4": ("gptq", QuantSpec(grid="nf4")),
    "FP4": ("gptq", QuantSpec(grid="fp4", group_size=8)),
    "MXFP4": ("gptq", QuantSpec(grid="mxfp4")),
    "NVFP4": ("gptq", QuantSpec(grid="nvfp4")),
    "rotated": ("quip", QuantSpec(3)),
    "exceptions": ("spqr", QuantSpec(3, 8)),
    "real zero points": ("hqq", QuantSpec(3, 8)),
}
BUDGET = Budget(steps=6, batch=4, learning_rate=0.03, warmup=1)


def rounding(form: str) -> Callable[[LayerProblem], QuantizedWeight]:
    name, spec = FORMS[form]
    method = baselines.get(name)

    def narrow_too(problem: LayerProblem) -> QuantizedWeight:
        fits = problem.centre.shape[1] % (spec.group_size or 1) == 0
        return method(problem, spec if fits else NARROW)

    return narrow_too


def rounded(made: TinyVisual, form: str) -> tuple[Tower, dict[str, QuantizedWeight]]:
    tower = copy.deepcopy(made.tower)
    steps = walk(tower, made.experts, made.inputs, Calibration(), rounding(form))
    return tower, {report.name: report.solution for report in steps if report.solution is not None}


def lessons(made: TinyVisual) -> Lessons:
    rows, objective = {task: TensorRows(x) for task, x in made.inputs.items()}, FeatureDistance(1.0)
    return Lessons(rows, teach(copy.deepcopy(made.tower), made.experts, rows, objective), objective)


def same_but_for_scales(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    if (one.exceptions is None) != (other.exceptions is None):
        return False
    kept = True
    if one.exceptions is not None and other.exceptions is not None:
        kept = torch.equal(one.exceptions.columns, other.exceptions.columns)
        kept = kept and torch.equal(one.exceptions.values, other.exceptions.values)
    equal = torch.equal(one.codes, other.codes) and torch.equal(one.zero, other.zero)
    return kept and equal and one.rotation == other.rotation and one.spec == other.spec


def holds(tower: Tower, quantised: dict[str, QuantizedWeight]) -> bool:
    """Whether the layers hold what the quantised weights come to, bit for bit."""
    for group, weight in quantised.items():
        ((part, paths),) = layer_groups(tower, group).values()
        dense = torch.cat([tower.get_parameter(f"{part}.{path}.weight") for path in paths])
        if not torch.equal(dense, weight.dequantize()):
            return False
    return True


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["tuned", "trained"])
def test_no_step_changes_nothing(tiny_visual: TinyVisual, form: str, name: str) -> None:
    tower, quantised = rounded(tiny_visual, form)
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    budget = Budget(steps=0, batch=4)
    found = refinements.get(name)(tower, quantised, lessons(tiny_visual), budget).quantised
    assert holds(tower, quantised)
    for group, weight in quantised.items():
        assert same_but_for_scales(found[group], weight)
        assert torch.equal(found[group].scale, weight.scale)
    assert all(torch.equal(p, before[name]) for name, p in tower.named_parameters())


@pytest.mark.parametrize("form", FORMS)
def test_tuning_moves_scales_alone_and_they_stay_what_is_stored(tiny_visual: TinyVisual, form: str) -> None:
    tower, quantised = rounded(tiny_visual, form)
    found = refinements.get("tuned")(tower, quantised, lessons(tiny_visual), BUDGET)
    assert holds(tower, dict(found.quantised))
    moved = [not torch.equal(found.quantised[g].scale, w.scale) for g, w in quantised.items()]
    assert any(moved) or form in ("MXFP4", "NVFP4"), "whose scales are far apart for these steps"
    for group, weight in quantised.items():
        ours = found.quantised[group]
        assert same_but_for_scales(ours, weight)
        assert ours.packed_bits == weight.packed_bits
        back = QuantizedWeight.from_bytes(ours.to_bytes())
        assert torch.equal(back.dequantize(), ours.dequantize())


@pytest.mark.parametrize("form", ["NF4", "NVFP4", "rotated", "exceptions"])
def test_training_stays_on_the_grid(tiny_visual: TinyVisual, form: str) -> None:
    tower, quantised = rounded(tiny_visual, form)
    found = refinements.get("trained")(tower, quantised, lessons(tiny_visual), BUDGET)
    assert holds(tower, dict(found.quantised))
    assert any(not torch.equal(found.quantised[g].codes, w.codes) for g, w in quantised.items())
    for group, weight in quantised.items():
        ours = found.quantised[group]
        assert ours.rotation == weight.rotation
        assert ours.packed_bits == weight.packed_bits
        assert torch.equal(QuantizedWeight.from_bytes(ours.to_bytes()).dequantize(), ours.dequantize())


@pytest.mark.parametrize("form", ["NF4", "FP4", "rotated", "exceptions", "real zero points"])
def test_gradients_of_scales_are_those_of_finite_differences(tiny_visual: TinyVisual, form: str) -> None:
    """Of the whole tower in float64; scales are stored in half precision, so that steps are longer."""
    tower, quantised = rounded(tiny_visual, form)
    tower, images = tower.double(), next(iter(tiny_visual.inputs.values()))[:3].double()
    generator = torch.Generator().manual_seed(0)
    with learnt_grids(tower, quantised, FixedCodes) as layers:
        grids = [grid for pairs in layers._grids.values() for _, grid in pairs]
        for grid in grids:
            grid.start, grid.zero = grid.start.double(), grid.zero.double()
            grid.factor = torch.nn.Parameter(grid.factor.double())
            object.__setattr__(grid.spec, "scale_dtype", "float32")
        target = torch.randn(outputs(tower, images, states=False)[0].shape, generator=generator)

        def loss() -> Tensor:
            found: Tensor = (outputs(tower, images, states=False)[0] - target).square().sum()
            return found

        gradients = torch.autograd.grad(loss(), [grid.factor for grid in grids])
        for grid, gradient in zip(grids, gradients, strict=True):
            at = tuple(int(i) for i in torch.unravel_index(gradient.abs().argmax(), gradient.shape))
            sides = []
            for step in (1e-3, -2e-3):
                with torch.no_grad():
                    grid.factor[at] += step
                    sides.append(float(loss()))
            with torch.no_grad():
                grid.factor[at] += 1e-3
            assert float(gradient[at]) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=2e-3)


def start(weight: Tensor, spec: QuantSpec, **parts: Any) -> QuantizedWeight:
    turned = weight if "rotation" not in parts else rotated(weight, parts["rotation"])
    scale, zero = fit_grid(by_group(turned, spec), spec, 0.6)  # some are beyond its ends
    found = QuantizedWeight.nearest(turned, scale, zero, spec)
    return QuantizedWeight(found.codes, found.scale, found.zero, spec, **parts)


@pytest.mark.parametrize("rotation", [None, 5])
@pytest.mark.parametrize("grid", ["nf4", "fp4"])
def test_through_rounding_gradients_are_those_of_learned_step_size(grid: Any, rotation: int | None) -> None:
    """Esser et al. 2020, equations 3 and 5, written out with the rotation's own matrix."""
    generator = torch.Generator().manual_seed(0)
    weight, upstream = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64)
    spec = QuantSpec(grid=grid, group_size=4, scale_dtype="float32")
    parts = {} if rotation is None else {"rotation": rotation}
    module = ThroughRounding(start(weight, spec, **parts), CPU)
    latent = weight.float().requires_grad_()
    (module(latent) * upstream.float()).sum().backward()
    turn = torch.eye(12).double() if rotation is None else rotated(torch.eye(12).double(), rotation).T
    values, above = weight @ turn.T, by_group(upstream @ turn.T, spec)
    scale = module.start.double()[..., None]
    place, table = by_group(values, spec) / scale, torch.tensor(LEVELS[grid], dtype=torch.float64)
    inside = (place >= table[0]) & (place <= table[-1])
    assert 0 < int((~inside).sum()) < inside.numel()
    assert latent.grad is not None
    assert module.factor.grad is not None
    wanted = (above * inside).flatten(1) @ turn
    torch.testing.assert_close(latent.grad.double(), wanted, rtol=1e-5, atol=1e-6)
    nearest = table[(place[..., None] - table).abs().argmin(-1)]
    of_scale = (nearest - place * inside) * scale
    torch.testing.assert_close(module.factor.grad.double(), (of_scale * above).sum(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [QuantSpec(2, scale_dtype="float32"), QuantSpec(grid="fp4")], ids=str)
def test_the_ends_of_the_range_have_a_gradient(spec: QuantSpec) -> None:
    table = torch.tensor(LEVELS[spec.grid] or [-1.0, 0.0, 1.0, 2.0])
    weight = 0.5 * torch.stack([table, table])
    scale, zero = torch.full((2, 1), 0.5), torch.full((2, 1), 8.0 if spec.symmetric else 1.0)
    module = ThroughRounding(QuantizedWeight.nearest(weight, scale, zero, spec), CPU)
    latent = weight.clone().requires_grad_()
    module(latent).sum().backward()
    assert latent.grad is not None
    assert torch.equal(module(latent), weight)
    assert torch.equal(latent.grad, torch.ones_like(weight))


def test_kept_weights_have_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, upstream = torch.randn(2, 6, 12, generator=generator)
    kept = Exceptions.of(weight, torch.arange(6)[:, None] + torch.tensor([0, 3]))
    module = ThroughRounding(start(weight.double(), QuantSpec(4), exceptions=kept), CPU)
    latent = weight.clone().requires_grad_()
    (module(latent) * upstream).sum().backward()
    assert latent.grad is not None
    where = torch.zeros(6, 12, dtype=torch.bool).scatter(1, kept.columns.long(), value=True)
    assert not bool(latent.grad[where].any())
    assert bool(latent.grad[~where].any())
    assert torch.equal(module(latent)[where], kept.values.flatten().float())
