"""GPTAQ's term in the column loop and QEP's correction, against their formulas written out in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.controls import CONTROLS
from epmq.calibration import Calibration
from epmq.layer.gptq import gptq
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.walk import walk
from tests.epmq.test_gptq import grid_of
from tests.fixtures.layers import layer
from tests.fixtures.tiny_suite import TinyVisual

Matrix = NDArray[np.float64]
SPECS = {
    "per-channel": QuantSpec(4),
    "2-bit": QuantSpec(2),
    "groups": QuantSpec(3, group_size=8),
    "small blocks": QuantSpec(3, block_size=8),
    "act-order": QuantSpec(4, act_order=True),
    "groups, act-order": QuantSpec(4, group_size=8, act_order=True),
    "symmetric": QuantSpec(3, symmetric=True, scale_dtype="float32"),
}


def asymmetric(factor: float, rows: int = 12, columns: int = 32, seed: int = 0) -> LayerProblem:
    at = layer(rows, columns, seed=seed)
    moments = Moments.empty(at.merged)
    for gram, cross in zip(at.grams, at.cross, strict=True):
        moments.add_shift(cross - gram, moments.add(gram))
    return LayerProblem.from_moments(at.merged, moments, target="merged", damping=0.01, asymmetry=factor)


def plain_gptaq(problem: LayerProblem, spec: QuantSpec) -> tuple[Matrix, Matrix]:
    """Codes and scales column by column, nothing put off, with a textbook factor of the inverse Hessian."""
    assert problem.asymmetry is not None
    weight, hessian, shift = (x.numpy().copy() for x in (problem.centre, problem.hessian, problem.asymmetry))
    rows, columns = weight.shape
    width = spec.group_size or columns
    order = np.arange(columns)
    if spec.act_order:
        order = np.argsort(-np.diag(hessian), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    past = np.triu(shift[np.ix_(order, order)] @ factor.T, 1) @ factor
    groups = [slice(start, start + width) for start in range(0, columns, width)]
    grids = [grid_of(weight[:, here], spec) for here in groups]
    codes = np.empty((rows, columns))
    for place, column in enumerate(order):
        if not spec.act_order and column % width == 0:
            grids[column // width] = grid_of(weight[:, groups[column // width]], spec)
        scale, zero = grids[column // width]
        value = weight[:, column].copy()
        codes[:, column] = np.clip(np.rint(value / scale) + zero, 0, 2**spec.bits - 1)
        error = (value - scale * (codes[:, column] - zero)) / factor[place, place]
        weight[:, order[place + 1 :]] -= np.outer(error, factor[place, place + 1 :])
        weight[:, order[place + 1 :]] += np.outer(value, past[place, place + 1 :])
    return codes, np.stack([scale for scale, _ in grids], axis=1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(SPECS))
def test_the_column_loop_is_that_of_the_plain_one(name: str, seed: int) -> None:
    problem, spec = asymmetric(0.25, seed=seed), SPECS[name]
    found = gptq(problem, spec)
    codes, scale = plain_gptaq(problem, spec)
    assert (found.codes.numpy() == codes).mean() > 0.99, "but for ties of the float32 loop"
    np.testing.assert_allclose(found.scale.double().numpy(), scale, rtol=2e-3)
    assert not torch.equal(found.codes, gptq(replace(problem, asymmetry=None), spec).codes)


def test_no_shift_is_gptq_bit_for_bit() -> None:
    problem = asymmetric(0.0)
    plain = replace(problem, asymmetry=None)
    for spec in SPECS.values():
        one, other = gptq(problem, spec), gptq(plain, spec)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.scale, other.scale)


def test_the_term_brings_outputs_nearer_to_those_in_full_precision() -> None:
    """Inputs that the layers before have shrunk and mixed: E||W x~ - Q x||^2 falls as the factor grows."""
    at = layer(24, 32)
    mix = torch.eye(32, dtype=torch.float64) + 0.1 * torch.randn(
        32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    errors = []
    for factor in (0.0, 0.25, 1.0):
        moments = Moments.empty(at.merged)
        for gram in at.grams:
            moments.add_shift((1.1 * mix) @ gram - gram, moments.add(gram))
        problem = LayerProblem.from_moments(
            at.merged, moments, target="merged", damping=0.01, asymmetry=factor
        )
        moved = 1.1 * at.merged @ mix - gptq(problem, QuantSpec(4)).dequantize().double()
        errors.append(float(((moved @ moments.gram) * moved).sum()))
    assert errors[0] > errors[1] > errors[2]


def problems_of(made: TinyVisual, calibration: Calibration) -> dict[str, LayerProblem]:
    """Every layer's problem in a walk that rounds to the nearest hundredth."""
    seen: list[LayerProblem] = []

    def solve(problem: LayerProblem) -> Tensor:
        seen.append(problem)
        return (problem.centre * 100).round() / 100

    tower = copy.deepcopy(made.tower)
    reports = list(walk(tower, made.experts, made.inputs, calibration, solve))
    return {report.name: problem for report, problem in zip(reports, seen, strict=True)}


def test_a_walk_gathers_the_shift_of_its_inputs_from_those_in_full_precision(tiny_visual: TinyVisual) -> None:
    """With both readings' moments of the merged teacher: E[x~ x^T] at mixing 1 less E[x x^T]."""
    ours = problems_of(tiny_visual, Calibration("merged", asymmetry=0.25, damping=0.0))
    one = next(iter(ours))
    for name, problem in ours.items():
        assert problem.asymmetry is not None
        assert bool(problem.asymmetry.any()) == (name != one), "the first layer's inputs are exact"
    only = Calibration("merged", asymmetry=0.25, damping=0.0, layers="blocks.0.*")
    axes = {"mixing": 1.0, "teacher": "merged", "anchor": 0.0, "damping": 0.0, "layers": "blocks.0.*"}
    guided = problems_of(tiny_visual, Calibration("expert", **axes))  # type: ignore[arg-type]
    second = list(guided)[1]
    shift = problems_of(tiny_visual, only)[second].asymmetry
    assert shift is not None
    # W* - W_m = W_m E[(x~ - x) x^T] G^-1 where nothing anchors; the first layer is the same in both walks
    problem = guided[second]
    moved = (problem.centre - problem.reference) @ problem.hessian
    torch.testing.assert_close(0.25 * moved, problem.reference @ shift, rtol=1e-3, atol=1e-6)


def test_qep_moves_the_centre_by_the_damped_correction_and_not_the_metric(tiny_visual: TinyVisual) -> None:
    (qep,) = CONTROLS["qep"].passes
    calibration = replace(qep.calibration({}, rounded=True), layers="blocks.0.*")
    plain = replace(calibration, anchor=0.0, mixing=1.0, damping=0.0)
    ours, exact = (problems_of(tiny_visual, axes) for axes in (calibration, plain))
    second = list(ours)[1]
    problem, other = ours[second], exact[second]
    gram, identity = other.hessian, torch.eye(len(other.hessian), dtype=torch.float64)
    mean = gram.diagonal().mean()
    correction = (other.centre - other.reference) @ gram  # W_m E[(x~ - x) x^T]
    wanted = other.reference + 0.5 * correction @ torch.linalg.inv(gram + 1.0 * mean * identity)
    torch.testing.assert_close(problem.centre, wanted, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(problem.hessian, gram + 0.01 * mean * identity, rtol=1e-6, atol=1e-12)


def test_rows_without_experts_read_none(tiny_visual: TinyVisual) -> None:
    experts: dict[str, dict[str, Tensor]] = {task: {} for task in tiny_visual.experts}
    for name in ("qep", "gptaq"):
        tower = copy.deepcopy(tiny_visual.tower)
        (own,) = CONTROLS[name].passes
        axes = own.calibration({}, rounded=True)

        def solve(problem: LayerProblem) -> QuantizedWeight:
            return gptq(problem, QuantSpec(4))

        assert len(list(walk(tower, experts, tiny_visual.inputs, axes, solve))) == 8


def test_axes_that_change_nothing_are_known() -> None:
    assert "asymmetry" in Calibration("expert").idle
    assert "asymmetry" in Calibration("merged", source="merged").idle
    assert "asymmetry" not in Calibration("merged").idle
    assert "anchor_in" in Calibration("merged").idle
