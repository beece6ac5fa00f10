"""Threads are for layers that are worth them, and do not change a result."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import baselines
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.threads import LEAST_WORK, over_rows
from tests.fixtures.layers import layer

pytestmark = pytest.mark.keeps_rng


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def ranges(rows: int, work: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    over_rows(lambda first, last: found.append((first, last)), rows, work)
    return sorted(found)


def test_little_work_gets_one_thread() -> None:
    assert ranges(100, 0) == ranges(100, LEAST_WORK) == [(0, 100)]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_every_row_is_covered_once(rows: int) -> None:
    covered = [row for first, last in ranges(rows, 1000 * LEAST_WORK) for row in range(first, last)]
    assert covered == list(range(rows))


def test_a_kernel_that_fails_is_heard() -> None:
    def kernel(first: int, last: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        over_rows(kernel, 10, 1000 * LEAST_WORK)


@pytest.mark.parametrize("name", baselines.names())
def test_the_number_of_threads_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = layer(200, 32)
    problem = LayerProblem.expert_guided(at.merged, at.experts, at.grams)
    alone = baselines.get(name)(problem, QuantSpec())
    monkeypatch.setattr("epmq.layer.threads.LEAST_WORK", 1)
    assert torch.equal(baselines.get(name)(problem, QuantSpec()).codes, alone.codes)
