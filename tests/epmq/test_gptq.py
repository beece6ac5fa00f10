"""GPTQ's column loop against exhaustive search and a naive OBQ, and what must not change its codes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import baselines
from epmq.layer.gptq import gptq
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from tests.fixtures.layers import layer, with_codes

pytestmark = pytest.mark.keeps_rng
Matrix = NDArray[np.float64]


def problem_of(rows: int, columns: int, seed: int = 0, target: str = "expert") -> LayerProblem:
    at = layer(rows, columns, seed=seed)
    if target == "merged":
        return LayerProblem.merged(at.merged, at.grams)
    return LayerProblem.expert_guided(at.merged, at.experts, at.grams)


def grid_of(weight: Matrix, spec: QuantSpec) -> tuple[Matrix, Matrix]:
    """Min-max scale and zero point of every row, as the GPTQ paper's code fits them."""
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    top = 2**spec.bits - 1
    if spec.symmetric:
        high = np.maximum(-low, high)
        scale = (2 * high / top).astype(spec.scale_dtype).astype(np.float64)
        return scale, np.full_like(scale, 2 ** (spec.bits - 1))
    scale = ((high - low) / top).astype(spec.scale_dtype).astype(np.float64)
    return scale, np.clip(np.rint(-low / scale), 0, top)


def naive_obq(problem: LayerProblem, spec: QuantSpec) -> tuple[Matrix, Matrix]:
    """Codes and scales by Optimal Brain Quantization's own equations, one column after the other.

    Quantising column q moves the columns that are left by -(w_q - quant(w_q)) / [H^-1]_qq [H^-1]_q,: and
    takes q out of the inverse Hessian, H^-1 - [H^-1]_:,q [H^-1]_q,: / [H^-1]_qq (Frantar and Alistarh 2022,
    equations 2 and 3).
    """
    weight = problem.centre.numpy().copy()
    hessian = problem.hessian.numpy()
    inverse = np.linalg.inv(hessian)
    rows, columns = weight.shape
    width = spec.group_size or columns
    order = np.argsort(-np.diag(hessian), kind="stable") if spec.act_order else np.arange(columns)
    groups = [slice(start, start + width) for start in range(0, columns, width)]
    grids = [grid_of(weight[:, here], spec) for here in groups]
    codes = np.empty((rows, columns))
    for q in order:
        if not spec.act_order and q % width == 0:
            grids[q // width] = grid_of(weight[:, groups[q // width]], spec)
        scale, zero = grids[q // width]
        codes[:, q] = np.clip(np.rint(weight[:, q] / scale) + zero, 0, 2**spec.bits - 1)
        error = (weight[:, q] - scale * (codes[:, q] - zero)) / inverse[q, q]
        weight -= np.outer(error, inverse[q])
        inverse = inverse - np.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return codes, np.stack([scale for scale, _ in grids], axis=1)


SPECS = {
    "per-channel": QuantSpec(4),
    "3-bit": QuantSpec(3),
    "symmetric": QuantSpec(4, symmetric=True),
    "act-order": QuantSpec(4, act_order=True),
    "groups": QuantSpec(4, group_size=8),
    "groups, act-order": QuantSpec(4, group_size=8, act_order=True),
    "groups, symmetric, 2-bit": QuantSpec(2, group_size=16, symmetric=True),
    "float32 scales": QuantSpec(4, group_size=8, scale_dtype="float32"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("target", ["merged", "expert"])
def test_gptq_gives_the_codes_of_a_naive_obq(spec: QuantSpec, target: str) -> None:
    problem = problem_of(16, 48, target=target)
    found = gptq(problem, spec)
    codes, scale = naive_obq(problem, spec)
    np.testing.assert_array_equal(found.codes.numpy(), codes)
    np.testing.assert_allclose(found.scale.double().numpy(), scale, rtol=1e-5)


def test_group_scales_are_fitted_to_the_columns_as_errors_have_left_them() -> None:
    problem = problem_of(16, 48)
    spec = QuantSpec(2, group_size=8)
    updated, up_front = gptq(problem, spec), gptq(problem, replace(spec, fit_scales_on="merged"))
    before = baselines.get("rtn")(problem, spec)
    assert torch.equal(updated.scale[:, 0], before.scale[:, 0])
    assert not torch.equal(updated.scale[:, 1:], before.scale[:, 1:])
    from_merged = LayerProblem(problem.reference, problem.hessian, problem.reference)
    assert torch.equal(up_front.scale, baselines.get("rtn")(from_merged, spec).scale)


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize("group_size", [None, 1])
@given(seed=st.integers(0, 10_000), symmetric=st.booleans(), act_order=st.booleans())
@settings(max_examples=10)
def test_no_rounding_beats_exhaustive_search(
    name: str, group_size: int | None, seed: int, symmetric: bool, act_order: bool
) -> None:
    """All 4^6 codes of a 2x3 layer on the method's own grid; rows are independent, so 2 x 4^3 are enough."""
    problem = problem_of(2, 3, seed)
    found = baselines.get(name)(problem, QuantSpec(2, group_size, symmetric=symmetric, act_order=act_order))
    codes = torch.tensor(list(itertools.product(range(4), repeat=3)), dtype=torch.uint8)
    candidates = with_codes(found, codes[:, None].expand(-1, 2, -1))
    best = torch.stack([problem.row_objective(weight) for weight in candidates]).amin(0)
    mine = problem.row_objective(with_codes(found, found.codes))
    assert bool((mine >= best - 1e-12 * mine.abs()).all())


def test_gptq_is_optimal_when_inputs_are_uncorrelated() -> None:
    problem = problem_of(8, 16)
    diagonal = LayerProblem(problem.centre, torch.diag(problem.hessian.diagonal()), problem.reference)
    rtn = baselines.get("rtn")(diagonal, QuantSpec(3))
    assert torch.equal(gptq(diagonal, QuantSpec(3)).codes, rtn.codes)


@pytest.mark.parametrize("block_size", [1, 7, 32, 1000])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_block_size_changes_nothing(block_size: int, act_order: bool) -> None:
    problem, spec = problem_of(40, 96), QuantSpec(3, act_order=act_order)
    other = gptq(problem, replace(spec, block_size=block_size))
    assert torch.equal(gptq(problem, spec).codes, other.codes)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@given(data=st.data())
@settings(max_examples=5)
def test_permuting_the_rows_permutes_the_codes(spec: QuantSpec, data: st.DataObject) -> None:
    at = layer(70, 48)
    order = torch.tensor(data.draw(st.permutations(range(70))))
    plain = LayerProblem.expert_guided(at.merged, at.experts, at.grams)
    permuted = LayerProblem.expert_guided(at.merged[order], [w[order] for w in at.experts], at.grams)
    found, turned = gptq(plain, spec), gptq(permuted, spec)
    assert torch.equal(found.codes[order], turned.codes)
    assert torch.equal(found.scale[order], turned.scale)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
def test_every_row_is_rounded_whatever_their_number(rows: int) -> None:
    """Rows are taken in strips; the last strip may be short."""
    at = layer(130, 32)
    whole = gptq(LayerProblem.merged(at.merged, at.grams), QuantSpec())
    part = gptq(LayerProblem.merged(at.merged[:rows], at.grams), QuantSpec())
    assert torch.equal(part.codes, whole.codes[:rows])


def dense(weight: QuantizedWeight) -> Tensor:
    return weight.dequantize().double()


def test_more_bits_and_smaller_groups_come_closer() -> None:
    problem = problem_of(32, 64)
    by_bits = [problem.objective(dense(gptq(problem, QuantSpec(bits)))) for bits in range(2, 9)]
    assert by_bits == sorted(by_bits, reverse=True)
    by_group = [problem.objective(dense(gptq(problem, QuantSpec(3, size)))) for size in (64, 16, 4)]
    assert by_group == sorted(by_group, reverse=True)
