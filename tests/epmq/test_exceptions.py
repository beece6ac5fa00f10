"""Weights kept among the codes: what they hold and refuse, GPTQ around them, and which ones SpQR keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import baselines
from baselines.contract import realistic_problem
from baselines.roundings.spqr import dearest
from epmq.errors import UserError
from epmq.layer.exceptions import Exceptions
from epmq.layer.gptq import gptq
from epmq.layer.grid import by_group, fit_grid
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight, stacked
from tests.fixtures.plain_gptq import fitted, nearest, plain_gptq

pytestmark = pytest.mark.keeps_rng


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn(rows: int, columns: int, count: int, seed: int = 0) -> Tensor:
    """So many columns of every row, in no order."""
    return normal(rows, columns, seed=seed).argsort(1)[:, :count]


def rounded(weight: Tensor, kept: Tensor, spec: QuantSpec) -> QuantizedWeight:
    found = QuantizedWeight.nearest(weight, *fit_grid(by_group(weight, spec), spec), spec)
    return replace(found, exceptions=Exceptions.of(weight, kept))


@pytest.mark.parametrize("count", [1, 3, 12])
def test_values_come_back_bit_for_bit_and_nothing_else_changes(count: int) -> None:
    weight, kept = normal(5, 12), drawn(5, 12, count)
    found = rounded(weight, kept, QuantSpec(3, 4))
    dense, plain = found.dequantize(), replace(found, exceptions=None).dequantize()
    assert torch.equal(dense.gather(1, kept), weight.gather(1, kept).half().float())
    elsewhere = torch.ones_like(weight, dtype=torch.bool).scatter(1, kept, value=False)
    assert torch.equal(dense[elsewhere], plain[elsewhere])
    back = QuantizedWeight.from_bytes(found.to_bytes())
    assert back.exceptions is not None
    assert found.exceptions is not None
    assert torch.equal(back.exceptions.columns, found.exceptions.columns)
    assert torch.equal(back.exceptions.values, found.exceptions.values)
    assert torch.equal(back.dequantize(), dense)
    assert found.packed_bits - replace(found, exceptions=None).packed_bits == 5 * count * (16 + 16)


def test_columns_beyond_half_of_16_bits_are_stored() -> None:
    weight = normal(2, 65_536)
    kept = torch.tensor([[0, 32_767, 32_768, 65_535], [1, 40_000, 65_534, 65_535]])
    found = rounded(weight, kept, QuantSpec(2))
    back = QuantizedWeight.from_bytes(found.to_bytes())
    assert torch.equal(back.dequantize(), found.dequantize())
    assert torch.equal(back.dequantize().gather(1, kept), weight.gather(1, kept).half().float())


def test_a_value_beyond_half_precision_is_its_largest() -> None:
    found = Exceptions.of(torch.tensor([[1e6, -1e6, 1.0]]), torch.tensor([[1, 0]]))
    assert found.columns.tolist() == [[0, 1]]
    assert found.values.tolist() == [[65504.0, -65504.0]]


def test_rows_take_theirs_along_and_rows_join_only_with_as_many() -> None:
    found = rounded(normal(6, 12), drawn(6, 12, 2), QuantSpec(3))
    whole = found.dequantize()
    for rows in (slice(2, 5), torch.tensor([5, 0])):
        assert torch.equal(found[rows].dequantize(), whole[rows])
    again = stacked([found[:2], found[2:]])
    assert again is not None
    assert torch.equal(again.dequantize(), whole)
    fewer = rounded(normal(6, 12), drawn(6, 12, 1), QuantSpec(3))
    assert stacked([found, fewer]) is None
    assert stacked([found, replace(found, exceptions=None)]) is None


def test_leading_axes_get_the_same_values() -> None:
    kept = Exceptions.of(normal(3, 8), drawn(3, 8, 2))
    many = normal(4, 3, 8)
    assert torch.equal(kept.put(many), torch.stack([kept.put(each) for each in many]))


COLUMNS, VALUES = torch.tensor([[0, 2], [1, 3]], dtype=torch.int32), torch.ones(2, 2).half()


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        (COLUMNS[:, :1], VALUES, r"columns \(2, 1\) and values \(2, 2\) must both be"),
        (COLUMNS[0], VALUES[0], r"must both be \(rows, count\)"),
        (COLUMNS.long(), VALUES, "must be int32 and their values float16"),
        (COLUMNS, VALUES.float(), "must be int32 and their values float16"),
        (COLUMNS.flip(1), VALUES, "must rise in every row"),
        (torch.ones_like(COLUMNS), VALUES, "must rise in every row"),
        (COLUMNS - 1, VALUES, "must rise in every row, from 0"),
        (COLUMNS, VALUES * torch.inf, "values must be finite"),
    ],
)
def test_what_does_not_fit_is_refused(columns: Tensor, values: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Exceptions(columns, values)


@pytest.mark.parametrize("last", [4, 70_000])
def test_exceptions_beyond_the_weight_are_refused(last: int) -> None:
    weight = rounded(normal(2, 4), torch.tensor([[0], [1]]), QuantSpec(3))
    beyond = Exceptions(torch.tensor([[0], [last]], dtype=torch.int32), VALUES[:, :1])
    with pytest.raises(UserError, match="exceptions are not of a weight of 2 rows and 4 columns"):
        replace(weight, exceptions=beyond)
    with pytest.raises(UserError, match="exceptions are not of a weight of 2 rows"):
        replace(weight, exceptions=Exceptions(COLUMNS[:1], VALUES[:1]))


SPECS = {
    "per-channel": QuantSpec(4),
    "2-bit symmetric groups": QuantSpec(2, 16, symmetric=True),
    "3-bit groups": QuantSpec(3, 8),
    "groups, act-order": QuantSpec(4, 16, act_order=True),
    "short blocks": QuantSpec(3, block_size=5),
    "NF4 groups": QuantSpec(grid="nf4", group_size=16),
    "MXFP4": QuantSpec(grid="mxfp4"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("count", [1, 5])
def test_gptq_around_kept_weights_is_that_of_a_plain_loop(spec: QuantSpec, count: int) -> None:
    problem, kept = realistic_problem(rows=16, columns=64), drawn(16, 64, count)
    found, wanted = gptq(problem, spec, kept), plain_gptq(problem, spec, kept)
    elsewhere = torch.ones(16, 64, dtype=torch.bool).scatter(1, kept, value=False).numpy()
    np.testing.assert_array_equal(found.codes.numpy()[elsewhere], wanted.codes[elsewhere])
    np.testing.assert_allclose(found.scale.double().numpy(), wanted.scale, rtol=1e-5)
    assert found.exceptions is not None
    ordered = kept.sort(1).values
    assert torch.equal(found.exceptions.columns.long(), ordered)
    values = np.take_along_axis(wanted.values, ordered.numpy(), 1)
    np.testing.assert_allclose(found.exceptions.values.numpy(), values, rtol=2**-11 + 1e-4, atol=1e-6)
    moved = np.abs(values - problem.centre.gather(1, ordered).numpy())
    assert np.median(moved) > 1e-3, "by the errors of the columns before them"


def test_asymmetry_counts_a_kept_weight_as_it_was() -> None:
    """GPTAQ's term, column by column with the whole matrix P, whatever the blocks are."""
    problem, spec = realistic_problem(rows=4, columns=48), QuantSpec(3)
    asymmetry = 0.02 * normal(48, 48) * problem.hessian.diagonal().sqrt()
    problem = replace(problem, asymmetry=asymmetry)
    kept, factor = drawn(4, 48, 3), torch.linalg.inv(problem.factor)
    past = ((asymmetry @ factor.T).triu(1) @ factor).numpy()
    weight, upper = problem.centre.numpy().copy(), factor.numpy()
    stays = torch.zeros(4, 48, dtype=torch.bool).scatter(1, kept, value=True).numpy()
    scale, zero = fitted(np.where(stays, 0.0, weight), spec)
    codes = np.zeros_like(weight)
    for q in range(48):
        before = weight[:, q].copy()
        codes[:, q], point = nearest(before, scale, zero, spec)
        error = np.where(stays[:, q], 0.0, before - point) / upper[q, q]
        weight[:, q + 1 :] += np.outer(before, past[q, q + 1 :]) - np.outer(error, upper[q, q + 1 :])
    for block_size in (128, 7):
        found = gptq(problem, replace(spec, block_size=block_size), kept)
        np.testing.assert_array_equal(found.codes.numpy()[~stays], codes[~stays])
        assert found.exceptions is not None
        wanted = np.take_along_axis(weight, kept.sort(1).values.numpy(), 1)
        np.testing.assert_allclose(found.exceptions.values.numpy(), wanted, rtol=1e-3, atol=1e-6)


def test_where_every_weight_is_kept_the_layer_is_the_centre_to_half_precision() -> None:
    problem = realistic_problem(rows=6, columns=24)
    everything = torch.arange(24).expand(6, 24)
    for spec in (QuantSpec(2), QuantSpec(2, 8), QuantSpec(grid="nf4", act_order=True)):
        found = gptq(problem, spec, everything)
        assert torch.equal(found.dequantize(), problem.centre.float().half().float())


def told(weight: Tensor, sensitivity: Tensor, spec: QuantSpec, kept: list[int]) -> float:
    """A row's error as SpQR's choice states it, with some weights kept."""
    width, total = spec.group_size or len(weight), 0.0
    values = weight.numpy().copy()
    values[kept] = 0
    for start in range(0, len(values), width):
        group = values[start : start + width]
        scale, zero = fitted(group[None], spec)
        _, points = nearest(group, scale.repeat(len(group)), zero.repeat(len(group)), spec)
        total += float(((group - points) ** 2 * sensitivity[start : start + width].numpy()).sum())
    return total


CHOICES = {
    "3-bit": QuantSpec(3),
    "3-bit symmetric groups": QuantSpec(3, 6, symmetric=True),
    "4-bit groups": QuantSpec(4, 4),
    "NF4 groups": QuantSpec(grid="nf4", group_size=6),
}


@pytest.mark.parametrize("spec", CHOICES.values(), ids=CHOICES)
def test_the_first_weight_kept_is_the_one_that_saves_most(spec: QuantSpec) -> None:
    weight, sensitivity = normal(40, 12), torch.exp(normal(12, seed=1))
    weight[::2, 3] *= 4
    first = dearest(weight, sensitivity, spec, 1)[:, 0].tolist()
    for row, column in zip(weight, first, strict=True):
        errors = [told(row, sensitivity, spec, [each]) for each in range(12)]
        assert errors[column] <= min(errors) * (1 + 1e-9)


@pytest.mark.parametrize("spec", CHOICES.values(), ids=CHOICES)
def test_no_further_weight_kept_raises_the_error(spec: QuantSpec) -> None:
    """One a round up to eight: each is the best there is after those before it."""
    weight, sensitivity = normal(12, 12), torch.exp(normal(12, seed=1))
    chosen = dearest(weight, sensitivity, spec, 8).tolist()
    for row, kept in zip(weight, chosen, strict=True):
        assert len(set(kept)) == 8
        errors = [told(row, sensitivity, spec, kept[:count]) for count in range(9)]
        for count in range(8):
            assert errors[count + 1] <= errors[count] + 1e-6 * errors[0]
            others = [told(row, sensitivity, spec, [*kept[:count], each]) for each in range(12)]
            assert errors[count + 1] <= min(others) + 1e-6 * errors[0]


def test_more_than_a_round_takes_are_kept_once_each() -> None:
    weight, sensitivity, spec = normal(10, 64), torch.ones(64).double(), QuantSpec(3)
    errors = []
    for count in (0, 8, 16, 40, 64):
        kept = dearest(weight, sensitivity, spec, count) if count else torch.empty(10, 0, dtype=torch.long)
        assert all(len(set(row)) == count for row in kept.tolist())
        errors.append([told(row, sensitivity, spec, k) for row, k in zip(weight, kept.tolist(), strict=True)])
    assert np.all(np.diff(np.array(errors), axis=0) <= 1e-9)


def test_spqr_keeps_one_in_a_hundred_and_is_better_for_outliers() -> None:
    problem, spec = realistic_problem(rows=12, columns=200), QuantSpec(3)
    centre = problem.centre.clone()
    centre[torch.arange(12), torch.arange(12) * 7] = 1.0
    problem = LayerProblem(centre, problem.hessian, centre)
    found: Any = baselines.get("spqr")(problem, spec)
    assert found.exceptions.columns.shape == (12, 2)
    assert bool((found.exceptions.columns == (torch.arange(12) * 7)[:, None]).any(1).all())
    objectives = [problem.objective(w.dequantize()) for w in (found, baselines.get("gptq")(problem, spec))]
    assert objectives[0] < 0.2 * objectives[1]
