"""AWQ-style rounding: activation-aware input scales, then a clip search, on the layer's quadratic objective.

AWQ (Lin et al. 2023) scores its search by the output error on calibration samples, which is this objective
with H = E[x x^T]; scoring with the problem's own Hessian serves both targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch or numba is imported when a layer is rounded
    from torch import Tensor

    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

Array = NDArray[Any]
SCALE_STEPS = 20  # exponents 0, 1/20, ..., 19/20, as the AWQ code searches
CLIP_STEPS = 10  # ranges 1.0, 0.95, ..., 0.55: AWQ's max_shrink of 0.5 in steps of 1/20


def _input_scales(problem: LayerProblem) -> Iterator[Tensor]:
    """Candidate scales (columns,): root mean square activation to a power, normalised, float16-exact."""
    activation = problem.hessian.diagonal().clamp(min=0).sqrt()
    activation = activation.clamp(min=1e-4 * float(activation.max()))
    for step in range(SCALE_STEPS):
        scale = activation ** (step / SCALE_STEPS)
        scale = scale / (scale.max() * scale.min()).sqrt()
        yield scale.half().to(activation)


def _least_error(
    start: int,
    stop: int,
    weight: Array,
    importance: Array,
    scale: Array,
    zero: Array,
    table: Array,
    max_code: float,
    best: Array,
) -> None:
    """The trial grid of every group with the least weighted square error, for some rows.

    ``weight``: (rows, groups, width); ``importance``: (groups, width); ``scale``, ``zero``: (trials, rows,
    groups); ``table``: the grid's levels by code, or none; ``best``: (rows, groups), written.
    """
    for row in range(start, stop):
        for group in range(weight.shape[1]):
            least = np.inf
            for trial in range(len(scale)):
                step, shift, total = scale[trial, row, group], zero[trial, row, group], 0.0
                for column in range(weight.shape[2]):
                    value = weight[row, group, column]
                    offset = min(max(np.rint(value / step) + shift, 0.0), max_code) - shift
                    if len(table):
                        offset = table[0]
                        for level in range(1, len(table)):
                            if value / step > (table[level - 1] + table[level]) / 2:
                                offset = table[level]
                    total += (offset * step - value) ** 2 * importance[group, column]
                if total < least:
                    least = total
                    best[row, group] = trial


@cache
def _compiled() -> Callable[..., None]:
    import numba

    kernel: Callable[..., None] = numba.njit(
        nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"}
    )(_least_error)
    return kernel


def _searched(problem: LayerProblem, spec: QuantSpec, input_scale: Tensor) -> QuantizedWeight:
    """The best clipped grid of every group for one set of input scales, by the diagonal of the objective."""
    import torch

    from epmq.layer.grid import by_group, fit_grid, levels
    from epmq.layer.threads import over_rows
    from epmq.layer.weight import QuantizedWeight

    weight = problem.centre * input_scale
    fitted_on = problem.reference * input_scale if spec.fit_scales_on == "merged" else weight
    importance = by_group((problem.hessian.diagonal() / input_scale**2)[None], spec)[0]
    shrink = 1 - torch.arange(CLIP_STEPS).to(weight) / (2 * CLIP_STEPS)
    scale, zero = fit_grid(by_group(fitted_on, spec), spec, shrink[:, None, None])
    best = torch.zeros(scale.shape[1:], dtype=torch.int64)
    tensors = by_group(weight, spec), importance, scale, zero, levels(spec)
    arrays = (t.cpu().contiguous().numpy() for t in tensors)
    work = 4 * CLIP_STEPS * weight.numel()
    over_rows(_compiled(), len(weight), work, *arrays, float(spec.max_code), best.numpy())
    scale, zero = (t.gather(0, best.to(t.device)[None])[0] for t in (scale, zero))
    return QuantizedWeight.nearest(weight, scale, zero, spec, input_scale)


def _plain(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Min-max rounding with unit input scales, so that the search never does worse than RTN."""
    import torch

    from epmq.layer.grid import by_group, fit_grid
    from epmq.layer.weight import QuantizedWeight

    ones = torch.ones_like(problem.hessian.diagonal())
    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    return QuantizedWeight.nearest(problem.centre, *fit_grid(by_group(fitted_on, spec), spec), spec, ones)


@baseline("awq", reference="arXiv:2306.00978", summary="activation-aware input scales and clip search")
def awq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Columns times ``s_j = rms(x_j)^a``, a from 0 to .95, clipped to the range of least weighted error.

    Of all candidates, rounding to nearest among them, the one with the smallest objective. The public code
    folds the scales into what is before the layer; here they are stored with it and counted.
    """
    candidates = (_plain(problem, spec), *(_searched(problem, spec, s) for s in _input_scales(problem)))
    return min(candidates, key=lambda found: problem.objective(found.dequantize()))
