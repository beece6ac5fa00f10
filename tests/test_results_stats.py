"""The statistics have the values and the coverage that the textbooks give them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, ks_2samp

from results.errors import ResultError
from results.records import TaskResult
from results.stats import Difference, holm, mcnemar, paired_bootstrap, paired_counts, standard_error
from tests.results_samples import Correct, make_correct


def draw_pairs(rng: np.random.Generator, sizes: dict[str, int]) -> tuple[Correct, Correct]:
    """Draw two correlated methods: a is right on 70 % of the samples, b on 60 %, alike on 74 %."""
    first, second = {}, {}
    for task, size in sizes.items():
        kind = rng.choice(4, size=size, p=(0.52, 0.18, 0.08, 0.22))  # both, only a, only b, neither
        first[task], second[task] = kind <= 1, (kind == 0) | (kind == 2)
    return first, second


def naive_bootstrap(a: Correct, b: Correct, resamples: int, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for task in a:
        index = rng.integers(a[task].size, size=(resamples, a[task].size))
        draws += a[task][index].mean(axis=1) - b[task][index].mean(axis=1)
    return draws / len(a)


def test_the_standard_error_of_one_task_is_the_binomials() -> None:
    assert standard_error({"a": TaskResult(value=0.5, samples=100)}) == pytest.approx(0.05)


def test_the_standard_error_of_an_average_adds_independent_variances() -> None:
    tasks = {"a": TaskResult(value=0.5, samples=100), "b": TaskResult(value=0.9, samples=900)}
    assert standard_error(tasks) == pytest.approx(math.hypot(0.05, 0.01) / 2)
    assert standard_error({"a": TaskResult(value=1.0, samples=7)}) == 0.0


def test_pairs_are_counted_by_task() -> None:
    a = {"y": np.array([1, 1, 0, 0, 1], bool), "x": np.array([1, 1], bool)}
    b = {"x": np.array([0, 0], bool), "y": np.array([1, 0, 1, 0, 0], bool)}
    assert paired_counts(a, b).tolist() == [[0, 0, 2], [1, 2, 2]]


def test_a_method_does_not_differ_from_itself() -> None:
    correct = make_correct()
    assert paired_bootstrap(correct, correct) == Difference(0.0, 0.0, 0.0)


def test_a_difference_without_variance_has_an_interval_without_width() -> None:
    ones, zeros = {"a": np.ones(50, bool)}, {"a": np.zeros(50, bool)}
    assert paired_bootstrap(ones, zeros) == Difference(1.0, 1.0, 1.0)
    assert paired_bootstrap(zeros, ones) == Difference(-1.0, -1.0, -1.0)


def test_the_difference_is_of_task_averages_whatever_the_task_sizes() -> None:
    a = {"small": np.arange(10) < 9, "large": np.arange(1000) < 500}
    b = {"small": np.arange(10) < 5, "large": np.arange(1000) < 500}
    assert paired_bootstrap(a, b).value == pytest.approx(0.2)


def test_the_interval_depends_on_the_seed_alone() -> None:
    a, b = draw_pairs(np.random.default_rng(1), {"x": 100, "y": 300})
    swapped = [{task: run[task] for task in ("y", "x")} for run in (a, b)]
    assert paired_bootstrap(a, b) == paired_bootstrap(swapped[0], swapped[1])
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b)


def test_drawing_counts_is_resampling_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = draw_pairs(np.random.default_rng(2), {"x": 60, "y": 150})
    kept: list[NDArray[np.float64]] = []

    def keep(draws: NDArray[np.float64], levels: tuple[float, float]) -> tuple[float, float]:
        kept.append(draws)
        return 0.0, 0.0

    monkeypatch.setattr(np, "quantile", keep)
    paired_bootstrap(a, b, resamples=4000)
    naive = naive_bootstrap(a, b, 4000, seed=3)
    assert ks_2samp(kept[0], naive).pvalue > 0.01
    assert kept[0].std() == pytest.approx(naive.std(), rel=0.05)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    truth, replicates, covered = 0.1, 200, 0
    for replicate in range(replicates):
        difference = paired_bootstrap(
            *draw_pairs(rng, {"x": 150, "y": 400, "z": 250}), resamples=1000, seed=replicate
        )
        covered += difference.low <= truth <= difference.high
    assert binom.ppf(0.001, replicates, 0.95) <= covered <= binom.ppf(0.999, replicates, 0.95)


@pytest.mark.parametrize(
    "other",
    [
        {"digits": np.ones(200, bool)},
        {"digits": np.ones(200, bool), "shapes": np.ones(199, bool)},
        {"digits": np.ones(200, bool), "figures": np.ones(200, bool)},
    ],
    ids=["task missing", "other length", "other task"],
)
def test_samples_that_are_not_the_same_are_not_paired(other: Correct) -> None:
    for compare in (paired_bootstrap, mcnemar):
        with pytest.raises(ResultError, match="can't pair"):
            compare(make_correct(), other)
    with pytest.raises(ResultError, match="can't pair"):
        mcnemar({}, {})


def test_mcnemar_is_the_sign_test_on_the_samples_that_one_gets_right() -> None:
    a = {"x": np.array([1] * 9 + [0] + [1] * 50, bool)}
    b = {"x": np.array([0] * 9 + [1] + [1] * 50, bool)}
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(a, b, alternative="greater") == pytest.approx((1 + 10) / 2**10)
    assert mcnemar(b, a, alternative="less") == pytest.approx((1 + 10) / 2**10)
    assert mcnemar(a, a) == 1.0


def test_mcnemar_pools_tasks() -> None:
    a = {"x": np.array([1, 1, 1], bool), "y": np.array([1, 1, 1], bool)}
    b = {"x": np.array([0, 0, 0], bool), "y": np.array([0, 0, 1], bool)}
    assert mcnemar(a, b) == pytest.approx(2 / 2**5)


def test_holm_agrees_with_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
