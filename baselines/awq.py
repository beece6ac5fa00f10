"""AWQ-style rounding: activation-aware input scales, then a clip search, on the layer's quadratic objective.

AWQ (Lin et al. 2023) scores its search by the output error on calibration samples, which is this objective
with H = E[x x^T]; scoring with the problem's own Hessian serves both targets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from baselines.registry import baseline
from epmq.grid import by_group, decode, encode, fit_grid
from epmq.problem import LayerProblem
from epmq.spec import QuantSpec
from epmq.weight import QuantizedWeight

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


def _searched(problem: LayerProblem, spec: QuantSpec, input_scale: Tensor) -> QuantizedWeight:
    """The best clipped grid of every group for one set of input scales, by the diagonal of the objective."""
    weight = problem.centre * input_scale
    fitted_on = problem.reference * input_scale if spec.fit_scales_on == "merged" else weight
    importance = by_group((problem.hessian.diagonal() / input_scale**2)[None], spec)
    grouped, fitted = by_group(weight, spec), by_group(fitted_on, spec)
    scale, zero = fit_grid(fitted, spec)
    best = torch.full_like(scale, torch.inf)
    for step in range(CLIP_STEPS):
        trial, shift = fit_grid(fitted, spec, shrink=1 - step / (2 * CLIP_STEPS))
        codes = encode(grouped, trial[..., None], shift[..., None], spec.max_code)
        error = ((decode(codes, trial[..., None], shift[..., None]) - grouped) ** 2 * importance).sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, trial, scale), torch.where(better, shift, zero)
    return QuantizedWeight.nearest(weight, scale, zero, spec, input_scale)


def _plain(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Min-max rounding with unit input scales, so that the search never does worse than RTN."""
    ones = torch.ones_like(problem.hessian.diagonal())
    fitted_on = problem.reference if spec.fit_scales_on == "merged" else problem.centre
    return QuantizedWeight.nearest(problem.centre, *fit_grid(by_group(fitted_on, spec), spec), spec, ones)


@baseline("awq", reference="arXiv:2306.00978", summary="activation-aware input scales and clip search")
def awq(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """The candidate of the scale and clip search with the smallest objective."""
    candidates = [_plain(problem, spec), *(_searched(problem, spec, s) for s in _input_scales(problem))]
    return min(candidates, key=lambda found: problem.objective(found.dequantize()))
