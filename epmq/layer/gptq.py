"""GPTQ's column loop (Frantar et al. 2022, arXiv 2210.17323, algorithm 1) as a pure function.

In its nearest-plane form (Birnick 2025, arXiv 2507.18553; Chen et al. 2025, arXiv 2508.01077): with
``H = F F^T``, F upper triangular, and ``U = F diag(F)^-1``, column j is the code nearest to
``c_j + sum_{i<j} (c_i - q_i) U_ij``. These are the codes of the paper's loop over the inverse's factor, which
is not needed. Rows are independent, so inside a block of columns a compiled loop takes a strip of rows at a
time, which stays in the first-level cache; what the columns before do to a block is one matrix product. The
loop runs on the CPU, wherever the tensors live, and holds everything columns first, so that a block of
columns is one contiguous piece.
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
from epmq.layer.grid import by_group, fit_grid, levels
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
    centre: Array,
    upper: Array,
    scale: Array,
    zero: Array,
    group: Array,
    past: Array,
    table: Array,
    kept: Array,
    max_code: Any,
    codes: Array,
) -> None:
    """Round some rows of a block of columns; ``block`` then holds what each column was rounded from.

    ``block``, ``centre``, ``codes``: (width, rows), of what the columns before the block have made of the
    centre, and of the centre, which then holds how far it is from what was stored; ``upper``: (width, width),
    U; ``scale``, ``zero``: (groups, rows); ``group``: (width,), each column's group; ``past``: (width,
    width), strictly upper triangular, what a column's value before rounding adds to the centre of those
    behind it, or (0, 0) for nothing; ``table``: (levels,), rising, or (0,) on a uniform grid; ``kept``:
    (width, rows), NaN, or 0 where a weight is no code, which then holds its value; or (0, 0) where all are
    codes.
    """
    lowest = block.dtype.type(0)
    half = block.dtype.type(0.5)
    for first in range(start, stop, STRIP):
        count = min(STRIP, stop - first)
        weight = block[:, first : first + count].copy()
        gap = centre[:, first : first + count].copy()
        for j in range(len(block)):
            if len(table):
                for row in range(count):
                    step = scale[group[j], first + row]
                    code = 0
                    for level in range(len(table) - 1):
                        if weight[j, row] / step > (table[level] + table[level + 1]) * half:
                            code = level + 1
                    codes[j, first + row] = code
                    gap[j, row] -= table[code] * step
            else:
                for row in range(count):
                    step, shift = scale[group[j], first + row], zero[group[j], first + row]
                    number = min(max(rint(weight[j, row] / step) + shift, lowest), max_code)
                    codes[j, first + row] = number
                    gap[j, row] -= (number - shift) * step
            if len(kept):
                for row in range(count):
                    if kept[j, first + row] == lowest:
                        kept[j, first + row] = weight[j, row]
                        gap[j, row] = centre[j, first + row] - weight[j, row]
            for k in range(j + 1, len(block)):
                for row in range(count):
                    weight[k, row] += gap[j, row] * upper[j, k]
            if len(past):
                for k in range(j + 1, len(block)):
                    for row in range(count):
                        moved = weight[j, row] * past[j, k]
                        weight[k, row] += moved
                        gap[k, row] += moved
                        centre[k, first + row] += moved
        block[:, first : first + count] = weight
        centre[:, first : first + count] = gap


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
    centre = problem.centre.cpu().to(LOOP_DTYPE).T.contiguous()
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    group_of = torch.arange(columns) // group
    factor, asymmetry = problem.factor, problem.asymmetry
    values = centre.new_empty(0, 0)
    if kept is not None:
        values = torch.full_like(centre, torch.nan).scatter(0, kept.cpu().T, 0.0)
    order = torch.arange(columns)
    if spec.act_order:
        order = torch.argsort(problem.hessian.diagonal().cpu(), descending=True, stable=True)
        factor = problem.in_order(order).factor
        centre, group_of = centre[order], group_of[order]
        values = values if kept is None else values[order]
        asymmetry = None if asymmetry is None else asymmetry[order][:, order]
    past = None if asymmetry is None else _of_the_past(asymmetry, factor).cpu().to(LOOP_DTYPE)
    upper = (factor / factor.diagonal()).cpu().to(LOOP_DTYPE)
    fitted_on = (problem.reference if spec.fit_scales_on == "merged" else problem.centre).cpu()
    if kept is not None:
        fitted_on = fitted_on.scatter(1, kept.cpu(), 0.0)
    scale, zero = (t.T.to(LOOP_DTYPE).contiguous() for t in fit_grid(by_group(fitted_on, spec), spec))
    up_front = spec.act_order or group == columns or spec.fit_scales_on == "merged"
    width = spec.block_size if up_front else group
    max_code = centre.new_tensor(spec.max_code).numpy()[()]
    table = levels(spec).to(LOOP_DTYPE)
    for start in range(0, columns, width):
        here, before, behind = slice(start, start + width), slice(start), slice(start + width, columns)
        # the rows of `centre` before the block hold by now how far they are from what was stored
        block = torch.addmm(centre[here], upper[before, here].T, centre[before])
        own_values = values[here]
        inside = upper[here, here].contiguous()
        if not up_front:  # the errors before the block leave its columns at c + (t - c) U_BB^-1
            moved = torch.linalg.solve_triangular(
                inside.T, block - centre[here], upper=False, unitriangular=True
            )
            fitted = centre[here] + moved
            fitted = fitted if kept is None else torch.where(own_values == 0, 0.0, fitted)
            scale[start // group], zero[start // group] = fit_grid(fitted.T, spec)
        inner = centre.new_empty(0, 0) if past is None else past[here, here].contiguous()
        tensors = block, centre[here], inside, scale, zero, group_of[here], inner, table, own_values
        work = block.numel() * len(block) // 2
        over_rows(_round_rows, rows, work, *(t.numpy() for t in tensors), max_code, codes[here].numpy())
        if past is not None:
            centre[behind].addmm_(past[here, behind].T, block)
    back = torch.argsort(order)
    device = problem.centre.device
    codes, scale, zero = (t.T.contiguous().to(device) for t in (codes[back], scale, zero))
    found = QuantizedWeight.build(codes, scale, zero, spec)
    if kept is None:
        return found
    return replace(found, exceptions=Exceptions.of(values[back].T.to(device), kept.to(device)))


def _of_the_past(asymmetry: Tensor, factor: Tensor) -> Tensor:
    """P = triu(A R^T, 1) R with R = F^-1, ``(columns, columns)`` float64."""
    left = torch.linalg.solve_triangular(factor.T, asymmetry, upper=False, left=False)
    found: Tensor = torch.linalg.solve_triangular(factor, left.triu(1), upper=True, left=False)
    return found
