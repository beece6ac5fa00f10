"""Sums over tokens against the same in float64, all tokens at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epmq.errors import UserError
from epmq.layer import sums
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.sums import ProductSum, SymmetricSum, accumulate_, inner, shrink_, square_norm
from tests.fixtures.layers import layer

pytestmark = pytest.mark.keeps_rng


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several strips, and several parts of a sum, on layers of a few columns."""
    monkeypatch.setattr(sums, "STRIP", 4)
    monkeypatch.setattr(sums, "TILE", 4)
    monkeypatch.setattr(sums, "CACHED", 15)
    monkeypatch.setattr(sums, "TOKENS", 16)


def tokens(count: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batches", [[9], [5, 7], [16], [20, 3], [7, 7, 7, 7, 1]])
@pytest.mark.parametrize("columns", [1, 4, 10])
def test_sums_are_those_of_all_tokens(batches: list[int], columns: int) -> None:
    x, y = tokens(sum(batches), columns), tokens(sum(batches), 3, seed=1)
    weights = tokens(sum(batches), 1, seed=2).abs()
    gram, cross = SymmetricSum(), ProductSum()
    for part, other, weight in zip(x.split(batches), y.split(batches), weights.split(batches), strict=True):
        gram.add(part, part * weight)
        cross.add(other, part * weight)
    found = gram.value()
    assert torch.equal(found, found.T)
    wide = (x * weights).double()
    torch.testing.assert_close(found.double(), x.double().T @ wide, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross.value().double(), y.double().T @ wide, rtol=1e-5, atol=1e-5)
    assert (found.dtype == torch.float64) == (sum(batches) >= 16), "long sums are in float64"


def test_a_long_sum_of_equal_tokens_loses_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "TOKENS", 4)
    x, total = torch.full((4, 1), 1 / 3), SymmetricSum()
    for _ in range(1000):
        total.add(x, x)
    once = float((x[:1] * x[:1]).double())
    assert float(total.value()) == pytest.approx(4000 * once, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strips_are_the_whole(dtype: torch.dtype) -> None:
    one, other = tokens(8, 5).to(dtype), tokens(8, 5, seed=1).to(dtype)
    total = one.double().clone()
    accumulate_(total, other, 0.3)
    torch.testing.assert_close(total, one.double() + 0.3 * other.double(), rtol=1e-14, atol=1e-14)
    assert inner(one, other) == pytest.approx(float((one.double() * other.double()).sum()), rel=1e-13)
    assert square_norm(one) == pytest.approx(float(one.double().square().sum()), rel=1e-13)


def test_only_what_is_off_the_diagonal_shrinks() -> None:
    gram = tokens(5, 5)
    expected = 0.5 * gram + 0.5 * torch.diag(gram.diagonal())
    assert shrink_(gram, 0.5) is gram
    assert torch.equal(gram, expected)


def test_a_callers_gram_matrix_is_made_symmetric_and_checked() -> None:
    at = layer(4, 10)
    skewed = at.grams[0].clone()
    skewed[2, 7] += 1e-9
    moments = Moments.empty(at.merged)
    moments.add(skewed)
    assert torch.equal(moments.gram, (skewed + skewed.T) / 2)
    for row, column in ((2, 7), (9, 0)):
        far = at.grams[0].clone()
        far[row, column] += 0.1 * float(far.abs().max())
        with pytest.raises(UserError, match="not symmetric"):
            moments.add(far)
        far[row, column] = torch.nan
        with pytest.raises(UserError, match="Gram matrix holds NaN or Inf"):
            moments.add(far)
    assert moments.tasks == 1


@pytest.mark.parametrize("reading", ["A", "B"])
def test_an_origin_changes_no_moment_and_no_deviation(reading: str) -> None:
    at = layer(5, 8)
    q = at.merged + 0.01 * tokens(5, 8).double()
    plain, relative = Moments.empty(at.merged), Moments.empty(at.merged, origin=at.merged)
    for moments in (plain, relative):
        for gram, expert, cross in zip(at.grams, at.experts, at.cross, strict=True):
            moments.add(gram, expert, *((cross, 7.0) if reading == "B" else ()))
    for weight in (at.merged, q):
        torch.testing.assert_close(relative.residual(weight), plain.residual(weight))
    one, other = (m.deviations(q, at.experts[0], at.merged) for m in (plain, relative))
    for name in vars(one):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-9), name


@pytest.mark.parametrize("anchor", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("with_origin", [False, True])
def test_a_problem_knows_its_move_on_the_inputs(anchor: float, with_origin: bool) -> None:
    at = layer(5, 8)
    moments = Moments.empty(at.merged, origin=at.merged if with_origin else None)
    for gram, expert in zip(at.grams, at.experts, strict=True):
        moments.add(gram, expert)
    problem = LayerProblem.from_moments(at.merged, moments, target="expert", anchor=anchor, damping=0.01)
    found, q = problem.moved_on_inputs, at.experts[1]
    assert found is not None
    torch.testing.assert_close(found, (problem.centre - at.merged) @ moments.gram)
    known, computed = (moments.deviations(q, problem.centre, at.merged, x) for x in (found, None))
    for name in vars(known):
        assert getattr(known, name) == pytest.approx(getattr(computed, name), rel=1e-9), name
    elsewhere = LayerProblem.from_moments(at.merged, moments, target="expert", anchor=1.0, point=q)
    assert elsewhere.moved_on_inputs is None


@pytest.mark.parametrize("task_weight", ["uniform", "frobenius"])
def test_sums_fold_like_their_means(task_weight: str) -> None:
    at = layer(5, 8)
    means, summed = (Moments.empty(at.merged, task_weight) for _ in range(2))  # type: ignore[arg-type]
    for gram, expert in zip(at.grams, at.experts, strict=True):
        share = means.add(gram, expert)
        symmetric = (gram + gram.T) / 2
        target = expert @ symmetric
        assert summed.fold(50 * symmetric, 50 * target, 50 * inner(target, expert), 50.0) == pytest.approx(
            share
        )
    torch.testing.assert_close(summed.gram, means.gram)
    torch.testing.assert_close(summed.target, means.target)
    assert summed.energy == pytest.approx(means.energy)


def test_an_infinite_input_is_refused_by_the_diagonal_alone() -> None:
    at = layer(4, 6)
    x = tokens(9, 6)
    x[3, 2] = torch.inf
    total = SymmetricSum()
    total.add(x, x)
    with pytest.raises(UserError, match="Gram matrix holds NaN or Inf; check the checkpoint"):
        Moments.empty(at.merged).fold(total.value())
