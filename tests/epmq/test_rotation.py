"""Rotations: orthogonal, their own undoing, of no effect on a layer, and the same for any slice of rows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor

import baselines
from baselines.contract import realistic_problem
from baselines.roundings.quip import SEED, turned
from epmq.layer.grid import by_group, fit_grid
from epmq.layer.problem import LayerProblem
from epmq.layer.rotation import rotated, rotated_back, rotated_both
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight, stacked

pytestmark = pytest.mark.keeps_rng
COLUMNS = (1, 2, 3, 12, 24, 48, 64, 96, 192, 384, 768)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def matrix(columns: int, seed: int = 0) -> Tensor:
    """U, column by column what it makes of the unit vectors."""
    return rotated(torch.eye(columns, dtype=torch.float64), seed).T


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_rotation_is_orthogonal_and_its_entries_are_small(columns: int) -> None:
    turn = matrix(columns)
    one = torch.eye(columns, dtype=torch.float64)
    torch.testing.assert_close(turn @ turn.T, one, rtol=0, atol=1e-12)
    torch.testing.assert_close(turn.T @ turn, one, rtol=0, atol=1e-12)
    assert float(turn.abs().max()) <= math.sqrt(2 / columns) + 1e-12, "cos + sin is at most the root of 2"


@pytest.mark.parametrize("columns", COLUMNS)
def test_it_is_undone_and_acts_as_its_matrix(columns: int) -> None:
    x, turn = normal(2, 3, columns), matrix(columns, 7)
    torch.testing.assert_close(rotated(x, 7), x @ turn.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotated_back(x, 7), x @ turn, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotated_back(rotated(x, 7), 7), x, rtol=0, atol=1e-12)
    gram = normal(columns, columns)
    torch.testing.assert_close(rotated_both(gram, 7), turn @ gram @ turn.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("columns", [1, 2, 64, 512])
def test_of_a_power_of_two_it_is_hadamards_matrix_but_for_signs(columns: int) -> None:
    turn = matrix(columns)
    signs = turn[0].sign()
    wanted = hadamard(columns) / math.sqrt(columns)
    np.testing.assert_allclose((turn * signs).numpy(), wanted, rtol=0, atol=1e-15)
    indices = np.arange(columns)
    parity = np.array([[bin(i & j).count("1") % 2 for j in indices] for i in indices])
    np.testing.assert_array_equal(np.sign((turn * signs).numpy()), 1 - 2 * parity)


@pytest.mark.parametrize("columns", [3, 7, 43, 129])
def test_of_an_odd_number_it_is_the_fourier_transform_in_real_numbers(columns: int) -> None:
    turn = matrix(columns)
    signs = turn[0].sign()
    fourier = np.fft.fft(np.eye(columns), norm="ortho")
    np.testing.assert_allclose((turn * signs).numpy(), fourier.real - fourier.imag, rtol=0, atol=1e-13)


def test_of_any_number_it_is_the_product_of_both() -> None:
    turn = matrix(48)
    signs = turn[0].sign()
    fourier = np.fft.fft(np.eye(3), norm="ortho")
    wanted = np.kron(hadamard(16) / 4, fourier.real - fourier.imag)
    np.testing.assert_allclose((turn * signs).numpy(), wanted, rtol=0, atol=1e-13)


def test_seeds_are_the_signs() -> None:
    assert torch.equal(matrix(96, 5), matrix(96, 5))
    one, other = matrix(96, 5), matrix(96, 6)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.abs(), other.abs(), rtol=0, atol=0)
    share = float((matrix(768)[0] > 0).double().mean())
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(768), "as many of either sign, to five deviations"


def test_a_rotation_changes_no_product_and_no_objective() -> None:
    problem = realistic_problem(columns=48)
    other, x, weight = turned(problem, SEED), normal(48, 5), problem.centre + 0.01 * normal(24, 48)
    inputs = rotated(x.T, SEED).T
    torch.testing.assert_close(rotated(weight, SEED) @ inputs, weight @ x, rtol=0, atol=1e-13)
    ours = other.row_objective(rotated(weight, SEED))
    torch.testing.assert_close(ours, problem.row_objective(weight), rtol=1e-10, atol=0)
    torch.testing.assert_close(other.centre, problem.centre @ matrix(48, SEED).T, rtol=0, atol=1e-13)
    torch.testing.assert_close(other.hessian, other.hessian.T, rtol=0, atol=0)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_quip_is_gptq_of_the_rotated_layer(asymmetric: bool) -> None:
    """Against a problem whose matrices are multiplied by U's own, asymmetry included."""
    problem, spec, turn = realistic_problem(columns=48), QuantSpec(3), matrix(48, SEED)
    if asymmetric:
        problem = replace(problem, asymmetry=0.01 * normal(48, 48) @ problem.hessian)
    hessian, shift = turn @ problem.hessian @ turn.T, problem.asymmetry
    other = LayerProblem(
        problem.centre @ turn.T,
        (hessian + hessian.T) / 2,
        problem.reference @ turn.T,
        asymmetry=None if shift is None else turn @ shift @ turn.T,
    )
    found, wanted = baselines.get("quip")(problem, spec), baselines.get("gptq")(other, spec)
    assert torch.equal(found.codes, wanted.codes)
    assert torch.equal(found.scale, wanted.scale)
    dense = (wanted.dequantize().double() @ turn).float()
    torch.testing.assert_close(found.dequantize(), dense, rtol=0, atol=1e-7)


def rounded(rows: int, columns: int, spec: QuantSpec) -> QuantizedWeight:
    weight = rotated(normal(rows, columns), 3)
    found = QuantizedWeight.nearest(weight, *fit_grid(by_group(weight, spec), spec), spec)
    return replace(found, rotation=3)


@pytest.mark.parametrize("columns", [64, 48, 768, 344, 129])
@pytest.mark.parametrize("spec", [QuantSpec(4), QuantSpec(grid="nf4")], ids=str)
def test_rows_are_the_same_bits_whichever_others_are_with_them(columns: int, spec: QuantSpec) -> None:
    weight = rounded(130, columns, spec)
    whole = weight.dequantize()
    for rows in (slice(0, 1), slice(3, 64), slice(64, 130), torch.tensor([5, 77, 6])):
        assert torch.equal(weight[rows].dequantize(), whole[rows])
    again = stacked([weight[:17], weight[17:]])
    assert again is not None
    assert torch.equal(again.dequantize(), whole)


@pytest.mark.parametrize("columns", [64, 48, 768, 344, 25, 43, 129, 538])
def test_so_they_are_before_their_last_digits_are_cut(columns: int) -> None:
    """What is cut hides nearly every difference: a sum in another order shows in float64."""
    values = normal(130, columns).float().double()
    whole = rotated_back(values, 3)
    for rows in (slice(0, 1), slice(3, 64), slice(64, 130)):
        assert torch.equal(rotated_back(values[rows], 3), whole[rows])
        assert torch.equal(rotated_back(values[rows].contiguous(), 3), whole[rows])


@pytest.mark.parametrize("columns", [64, 96])
def test_outlying_columns_are_spread(columns: int) -> None:
    """The largest entry relative to the root mean square, which is mu of Chee et al. 2023 (definition 1)."""
    weight = normal(32, columns)
    weight[:, [3, 17]] *= 30

    def outlying(x: Tensor) -> float:
        return float(x.abs().max() / x.square().mean().sqrt())

    before, after = outlying(weight), outlying(rotated(weight, 0))
    assert before > 12
    assert after < before / 2
