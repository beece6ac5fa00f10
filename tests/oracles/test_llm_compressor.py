"""GPTQ's codes are those of llm-compressor's ``quantize_weight`` on the same Hessian, scales and zero points.

Differences that remain: llm-compressor dampens and factors the Hessian in float32 (Cholesky, inverse,
Cholesky) where we factor in float64 (both loops are in float32); it rounds ``w / s + z`` where we round
``w / s`` and add ``z``; its integers are signed, so that its zero point is ours less the middle code. So a
weight near a rounding tie may differ.
It takes scales as given; ours are fitted up front (``fit_scales_on="merged"``) so that both use the same.
"""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
from torch import Tensor

from epmq.layer.gptq import gptq
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from tests.fixtures.layers import layer

DAMPING = 0.01
SPECS = [
    QuantSpec(
        bits,
        group_size,
        symmetric=symmetric,
        act_order=act_order,
        fit_scales_on="merged",
        scale_dtype="float32",
    )
    for bits in (4, 3)
    for group_size in (None, 32)
    for symmetric in (False, True)
    for act_order in (False, True)
]


def theirs(weight: Tensor, gram: Tensor, spec: QuantSpec, ours: QuantizedWeight) -> Tensor:
    """Codes by llm-compressor, ``(rows, columns)``, counted from 0 as ours."""
    asked = QuantizationArgs(
        num_bits=spec.bits,
        symmetric=spec.symmetric,
        strategy="channel" if spec.group_size is None else "group",
        group_size=spec.group_size,
        actorder="weight" if spec.act_order else None,
    )
    middle = (spec.max_code + 1) // 2
    dense, _, fell_back = quantize_weight(
        weight.float()[None].clone(),
        gram.float()[None].clone(),
        ours.scale[None],
        (ours.zero.to(torch.int8) - middle)[None],
        None,
        asked,
        blocksize=spec.block_size,
        percdamp=DAMPING,
    )
    assert not bool(fell_back.any())
    group_of = torch.arange(weight.shape[1]) // spec.columns_per_group(weight.shape[1])
    codes: Tensor = dense[0] / ours.scale[:, group_of] + ours.zero[:, group_of]
    assert float((codes - codes.round()).abs().max()) < 1e-3
    return codes.round()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(96, 128), (256, 384)])
def test_codes_are_llm_compressors(rows: int, columns: int, spec: QuantSpec) -> None:
    at = layer(rows, columns, tasks=1, samples=4 * columns)
    problem = LayerProblem.merged(at.merged, at.grams, damping=DAMPING)
    ours = gptq(problem, spec)
    other = theirs(at.merged, at.grams[0], spec, ours)
    equal = float((ours.codes == other).double().mean())
    rebuilt = QuantizedWeight.build(other, ours.scale, ours.zero, spec)
    objectives = [problem.objective(w.dequantize()) for w in (ours, rebuilt)]
    print(f"equal codes {equal:.4%}, relative objective {objectives[0] / objectives[1] - 1:.1e}")
    assert equal >= 0.9995
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-6 if equal == 1 else 1e-4)
