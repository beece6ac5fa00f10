"""GPTQ's column loop (Frantar et al. 2022, arXiv 2210.17323, algorithm 1) as a pure function.

Rows are independent once the factor R of the inverse Hessian is known, so inside a block of columns a
compiled loop takes a strip of rows at a time, which stays in the first-level cache; what a block's errors do
to the columns behind it is one matrix product ("lazy batch"). The loop runs on the CPU, wherever the tensors
live, and holds everything columns first, so that a block of columns is one contiguous piece.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numba
import torch
from numpy import rint
from numpy.typing import NDArray
from torch import Tensor

from epmq.layer.exceptions import Exceptions
from epmq.layer.grid import by_group, fit_grid, levels, offsets
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.threads import over_rows
from epmq.layer.weight import QuantizedWeight

Array = NDArray[Any]
LOOP_DTYPE = torch.float32  # as in the paper's code; it costs one weight in 10^4 or 10^5, near rounding ties
STRIP = 64  # rows


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _round_rows(
    start: int,
    stop: int,
    block: Array,
    factor: Array,
    scale: Array,
    zero: Array,
    group: Array,
    past: Array,
    table: Array,
    kept: Array,
    max_code: Any,
    codes: Array,
) -> None:
    """Round some rows of a block of columns; ``block`` then holds each column's error over the diagonal.

    ``block``, ``codes``: (width, rows); ``factor``: (width, width), upper triangular; ``scale``, ``zero``:
    (groups, rows); ``group``: (width,), each column's group; ``past``: (width, width), strictly upper
    triangular, what a column's value before rounding adds to those behind it, or (0, 0) for nothing;
    ``table``: (levels,), rising, or (0,) on a uniform grid; ``kept``: (width, rows), NaN, or 0 where a weight
    is no code, which then holds its value; or (0, 0) where all are codes.
    """
    lowest = block.dtype.type(0)
    half = block.dtype.type(0.5)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        weight = block[:, first : first + count].copy()
        before = weight[0].copy()
        for j in range(len(block)):
            if len(table):
                for row in range(count):
                    step = scale[group[j], first + row]
                    before[row] = weight[j, row]
                    code = 0
                    for level in range(len(table) - 1):
                        if weight[j, row] / step > (table[level] + table[level + 1]) * half:
                            code = level + 1
                    codes[j, first + row] = code
                    weight[j, row] = (weight[j, row] - table[code] * step) / factor[j, j]
            else:
                for row in range(count):
                    step, shift = scale[group[j], first + row], zero[group[j], first + row]
                    before[row] = weight[j, row]
                    number = min(max(rint(weight[j, row] / step) + shift, lowest), max_code)
                    codes[j, first + row] = number
                    weight[j, row] = (weight[j, row] - (number - shift) * step) / factor[j, j]
            if len(kept):
                for row in range(count):
                    if kept[j, first + row] == lowest:
                        kept[j, first + row] = before[row]
                        weight[j, row] = lowest
            for k in range(j + 1, len(block)):
                for row in range(count):
                    weight[k, row] -= weight[j, row] * factor[j, k]
            if len(past):
                for k in range(j + 1, len(block)):
                    for row in range(count):
                        weight[k, row] += before[row] * past[j, k]
        block[:, first : first + count] = weight


def gptq(problem: LayerProblem, spec: QuantSpec, kept: Tensor | None = None) -> QuantizedWeight:
    """Quantise ``problem.centre`` column by column, each column's error passed on to those behind it.

    Scales of a group are fitted on the error-updated columns when the loop reaches the group (the original
    code reads columns that the current block has not updated yet when groups are smaller than a block);
    with ``act_order`` or ``fit_scales_on="merged"`` they are fitted before the loop.

    Of a problem with an ``asymmetry`` A, a column's value ``w_j`` before rounding also moves those behind it,
    by ``w_j P_j`` with ``P = triu(A R^T, 1) R`` (GPTAQ, Li et al. 2025, arXiv 2504.02692, as in its code).

    Args:
        kept: columns ``(rows, count)`` of entries that stay half-precision numbers: no scale is fitted on
            them, and they pass on no error (that of their own last bits is left out).

    Returns:
        Codes in the layer's own column order.
    """
    rows, columns = problem.centre.shape
    group = spec.columns_per_group(columns)
    weight = problem.centre.cpu().to(LOOP_DTYPE).T.contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    group_of = torch.arange(columns) // group
    factor, asymmetry = problem.inverse_factor, problem.asymmetry
    values = weight.new_empty(0, 0)
    if kept is not None:
        values = torch.full_like(weight, torch.nan).scatter(0, kept.cpu().T, 0.0)
    order = torch.arange(columns)
    if spec.act_order:
        order = torch.argsort(problem.hessian.diagonal().cpu(), descending=True, stable=True)
        factor = problem.in_order(order).inverse_factor
        weight, group_of = weight[order], group_of[order]
        values = values if kept is None else values[order]
        asymmetry = None if asymmetry is None else asymmetry[order][:, order]
    past = None if asymmetry is None else ((asymmetry @ factor.T).triu(1) @ factor).cpu().to(LOOP_DTYPE)
    factor = factor.cpu().to(LOOP_DTYPE)
    fitted_on = (problem.reference if spec.fit_scales_on == "merged" else problem.centre).cpu()
    if kept is not None:
        fitted_on = fitted_on.scatter(1, kept.cpu(), 0.0)
    scale, zero = (t.T.to(LOOP_DTYPE).contiguous() for t in fit_grid(by_group(fitted_on, spec), spec))
    up_front = spec.act_order or group == columns or spec.fit_scales_on == "merged"
    width = spec.block_size if up_front else group
    max_code = weight.new_tensor(spec.max_code).numpy()[()]
    table = levels(spec).to(LOOP_DTYPE)
    for start in range(0, columns, width):
        here, behind = slice(start, start + width), slice(start + width, columns)
        block, own_values = weight[here], values[here]
        if not up_front:
            fitted = block if kept is None else torch.where(own_values == 0, 0.0, block)
            scale[start // group], zero[start // group] = fit_grid(fitted.T, spec)
        inner = weight.new_empty(0, 0) if past is None else past[here, here].contiguous()
        inside = factor[here, here].contiguous()
        tensors = block, inside, scale, zero, group_of[here], inner, table, own_values
        work = block.numel() * len(block) // 2
        over_rows(_round_rows, rows, work, *(t.numpy() for t in tensors), max_code, codes[here].numpy())
        weight[behind].addmm_(factor[here, behind].T, block, alpha=-1)
        if past is not None:  # an error over the diagonal and what was rounded to tell what was there before
            own = group_of[here]
            rounded = offsets(codes[here].to(scale), zero[own], spec) * scale[own]
            if kept is not None:
                rounded = torch.where(own_values.isnan(), rounded, own_values)
            before = rounded + block * inside.diagonal()[:, None]
            weight[behind].addmm_(past[here, behind].T, before)
    back = torch.argsort(order)
    device = problem.centre.device
    codes, scale, zero = (t.T.contiguous().to(device) for t in (codes[back], scale, zero))
    found = QuantizedWeight.build(codes, scale, zero, spec)
    if kept is None:
        return found
    return replace(found, exceptions=Exceptions.of(values[back].T.to(device), kept.to(device)))
