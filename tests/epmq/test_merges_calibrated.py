"""Singular-value calibration and consensus, against plain formulas in float64 and what must hold of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epmq.errors import UserError
from epmq.merges.calibrated import calibrated
from epmq.merging import merge, options_of
from tests.epmq.test_merges import Matrix, differences, models, tau

ROTATION, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))


def plain_svc(moved: Matrix, parts: list[Matrix], floor: float) -> Matrix:
    """Direction by direction, task by task."""
    u, s, vt = np.linalg.svd(moved, full_matrices=False)
    for r in range(len(s)):
        whole = u[:, r] @ moved
        found = [whole @ (u[:, r] @ part) / np.sum((u[:, r] @ part) ** 2) for part in parts]
        s[r] *= len(parts) / sum(max(floor, float(coefficient)) for coefficient in found)
    wanted: Matrix = u @ np.diag(s) @ vt
    return wanted


@pytest.mark.parametrize("name", ["task-arithmetic", "ties"])
@pytest.mark.parametrize("floor", [0.1, 1.0])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 4), scale=st.floats(0.1, 1))
def test_matrices_are_calibrated_and_the_rest_is_as_merged(
    name: str, floor: float, seed: int, tasks: int, scale: float
) -> None:
    base, experts = models(tasks, seed)
    merged = merge(name, base, experts, scale=scale)
    found = merge(f"{name}-svc", base, experts, scale=scale, floor=floor)
    assert list(found) == list(merged)
    for key in ("tall", "wide"):
        wanted = plain_svc(tau(merged, base, key), differences(base, experts, key), floor)
        np.testing.assert_allclose(tau(found, base, key), wanted, rtol=1e-3, atol=1e-5)
        assert found[key].dtype == torch.float32
    for key in ("bias", "scale", "patches", "position_ids"):
        assert torch.equal(found[key], merged[key])


def test_the_factor_of_the_merge_does_not_matter_above_the_floor() -> None:
    base, experts = models(3)
    one, other = (
        merge("task-arithmetic-svc", base, experts, scale=scale, floor=1e-9)["tall"] for scale in (0.3, 0.9)
    )
    moved = merge("task-arithmetic", base, experts, scale=0.3)
    u, _, _ = np.linalg.svd(tau(moved, base, "tall"), full_matrices=False)
    responses = [u.T @ part for part in differences(base, experts, "tall")]
    whole = u.T @ tau(moved, base, "tall")
    above = np.all([(whole * each).sum(1) > 0 for each in responses], axis=0)
    assert above.any()
    gap = u.T @ (one - other).double().numpy()
    np.testing.assert_allclose(gap[above], 0, atol=1e-5)


def test_what_all_tasks_share_is_counted_once() -> None:
    base, (expert,) = models(1)
    for key, value in merge("task-arithmetic-svc", base, [expert] * 5, scale=0.7).items():
        if value.dim() == 2:
            torch.testing.assert_close(value, expert[key], rtol=1e-4, atol=1e-5)


def test_tasks_that_share_nothing_are_divided_by_what_they_leave_of_each() -> None:
    """Each of two orthogonal tasks: coefficient ``scale`` of its own direction, the floor of the other's."""
    base = {"w": torch.zeros(6, 6)}
    parts = [(1 + k) * ROTATION[:, [k]] @ ROTATION[[k + 2]] for k in (0, 1)]
    experts = [{"w": torch.tensor(part, dtype=torch.float32)} for part in parts]
    found = merge("task-arithmetic-svc", base, experts, scale=0.5, floor=0.1)["w"]
    wanted = (experts[0]["w"] + experts[1]["w"]) * 0.5 * 2 / (0.5 + 0.1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_any_stream_is_calibrated() -> None:
    base, experts = models(3)
    merged = merge("wudi", base, experts)
    found = dict(calibrated(iter(merged.items()), base, experts, 0.1))
    wanted = plain_svc(tau(merged, base, "wide"), differences(base, experts, "wide"), 0.1)
    np.testing.assert_allclose(tau(found, base, "wide"), wanted, rtol=1e-3, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), tasks=st.integers(1, 5), mask=st.floats(0, 2), agreeing=st.integers(0, 3))
def test_consensus_keeps_what_enough_tasks_mask(seed: int, tasks: int, mask: float, agreeing: int) -> None:
    base, experts = models(tasks, seed)
    found = merge("consensus", base, experts, scale=0.7, mask=mask, agreeing=agreeing)
    for key in ("tall", "bias", "scale", "patches"):
        parts = np.stack(differences(base, experts, key))
        others = np.abs(parts.sum(0) - parts)
        edge = np.abs(np.abs(parts) - mask * others).min(0) < 1e-6  # float32 may fall on either side
        kept = (np.abs(parts) > mask * others).sum(0) >= agreeing
        wanted = 0.7 * parts.sum(0) * kept
        np.testing.assert_allclose(tau(found, base, key)[~edge], wanted[~edge], rtol=1e-3, atol=1e-6)


def test_consensus_of_any_number_is_task_arithmetic_and_of_too_many_the_base() -> None:
    base, experts = models(3)
    for agreeing, wanted in ((0, merge("task-arithmetic", base, experts)), (4, base)):
        found = merge("consensus", base, experts, agreeing=agreeing)
        for key in base:
            torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("task-arithmetic-svc", {"floor": 0.0}, "floor 0.0 is out of range; give a number above 0"),
        ("ties-svc", {"floor": -1.0}, "floor -1.0 is out of range"),
        ("ties-svc", {"keep": 0.0}, "keep 0.0 is out of range"),
        ("consensus", {"mask": -0.1}, "mask -0.1 is out of range"),
        ("consensus", {"agreeing": -1}, "agreeing -1 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options_of(name, options)
    with pytest.raises(UserError, match=message):
        merge(name, *models(2), **options)
