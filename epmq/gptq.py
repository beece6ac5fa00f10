"""GPTQ's column loop (Frantar et al. 2022, arXiv 2210.17323, algorithm 1) as a pure function.

Rows are independent once the factor R of the inverse Hessian is known, so inside a block of columns a
compiled loop takes row after row while everything it touches stays in cache; what a block's errors do to the
columns behind it is one matrix product ("lazy batch"). The loop runs in float64 on the CPU, wherever the
tensors live.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from epmq.grid import by_group, fit_grid
from epmq.problem import LayerProblem
from epmq.spec import QuantSpec
from epmq.weight import QuantizedWeight

Matrix = NDArray[np.float64]


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _round_block(block: Matrix, factor: Matrix, scale: Matrix, zero: Matrix, max_code: float, codes: Matrix) -> None:
    """Round one block in place: on return ``block`` holds the scaled errors of every column.

    ``block``, ``codes``: (rows, width); ``factor``: (width, width) upper; ``scale``, ``zero``: (rows, width).
    """
    rows, width = block.shape
    for row in numba.prange(rows):
        for j in range(width):
            step, shift = scale[row, j], zero[row, j]
            code = min(max(np.rint(block[row, j] / step) + shift, 0.0), max_code)
            error = (block[row, j] - (code - shift) * step) / factor[j, j]
            for k in range(j + 1, width):
                block[row, k] -= error * factor[j, k]
            codes[row, j] = code
            block[row, j] = error


def gptq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Quantise ``problem.centre`` column by column, each column's error passed on to those behind it.

    Scales of a group are fitted on the error-updated columns when the loop reaches the group (the original
    code reads columns that the current block has not updated yet when groups are smaller than a block);
    with ``act_order`` or ``fit_scales_on="merged"`` they are fitted before the loop.

    Returns:
        Codes in the layer's own column order.
    """
    columns = problem.centre.shape[1]
    group = spec.columns_per_group(columns)
    order = torch.arange(columns)
    factor = problem.inverse_factor
    if spec.act_order:
        order = torch.argsort(problem.hessian.diagonal().cpu(), descending=True, stable=True)
        factor = problem.permuted_inverse_factor(order)
    up_front = spec.act_order or group == columns or spec.fit_scales_on == "merged"
    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    scale, zero = fit_grid(by_group(fitted_on.cpu(), spec), spec)
    width = min(spec.block_size, columns) if up_front else group
    weight = problem.centre.cpu()[:, order].contiguous()
    codes = torch.empty_like(weight)
    factor = factor.cpu()
    groups = order // group
    for start in range(0, columns, width):
        here = slice(start, min(start + width, columns))
        block = weight[:, here].contiguous()
        if not up_front:
            index = start // group
            scale[:, index], zero[:, index] = fit_grid(block, spec)
        of_column = groups[here]
        rounded = torch.empty_like(block)
        _round_block(
            block.numpy(),
            factor[here, here].contiguous().numpy(),
            scale[:, of_column].contiguous().numpy(),
            zero[:, of_column].contiguous().numpy(),
            float(spec.max_code),
            rounded.numpy(),
        )
        codes[:, order[here]] = rounded
        weight[:, here.stop :] -= block @ factor[here, here.stop :]
    device = problem.centre.device
    return QuantizedWeight.build(codes.to(device), scale.to(device), zero.to(device), spec)
