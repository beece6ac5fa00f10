"""What holds of the solvers for any layer: odd shapes, ranks, scales, dead and repeated columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import baselines
from epmq.errors import UserError
from epmq.layer.affine import NormMoments, solved_bias
from epmq.layer.grid import by_group
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from tests.fixtures.layers import with_codes

EXAMPLES = settings(max_examples=20, deadline=None, derandomize=True)
POWERS = st.integers(-6, 6)  # of ten


@dataclass(frozen=True)
class Drawn:
    """W_m, an expert's weight and its inputs ``(columns, samples)``, float64."""

    merged: Tensor
    expert: Tensor
    inputs: Tensor

    @property
    def gram(self) -> Tensor:
        return self.inputs @ self.inputs.T / max(1, self.inputs.shape[1])

    def problem(self, target: str, **options: Any) -> LayerProblem:
        if target == "merged":
            return LayerProblem.merged(self.merged, [self.gram], **options)
        return LayerProblem.expert_guided(self.merged, [self.expert], [self.gram], **options)


@st.composite
def layers(draw: st.DrawFn) -> Drawn:
    """Layers of 1 to 6 rows and 1 to 24 columns, on no samples, one, few or many."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    samples = draw(st.sampled_from([0, 1, 2, columns, 4 * columns]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = 10.0 ** draw(POWERS) * normal(columns, samples)
    if draw(st.booleans()):  # every column has a scale of its own, over twelve orders of magnitude
        inputs *= 10 ** (12 * torch.rand(columns, 1, generator=generator, dtype=torch.float64) - 6)
    for column in draw(st.sets(st.integers(0, columns - 1), max_size=columns)):
        inputs[column] = 0 if draw(st.booleans()) else inputs[0]
    size = 10.0 ** draw(POWERS)
    merged = size * normal(rows, columns)
    if draw(st.booleans()):
        merged[draw(st.integers(0, rows - 1))] = 0
    return Drawn(merged, merged + 0.3 * size * normal(rows, columns), inputs)


@st.composite
def specs(draw: st.DrawFn, columns: int) -> QuantSpec:
    """Grids of 2 to 8 bits whose groups divide the columns."""
    groups = [None, *(size for size in range(1, columns + 1) if columns % size == 0)]
    return QuantSpec(
        draw(st.integers(2, 8)),
        draw(st.sampled_from(groups)),
        symmetric=draw(st.booleans()),
        act_order=draw(st.booleans()),
        block_size=draw(st.sampled_from([1, 5, 128])),
        scale_dtype="float32",  # half precision has no scale for weights of 1e6
    )


@pytest.mark.parametrize("target", ["merged", "expert"])
@pytest.mark.parametrize("name", baselines.names())
@EXAMPLES
@given(data=st.data())
def test_a_rounding_is_on_its_grid_and_finite(name: str, target: str, data: st.DataObject) -> None:
    problem = data.draw(layers()).problem(target)
    spec = data.draw(specs(problem.centre.shape[1]))
    found = baselines.get(name)(problem, spec)
    assert found.codes.shape == problem.centre.shape
    assert int(found.codes.max()) <= spec.max_code
    dense = found.dequantize()
    assert bool(torch.isfinite(dense).all())
    exact = with_codes(found, found.codes)
    near = 0.0 if found.rotation is None else 1e-6 * float(exact.abs().max())  # where terms cancel
    torch.testing.assert_close(dense.double(), exact, rtol=1e-5, atol=near)
    objective = problem.objective(dense)
    assert 0 <= objective < float("inf")
    assert found.from_bytes(found.to_bytes()).dequantize().equal(dense)


@EXAMPLES
@given(data=st.data())
def test_rounding_to_nearest_is_off_by_half_a_step_inside_the_range(data: st.DataObject) -> None:
    problem = data.draw(layers()).problem("merged")
    spec = data.draw(specs(problem.centre.shape[1]))
    found = baselines.get("rtn")(problem, spec)
    step = found.scale.double()[..., None]
    gap = (by_group(found.dequantize().double(), spec) - by_group(problem.centre, spec)).abs()
    assert bool((gap <= step * (1 + 1e-5)).all())  # half of rounding, half of the zero point's own


@EXAMPLES
@given(data=st.data())
def test_gptq_rounds_to_nearest_where_columns_do_not_interact(data: st.DataObject) -> None:
    drawn = data.draw(layers())
    columns = drawn.merged.shape[1]
    problem = LayerProblem(drawn.merged, torch.eye(columns, dtype=torch.float64), drawn.merged)
    spec = data.draw(specs(columns))
    gptq, rtn = (baselines.get(name)(problem, spec) for name in ("gptq", "rtn"))
    here, there = (by_group(found.codes.double(), spec) for found in (gptq, rtn))
    assert bool(((here - there).abs() <= 1).all())  # single precision breaks a tie the other way
    assert float((here != there).double().mean()) <= 0.5


@EXAMPLES
@given(drawn=layers(), anchor=st.sampled_from([0.0, 1e-3, 1.0]))
def test_the_centre_solves_its_problem(drawn: Drawn, anchor: float) -> None:
    """The gradient of sum E||W_t x - C x||^2 + lambda ||C - W_m||^2 vanishes, to what float64 can tell."""
    problem = drawn.problem("expert", anchor=anchor, damping=0.0)
    gradient = (problem.centre - drawn.merged) @ problem.hessian - (drawn.expert - drawn.merged) @ drawn.gram
    terms = (drawn.expert.norm() + drawn.merged.norm() + problem.centre.norm()) * problem.hessian.norm()
    assert float(gradient.norm()) <= 1e-9 * float(terms)


@EXAMPLES
@given(drawn=layers())
def test_the_factor_is_the_hessians(drawn: Drawn) -> None:
    problem = drawn.problem("merged")
    factor = problem.factor
    assert torch.equal(factor, factor.triu())
    gap = float(torch.linalg.matrix_norm(factor @ factor.T - problem.hessian))
    assert gap <= 1e-12 * float(torch.linalg.matrix_norm(problem.hessian))


@EXAMPLES
@given(drawn=layers(), damping=st.sampled_from([0.0, 1e-2]))
def test_deviations_are_no_less_than_nothing(drawn: Drawn, damping: float) -> None:
    moments = Moments.empty(drawn.merged)
    moments.add(drawn.gram, drawn.expert)
    problem = LayerProblem.from_moments(drawn.merged, moments, target="expert", damping=damping)
    weight = baselines.get("rtn")(problem, QuantSpec(4, scale_dtype="float32")).dequantize()
    found = moments.deviations(weight, problem.centre, drawn.merged)
    size = max(x.norm().item() for x in (drawn.merged, drawn.expert, problem.centre, weight.double()))
    slack = 1e-12 * size**2 * float(drawn.gram.norm()) * drawn.merged.numel()
    for value in (found.quantisation, found.rounding, found.move, found.expert, found.centre, found.merging):
        assert value is not None
        assert -slack <= value < float("inf")


@EXAMPLES
@given(drawn=layers(), ridge=st.sampled_from([0.0, 1e-3, 1.0]))
def test_a_norm_and_a_bias_are_no_worse_than_where_they_began(drawn: Drawn, ridge: float) -> None:
    energy, mean = drawn.gram.diagonal(), drawn.inputs.sum(1) / max(1, drawn.inputs.shape[1])
    moments = NormMoments.empty(len(energy), energy.device)
    expert = drawn.expert[0], 0.5 * drawn.expert[0]
    moments.fold(energy, mean, expert)
    begun = drawn.merged[0], 0.5 * drawn.merged[0]
    solved = moments.solve(begun, ridge)

    def loss(scale: Tensor, shift: Tensor | None) -> Tensor:
        assert shift is not None
        off, moved = scale - expert[0], shift - expert[1]
        pulled = (scale - begun[0]) ** 2 + (shift - begun[1]) ** 2
        return energy * off**2 + 2 * mean * off * moved + moved**2 + ridge * pulled

    before, after = loss(*begun), loss(*solved)
    assert bool(torch.isfinite(after).all())
    assert bool((after <= before * (1 + 1e-6) + 1e-20 * before.max()).all())
    bias = solved_bias(drawn.expert[0], drawn.merged[0], 1.0, torch.zeros_like(mean), ridge)
    torch.testing.assert_close(bias * (1 + ridge), drawn.expert[0] - drawn.merged[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@EXAMPLES
@given(drawn=layers(), which=st.sampled_from(["merged", "expert", "gram"]))
def test_what_is_not_finite_is_refused(value: float, drawn: Drawn, which: str) -> None:
    parts = {"merged": drawn.merged, "expert": drawn.expert, "gram": drawn.gram}
    parts[which] = parts[which].clone()
    parts[which][0, 0] = value
    with pytest.raises(UserError, match="holds NaN or Inf") as raised:
        LayerProblem.expert_guided(parts["merged"], [parts["expert"]], [parts["gram"]])
    assert "\n" not in str(raised.value)
