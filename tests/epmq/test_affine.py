"""Biases and norms in closed form are the least squares that their docstrings name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from epmq.layer.affine import NormMoments, solved_bias

WIDTH, TASKS = 6, 3


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made() -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Per task z ``(n_t, width)`` and the expert's scale and shift, and a point."""
    z = [normal(20 + 9 * t, WIDTH, seed=t) + 0.3 * t for t in range(TASKS)]
    pairs = [(1 + normal(WIDTH, seed=10 + t), normal(WIDTH, seed=20 + t)) for t in range(TASKS)]
    return z, pairs, (normal(WIDTH, seed=30), normal(WIDTH, seed=31))


def folded(z: list[Tensor], experts: list[tuple[Tensor, Tensor | None]]) -> NormMoments:
    moments = NormMoments.empty(WIDTH, z[0].device)
    for x, expert in zip(z, experts, strict=True):
        moments.fold((x**2).mean(0), x.mean(0), expert)
    return moments


def least_squares(design: list[Tensor], wanted: list[Tensor], point: Tensor, ridge: float) -> Tensor:
    """argmin_p sum_t mean (design_t p - wanted_t)^2 + ridge ||p - point||^2, by stacked equations."""
    rows = [d / len(d) ** 0.5 for d in design] + [ridge**0.5 * torch.eye(len(point)).double()]
    right = [y / len(y) ** 0.5 for y in wanted] + [ridge**0.5 * point]
    found: Tensor = torch.linalg.lstsq(torch.cat(rows), torch.cat(right)[:, None]).solution[:, 0]
    return found


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
def test_scale_and_shift_are_least_squares(ridge: float) -> None:
    z, pairs, point = made()
    scale, shift = folded(z, list(pairs)).solve(point, ridge)
    assert shift is not None
    for j in range(WIDTH):
        design = [torch.stack([x[:, j], torch.ones(len(x)).double()], 1) for x in z]
        wanted = [x[:, j] * g[j] + s[j] for x, (g, s) in zip(z, pairs, strict=True)]
        found = least_squares(design, wanted, torch.stack([point[0][j], point[1][j]]), ridge)
        torch.testing.assert_close(torch.stack([scale[j], shift[j]]), found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
def test_a_norm_without_a_shift_has_a_least_squares_scale(ridge: float) -> None:
    z, pairs, (point, _) = made()
    scale, shift = folded(z, [(g, None) for g, _ in pairs]).solve((point, None), ridge)
    assert shift is None
    for j in range(WIDTH):
        wanted = [x[:, j] * g[j] for x, (g, _) in zip(z, pairs, strict=True)]
        found = least_squares([x[:, [j]] for x in z], wanted, point[[j]], ridge)
        torch.testing.assert_close(scale[[j]], found, rtol=1e-10, atol=1e-10)


def test_what_does_not_vary_keeps_the_points_scale() -> None:
    z, pairs, point = made()
    constant = [torch.full_like(x, 0.5) for x in z]
    scale, shift = folded(constant, list(pairs)).solve(point, 0.0)
    assert shift is not None
    assert torch.equal(scale, point[0])
    outputs = [0.5 * g + s for g, s in pairs]
    torch.testing.assert_close(0.5 * scale + shift, torch.stack(outputs).mean(0))
    zero = [torch.zeros_like(x) for x in z]
    assert torch.equal(folded(zero, [(g, None) for g, _ in pairs]).solve((point[0], None), 0.0)[0], point[0])


@pytest.mark.parametrize("ridge", [0.0, 0.05, 3.0])
def test_a_bias_is_the_weighted_mean_of_what_is_lacking(ridge: float) -> None:
    lacking, shares, point = normal(TASKS, WIDTH, seed=1), normal(TASKS, seed=2).exp(), normal(WIDTH, seed=3)
    found = normal(TASKS, WIDTH, seed=4)  # W E[x_t]
    bias = solved_bias(shares @ (lacking + found), shares @ found, float(shares.sum()), point, ridge)
    design = [*shares.sqrt(), torch.tensor(ridge, dtype=torch.float64).sqrt()]
    left = torch.stack(design)[:, None]
    right = left * torch.cat([lacking, point[None]])
    torch.testing.assert_close(bias, torch.linalg.lstsq(left, right).solution[0], rtol=1e-10, atol=1e-10)


def test_a_bias_that_nothing_is_known_of_stays_at_the_point() -> None:
    point = normal(WIDTH, seed=3)
    assert torch.equal(solved_bias(0 * point, 0 * point, 0.0, point, 0.0), point)
