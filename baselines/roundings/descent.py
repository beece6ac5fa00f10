"""GPTQ, then coordinate descent on its codes, and the same in turns with a refit of its scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from numpy import rint
from numpy.typing import NDArray

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch or numba is imported when a layer is rounded
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

Array = NDArray[Any]
SWEEPS = 25  # over all columns at most; it ends where no code of a row changes
ROUNDS = 4  # of refit and descent
CHUNK = 64  # rows whose systems of scales are in memory together


def _descend(
    start: int,
    stop: int,
    codes: Array,
    gradient: Array,
    hessian: Array,
    scale: Array,
    zero: Array,
    table: Array,
    width: int,
    max_code: float,
    sweeps: int,
) -> None:
    """Column by column the code that is best where all others stay, for some rows.

    ``codes``, ``gradient`` = (Q - C) H: (rows, columns), both written; ``scale``, ``zero``: (rows, groups);
    ``table``: the grid's levels by code, or none on a uniform grid.
    """
    columns = codes.shape[1]
    for row in range(start, stop):
        for _ in range(sweeps):
            changed = False
            for j in range(columns):
                step, shift, code = scale[row, j // width], zero[row, j // width], codes[row, j]
                offset = table[int(code)] if len(table) else code - shift
                wanted = offset - gradient[row, j] / hessian[j, j] / step
                best = min(max(rint(wanted) + shift, 0.0), max_code)
                nearest = best - shift
                if len(table):
                    best = float((wanted > (table[1:] + table[:-1]) / 2).sum())
                    nearest = table[int(best)]
                if best != code:
                    moved = (nearest - offset) * step
                    # a move to a tie would come back in the next sweep
                    if moved * (2 * gradient[row, j] + moved * hessian[j, j]) < 0:
                        codes[row, j] = best
                        changed = True
                        for k in range(columns):
                            gradient[row, k] += moved * hessian[j, k]
            if not changed:
                break


@cache
def _compiled() -> Callable[..., None]:
    import numba

    kernel: Callable[..., None] = numba.njit(nogil=True, cache=True, error_model="numpy")(_descend)
    return kernel


def _descended(problem: LayerProblem, found: QuantizedWeight) -> QuantizedWeight:
    """The same grid with codes that no change of one alone makes better, or after so many sweeps."""
    import torch

    from epmq.layer.grid import levels
    from epmq.layer.threads import over_rows
    from epmq.layer.weight import QuantizedWeight

    spec, (rows, columns) = found.spec, found.codes.shape
    centre, hessian = problem.centre.cpu(), problem.hessian.cpu().contiguous()
    codes = found.codes.cpu().double()
    gradient = (found.dequantize().cpu().double() - centre) @ hessian
    scale, zero = found.scale.cpu().double(), found.zero.cpu().double()
    arrays = (t.contiguous().numpy() for t in (codes, gradient, hessian, scale, zero, levels(spec)))
    limits = spec.columns_per_group(columns), float(spec.max_code), SWEEPS
    over_rows(_compiled(), rows, rows * columns * columns, *arrays, *limits)
    device = problem.centre.device
    return QuantizedWeight(codes.to(torch.uint8).to(device), found.scale, found.zero, spec)


def _refitted(problem: LayerProblem, found: QuantizedWeight) -> QuantizedWeight:
    """The same codes with the scales that are best for them; a row that gains nothing keeps its own.

    With z^_g the offsets of group g's codes, the scales solve ``M s = v``,
    ``M_gh = z^_g^T H_gh z^_h`` and ``v_g = z^_g^T (H c)_g``.
    """
    import torch

    from epmq.layer.grid import by_group, offsets
    from epmq.layer.weight import QuantizedWeight

    spec, old = found.spec, found.scale
    offset = offsets(by_group(found.codes.double(), spec), found.zero.double()[..., None], spec)
    groups, width = offset.shape[1:]
    blocks = problem.hessian.reshape(groups, width, groups, width)
    wanted = by_group(problem.centre @ problem.hessian, spec)
    fresh = []
    for chunk, right in zip(offset.split(CHUNK), (offset * wanted).sum(-1).split(CHUNK), strict=True):
        half = torch.einsum("rgw,gwhv->rghv", chunk, blocks)
        system = (half * chunk[:, None]).sum(-1)
        diagonal = system.diagonal(dim1=-2, dim2=-1)
        ridge = 1e-12 * diagonal.mean(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        system = system + torch.diag_embed(torch.where(diagonal > 0, ridge, 1.0))
        fresh.append(torch.linalg.solve(system, right))
    scale = torch.cat(fresh)
    limits = torch.finfo(old.dtype)
    scale = torch.where((scale > limits.smallest_normal) & (scale < limits.max), scale, old.double())
    other = QuantizedWeight.build(found.codes, scale, found.zero, spec)
    better = problem.row_objective(other.dequantize()) < problem.row_objective(found.dequantize())
    return QuantizedWeight.build(
        found.codes, torch.where(better[:, None], other.scale, old), found.zero, spec
    )


@baseline(
    "gptq-descent",
    reference="arXiv:2309.01885",
    summary="GPTQ, then coordinate descent on its codes",
)
def gptq_descent(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """QuantEase's cyclic descent (Behdin et al. 2023) from GPTQ's codes, which it never makes worse."""
    from epmq.layer import gptq as core

    return _descended(problem, core.gptq(problem, spec))


@baseline(
    "gptq-refit",
    reference="arXiv:2309.01885",
    summary="GPTQ, then coordinate descent on its codes in turns with a refit of its scales",
)
def gptq_refit(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """:func:`gptq_descent`, then rounds of least-squares scales and descent; no step makes it worse."""
    found = gptq_descent(problem, spec)
    for _ in range(ROUNDS):
        found = _descended(problem, _refitted(problem, found))
    return found
