"""The layer problem: every identity of the expert-guided objective, and ill-posed Hessians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import baselines
from epmq.errors import UserError
from epmq.layer.gptq import gptq
from epmq.layer.moments import Moments, TaskWeight
from epmq.layer.problem import AnchorScale, LayerProblem
from epmq.layer.spec import QuantSpec
from tests.fixtures.layers import Layer, layer

pytestmark = pytest.mark.keeps_rng
seeds = st.integers(0, 10_000)


def guided(at: Layer, anchor: float = 0.01, cross: list[Tensor] | None = None) -> LayerProblem:
    """The problem without the rounding's damping, whose Hessian is the objective's own."""
    return LayerProblem.expert_guided(at.merged, at.experts, at.grams, cross, anchor=anchor, damping=0.0)


def textbook_factor(hessian: Tensor) -> Tensor:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def inverse(upper: Tensor) -> Tensor:
    found: Tensor = torch.linalg.solve_triangular(upper, torch.eye(len(upper)).to(upper), upper=True)
    return found


@given(
    seed=seeds,
    reading=st.sampled_from(["A", "B"]),
    task_weight=st.sampled_from(["uniform", "frobenius"]),
    anchor_scale=st.sampled_from(["relative", "absolute"]),
)
def test_completing_the_square_leaves_only_a_constant(
    seed: int, reading: str, task_weight: TaskWeight, anchor_scale: AnchorScale
) -> None:
    """sum_t c_t E||W_t x~ - Q x||^2 + lambda ||Q - W_m||^2 = tr((Q - W*) H (Q - W*)^T) + const, any Q."""
    at, anchor = layer(5, 8, samples=40, seed=seed), 0.05
    targets_on = at.inputs if reading == "A" else at.own_inputs
    problem = LayerProblem.expert_guided(
        at.merged,
        at.experts,
        at.grams,
        None if reading == "A" else at.cross,
        task_weight=task_weight,
        anchor=anchor,
        anchor_scale=anchor_scale,
        damping=0.0,
    )
    c = [1.0 if task_weight == "uniform" else 1 / float(g.norm()) for g in at.grams]
    mean_diagonal = float(sum(ct * g.diagonal().mean() for ct, g in zip(c, at.grams, strict=True)))
    strength = anchor * (mean_diagonal if anchor_scale == "relative" else 1.0)

    def epmq(q: Tensor) -> float:
        fit = sum(
            ct * float(((w @ own - q @ x) ** 2).sum()) / x.shape[1]
            for ct, w, own, x in zip(c, at.experts, targets_on, at.inputs, strict=True)
        )
        return float(fit + strength * float(((q - at.merged) ** 2).sum()))

    energy = sum(
        ct * float(((w @ own) ** 2).sum()) / own.shape[1]
        for ct, w, own in zip(c, at.experts, targets_on, strict=True)
    )
    best = problem.centre
    const = energy + strength * float((at.merged**2).sum()) - float((best @ problem.hessian * best).sum())
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        q = torch.randn(at.merged.shape, generator=generator, dtype=torch.float64)
        assert epmq(q) - const == pytest.approx(problem.objective(q), rel=1e-12)


@given(seed=seeds)
def test_experts_equal_to_the_merged_weight_give_plain_gptq(seed: int) -> None:
    at = layer(8, 16, seed=seed)
    plain = LayerProblem.merged(at.merged, at.grams)
    same = LayerProblem.expert_guided(at.merged, [at.merged] * 3, at.grams, anchor=0.0)
    assert torch.equal(plain.hessian, same.hessian)
    assert torch.equal(gptq(plain, QuantSpec()).codes, gptq(same, QuantSpec()).codes)


@given(seed=seeds, anchor=st.sampled_from([0.0, 0.01]), scale=st.sampled_from(["relative", "absolute"]))
def test_damping_is_of_the_rounding_alone(seed: int, anchor: float, scale: AnchorScale) -> None:
    """The centre is that of the anchor; the metric of the rounding has the damping's ridge on top."""
    at = layer(5, 8, seed=seed)
    made = [
        LayerProblem.expert_guided(
            at.merged, at.experts, at.grams, anchor=anchor, anchor_scale=scale, damping=damping
        )
        for damping in (0.0, 0.02)
    ]
    assert torch.equal(made[0].centre, made[1].centre)
    ridge = 0.02 * float(torch.stack(at.grams).sum(0).diagonal().mean())
    torch.testing.assert_close(made[1].hessian - made[0].hessian, ridge * torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(inverse(made[1].factor), textbook_factor(made[1].hessian), rtol=1e-8, atol=0)


def test_experts_equal_to_the_merged_weight_give_it_back_without_an_anchor_and_with_few_samples() -> None:
    at = layer(6, 32, samples=4)
    problem = LayerProblem.expert_guided(at.merged, [at.merged] * 3, at.grams, anchor=0.0)
    torch.testing.assert_close(problem.centre, at.merged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize("act_order", [False, True])
def test_an_infinite_anchor_gives_round_to_nearest_of_the_merged_weight(name: str, act_order: bool) -> None:
    at, spec = layer(16, 24), QuantSpec(act_order=act_order)
    problem = guided(at, anchor=1e12)
    torch.testing.assert_close(problem.centre, at.merged, rtol=0, atol=1e-11)
    if name == "gptq":
        rtn = baselines.get("rtn")(LayerProblem.merged(at.merged, at.grams), spec)
        assert torch.equal(baselines.get(name)(problem, spec).codes, rtn.codes)


def test_no_anchor_and_no_rounding_give_regmean() -> None:
    """RegMean (arXiv 2212.09849): W = (sum_t W_t G_t) (sum_t G_t)^-1."""
    at = layer(6, 12, seed=3)
    grams = [g.numpy() for g in at.grams]
    numerator = sum(w.numpy() @ g for w, g in zip(at.experts, grams, strict=True))
    regmean = np.linalg.solve(sum(grams), np.asarray(numerator).T).T
    np.testing.assert_allclose(guided(at, anchor=0.0).centre.numpy(), regmean, rtol=1e-9, atol=1e-12)


def test_cross_moments_equal_to_the_grams_give_the_weights_reading() -> None:
    at = layer(6, 12)
    torch.testing.assert_close(guided(at).centre, guided(at, cross=at.grams).centre, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(guided(at).centre, guided(at, cross=at.cross).centre, rtol=1e-3)


def reordered(at: Layer) -> Layer:
    def turned(values: list[Tensor]) -> list[Tensor]:
        return values[1:] + values[:1]

    return Layer(at.merged, turned(at.experts), turned(at.inputs), turned(at.own_inputs))


@pytest.mark.parametrize("reading", ["A", "B"])
def test_the_order_of_the_tasks_changes_nothing(reading: str) -> None:
    at = layer(12, 24, seed=1)
    first, second = (
        gptq(guided(tasks, cross=tasks.cross if reading == "B" else None), QuantSpec(3))
        for tasks in (at, reordered(at))
    )
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)


@pytest.mark.parametrize("reading", ["A", "B"])
def test_splitting_a_task_in_two_changes_nothing(reading: str) -> None:
    """Exact with uniform c_t and both parts' moments divided by the whole task's n (G = X X^T / n)."""
    at = layer(12, 24, seed=2)
    whole = guided(at, cross=at.cross if reading == "B" else None)
    x, own = at.inputs[0], at.own_inputs[0]
    n, cut = x.shape[1], 150
    parts = slice(0, cut), slice(cut, n)
    split = LayerProblem.expert_guided(
        at.merged,
        [at.experts[0], *at.experts],
        [*(x[:, p] @ x[:, p].T / n for p in parts), *at.grams[1:]],
        [*(own[:, p] @ x[:, p].T / n for p in parts), *at.cross[1:]] if reading == "B" else None,
        anchor=0.01,
        damping=0.0,
    )
    torch.testing.assert_close(split.hessian, whole.hessian, rtol=1e-12, atol=1e-12)
    assert torch.equal(gptq(split, QuantSpec(3)).codes, gptq(whole, QuantSpec(3)).codes)


@pytest.mark.parametrize("target", ["merged", "expert"])
def test_stacking_layers_that_read_the_same_input_changes_nothing(target: str) -> None:
    """Three layers on one input are one problem of their stacked rows (q, k, v)."""
    at = layer(24, 16, seed=5)

    def solved(rows: slice) -> Tensor:
        merged, experts = at.merged[rows], [w[rows] for w in at.experts]
        problem = (
            LayerProblem.merged(merged, at.grams)
            if target == "merged"
            else LayerProblem.expert_guided(merged, experts, at.grams)
        )
        return gptq(problem, QuantSpec(3, group_size=8)).codes

    apart = torch.cat([solved(slice(start, start + 8)) for start in (0, 8, 16)])
    assert torch.equal(apart, solved(slice(None)))


@pytest.mark.parametrize("columns", [1, 7, 96, 200])
def test_the_factor_is_the_inverse_of_the_textbook_one(columns: int) -> None:
    problem = LayerProblem.merged(layer(2, columns).merged, layer(2, columns).grams)
    factor = problem.factor
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(inverse(factor), textbook_factor(problem.hessian), rtol=1e-8, atol=1e-8)
    bare = LayerProblem(problem.centre, problem.hessian, problem.reference)
    assert torch.equal(bare.factor, factor)
    other = replace(problem, hessian=4 * problem.hessian)
    torch.testing.assert_close(other.factor, 2 * factor, rtol=1e-8, atol=1e-8)


def test_the_factor_follows_the_column_order() -> None:
    problem = guided(layer(4, 40))
    order = torch.argsort(problem.hessian.diagonal(), descending=True)
    wanted = textbook_factor(problem.hessian[order][:, order])
    torch.testing.assert_close(inverse(problem.in_order(order).factor), wanted, rtol=1e-8, atol=1e-8)


def dead_columns(x: Tensor) -> Tensor:
    return torch.cat([x[:-3], 0 * x[-3:]])


def twin_columns(x: Tensor) -> Tensor:
    return torch.cat([x[:-1], x[:1]])


def nearly_twin_columns(x: Tensor) -> Tensor:
    return torch.cat([x[:-1], x[:1] * (1 + 1e-9)])


def few_samples(x: Tensor) -> Tensor:
    return x[:, :5]


def nothing(x: Tensor) -> Tensor:
    return 0 * x


ILL_POSED = [dead_columns, twin_columns, nearly_twin_columns, few_samples, nothing]


@pytest.mark.parametrize("spoil", ILL_POSED)
@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", ["merged", "expert"])
def test_an_ill_posed_hessian_is_mended_and_recorded(
    spoil: Callable[[Tensor], Tensor], unit: float, dtype: torch.dtype, target: Literal["merged", "expert"]
) -> None:
    at = layer(4, 24)
    moments = Moments.empty(at.merged)
    for x, expert in zip(at.inputs, at.experts, strict=True):
        x = unit * spoil(at.inputs[0] if spoil is few_samples else x).to(dtype)
        moments.add(x @ x.T / x.shape[1], expert)
    problem = LayerProblem.from_moments(at.merged, moments, target=target)
    assert any("ridge" in warning for warning in problem.warnings)
    assert bool(torch.isfinite(problem.centre).all())
    assert bool(torch.isfinite(problem.factor).all())
    for act_order in (False, True):
        assert bool(torch.isfinite(gptq(problem, QuantSpec(act_order=act_order)).dequantize()).all())


def test_dead_columns_are_counted_and_keep_the_merged_weight() -> None:
    at = layer(4, 24)
    grams = [x @ x.T / x.shape[1] for x in map(dead_columns, at.inputs)]
    problem = LayerProblem.expert_guided(at.merged, at.experts, grams, anchor=0.01)
    assert problem.warnings == ("3 dead input columns",)
    torch.testing.assert_close(problem.centre[:, -3:], at.merged[:, -3:])


def test_a_healthy_problem_has_no_warnings() -> None:
    at = layer(4, 24)
    assert guided(at, anchor=0.0).warnings == ()
    assert LayerProblem.merged(at.merged, at.grams, damping=0.0).warnings == ()


def test_a_bare_hessian_that_is_not_definite_is_named() -> None:
    at = layer(4, 6)
    problem = LayerProblem(at.merged, torch.diag(torch.arange(6.0).double()), at.merged)
    with pytest.raises(UserError, match="not positive definite; raise the damping or the anchor"):
        gptq(problem, QuantSpec())


def test_the_extra_ridge_is_an_anchor_so_the_identity_still_holds() -> None:
    """With fewer samples than columns, W* minimises the objective whose lambda is the recorded ridge."""
    at = layer(4, 24, samples=5)
    problem = guided(at, anchor=0.0)
    ridge = problem.hessian - torch.stack(at.grams).sum(0)
    right = sum((w @ g for w, g in zip(at.experts, at.grams, strict=True)), at.merged @ ridge)
    torch.testing.assert_close(problem.centre @ problem.hessian, right, rtol=1e-6, atol=1e-9)


def test_row_objectives_add_up_to_the_trace_form() -> None:
    at = layer(5, 9)
    problem = guided(at)
    gap = at.merged - problem.centre
    assert problem.objective(at.merged) == pytest.approx(float(torch.trace(gap @ problem.hessian @ gap.T)))
    assert float(problem.row_objective(at.merged).sum()) == problem.objective(at.merged)


def test_inputs_are_not_modified_and_half_precision_is_taken() -> None:
    at = layer(6, 12)
    half = at.merged.half(), [w.half() for w in at.experts], [g.float() for g in at.grams]
    kept = half[0].clone(), [w.clone() for w in half[1]], [g.clone() for g in half[2]]
    problem = LayerProblem.expert_guided(*half)
    gptq(problem, QuantSpec())
    assert problem.centre.dtype == problem.hessian.dtype == torch.float64
    torch.testing.assert_close(half, kept, rtol=0, atol=0)


def bad(change: str) -> Callable[[], object]:
    at = layer(4, 6)
    merged, experts, grams, cross = at.merged, list(at.experts), at.grams, at.cross
    anchor = 0.01
    match change:
        case "no grams":
            return lambda: LayerProblem.merged(merged, [])
        case "expert count":
            experts.pop()
        case "cross count":
            cross.pop()
        case "gram shape":
            grams[0] = grams[0][:5, :5]
        case "expert shape":
            experts[0] = experts[0][:3]
        case "cross shape":
            cross[0] = cross[0][:5]
        case "weight not finite":
            merged = merged / 0
        case "gram not finite":
            grams[0] = grams[0] * torch.nan
        case "gram not symmetric":
            grams[0] = grams[0].triu()
        case "gram not definite":
            grams[0] = -100 * grams[0]
        case "weight a vector":
            merged = merged[0]
        case "anchor negative":
            anchor = -1.0
        case "anchor not finite":
            anchor = float("nan")
    return lambda: LayerProblem.expert_guided(merged, experts, grams, cross, anchor=anchor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no grams", "at least one Gram"),
        ("expert count", "one expert weight, Gram and cross moment per task"),
        ("cross count", "one expert weight, Gram and cross moment per task"),
        ("gram shape", r"Gram matrix is \(5, 5\), expected \(6, 6\)"),
        ("expert shape", r"expert weight is \(3, 6\), expected \(4, 6\)"),
        ("cross shape", r"cross moment is \(5, 6\), expected \(6, 6\)"),
        ("weight not finite", "weight holds NaN or Inf; check"),
        ("gram not finite", "Gram matrix holds NaN or Inf; check"),
        ("gram not symmetric", "not symmetric; give"),
        ("gram not definite", "far from positive semi-definite; give"),
        ("weight a vector", "weight has 1 dimensions"),
        ("anchor negative", "finite number, 0 or more"),
        ("anchor not finite", "finite number, 0 or more"),
    ],
)
def test_bad_input_is_named(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        bad(change)()
    assert "\n" not in str(caught.value)
