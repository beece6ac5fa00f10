"""Our HQQ against the ``hqq`` package: zero points and codes of the same groups, scales and starts.

Differences that remain: the package works on the inverse of the scale and stops when the mean error of all
groups together no longer falls, so it is given one group at a time. In its default solver (version 0.2.8)
``beta`` does not grow by ``kappa``; in its other one, on the method's page and here it does. The other one
goes back a step where it stops. So the iteration is compared with the other one told not to stop, and
stopping with the default one, ``beta`` held. The package's own start is another: it fits scales to the range
of the weights without 0 in it and begins at a zero point that is not rounded, where ours are those of every
other method here (:func:`epmq.layer.grid.fit_grid`).
"""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from hqq.core.optimize import optimize_weights_proximal_legacy, optimize_weights_proximal_v2
from torch import Tensor

from baselines.roundings import hqq
from epmq.layer.grid import by_group, encode, fit_grid
from epmq.layer.spec import QuantSpec

OPTIONS = {"lp_norm": hqq.NORM, "beta": hqq.BETA, "kappa": hqq.GROWTH, "iters": hqq.STEPS}
SPECS = [QuantSpec(2, 9), QuantSpec(3, 63), QuantSpec(4, 21), QuantSpec(8)]


def heavy(size: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, 48, 63, generator=generator, dtype=torch.float64)
    return size * draws[0] / draws[1].abs().clamp(min=0.2)


def test_constants_are_the_packages() -> None:
    given = signature(optimize_weights_proximal_legacy).parameters["opt_params"]
    assert given.default == OPTIONS


@pytest.mark.parametrize("size", [0.02, 1.0, 10.0])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_iteration_is_that_of_hqq(spec: QuantSpec, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps, none of which is the last one for its error, in float64."""
    monkeypatch.setattr(hqq, "LEAST_FALL", -torch.inf)
    weight = by_group(heavy(size, spec.bits), spec)
    scale, start = fit_grid(weight, spec)
    ours = hqq.fitted_zero(weight, scale, start, spec.max_code)
    codes, _, zero = optimize_weights_proximal_v2(
        weight.flatten(0, 1),
        1 / scale.reshape(-1, 1),
        start.reshape(-1, 1),
        [0, spec.max_code],
        axis=1,
        device="cpu",
        dtype=torch.float64,
        opt_params={**OPTIONS, "tol": 0.0, "early_stop": False, "scale_gridsearch": False},
    )
    torch.testing.assert_close(ours.flatten(), zero.flatten(), rtol=1e-9, atol=1e-9)
    mine = encode(weight, scale[..., None], ours[..., None], spec)
    assert float((mine.flatten(0, 1) == codes).double().mean()) > 0.999, "but for ties"


@pytest.mark.parametrize("size", [0.02, 1.0, 10.0])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_stops_where_hqq_stops(spec: QuantSpec, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for steps near a fixed point, of which the package's float32 takes fewer than our float64."""
    monkeypatch.setattr(hqq, "GROWTH", 1.0)
    weight = by_group(heavy(size, spec.bits), spec)
    scale, start = fit_grid(weight, spec)
    ours = hqq.fitted_zero(weight, scale, start, spec.max_code)
    others = []
    for group, step, begin in zip(weight.flatten(0, 1), scale.flatten(), start.flatten(), strict=True):
        limits = [0, spec.max_code]
        given = group[None], (1 / step).reshape(1, 1), begin.reshape(1, 1), limits
        _, _, zero = optimize_weights_proximal_legacy(*given, axis=1, device="cpu", opt_params=OPTIONS)
        others.append(float(zero))
    apart = (torch.tensor(others).double() - ours.flatten()).abs()
    print(f"zero points are at most {apart.max():.1e} apart")
    assert float(apart.max()) < 1e-3
