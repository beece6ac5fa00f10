"""The statistics have the values and the coverage that the textbooks give them."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp, kstest, spearmanr

from epmq.errors import UserError
from results.analysis import stats
from results.analysis.stats import (
    Difference,
    Ranked,
    hierarchical_bootstrap,
    holm,
    mcnemar,
    mcnemar_pvalues,
    paired_bootstrap,
    paired_counts,
    score,
    standard_error,
    task_pvalues,
)
from results.store.records import TaskResult
from tests.fixtures.records import Correct, make_correct


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
    assert paired_bootstrap(correct, correct) == Difference(0.0, 0.0, 0.0, p_value=1.0)


def test_a_difference_without_variance_has_an_interval_without_width() -> None:
    ones, zeros = {"a": np.ones(50, bool)}, {"a": np.zeros(50, bool)}
    assert paired_bootstrap(ones, zeros) == Difference(1.0, 1.0, 1.0, p_value=0.0)
    assert paired_bootstrap(zeros, ones) == Difference(-1.0, -1.0, -1.0, p_value=0.0)


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
    truth, replicates, covered = 0.1, 500, 0
    for replicate in range(replicates):
        difference = paired_bootstrap(
            *draw_pairs(rng, {"x": 150, "y": 400, "z": 250}), resamples=1000, seed=replicate
        )
        covered += difference.low <= truth <= difference.high
    assert 0.93 <= covered / replicates <= 0.97


def test_memory_is_bounded_whatever_the_samples_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    a, b = ([{"x": rng.random(3000) < 0.5} for _ in range(12)] for _ in range(2))
    whole = hierarchical_bootstrap(a, b, resamples=200)
    monkeypatch.setattr(stats, "_BUDGET", 20_000)
    tracemalloc.start()
    parts = hierarchical_bootstrap(a, b, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert parts == whole  # drawn in parts, the same draws
    assert peak < 200 * 3000 * 8 / 2  # half of what all resamples at once would take


# -- several seeds


def test_one_seed_is_the_paired_bootstrap() -> None:
    a, b = draw_pairs(np.random.default_rng(6), {"x": 100, "y": 300})
    assert hierarchical_bootstrap([a], [b]) == paired_bootstrap(a, b)


def test_seeds_that_agree_are_worth_one() -> None:
    a, b = draw_pairs(np.random.default_rng(6), {"x": 100, "y": 300})
    alone, thrice = paired_bootstrap(a, b), hierarchical_bootstrap([a] * 3, [b] * 3)
    assert thrice.value == pytest.approx(alone.value)
    assert thrice.high - thrice.low == pytest.approx(alone.high - alone.low, rel=0.05)


def test_two_seeds_far_apart_say_nothing() -> None:
    ones, zeros = {"x": np.ones(50, bool)}, {"x": np.zeros(50, bool)}
    difference = hierarchical_bootstrap([ones, zeros], [zeros, zeros])
    assert difference[:3] == (0.5, -1.0, 1.0)
    assert difference.p_value > 0.3


def test_the_spread_of_seeds_is_estimated_without_bias() -> None:
    effects, samples = np.array([0.10, 0.14, 0.21, 0.35]), 10_000
    a = [{"x": np.arange(samples) < effect * samples} for effect in effects]
    b = [{"x": np.zeros(samples, bool)} for _ in effects]
    difference = hierarchical_bootstrap(a, b, resamples=40_000)
    expected = effects.std(ddof=1) / math.sqrt(effects.size)  # samples add next to nothing
    draws = stats._bootstrap(a, b, 40_000, 0)[1]
    assert difference.value == pytest.approx(effects.mean(), abs=1e-3)
    assert draws.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.02], ids=["none", "half", "like samples"])
def test_the_interval_over_three_seeds_covers_the_truth(spread: float) -> None:
    rng = np.random.default_rng(7)
    truth, replicates, covered = 0.2, 500, 0
    for replicate in range(replicates):
        base, draw = rng.random(600) < 0.5, rng.random(600)
        pairs = []
        for effect in truth + spread * rng.normal(size=3):  # what the calibration draw does
            turned = draw < 2 * effect  # of the wrong half, so that the gain is `effect`
            pairs.append(({"x": base | turned}, {"x": base}))
        difference = hierarchical_bootstrap(*zip(*pairs, strict=True), resamples=500, seed=replicate)
        covered += difference.low <= truth <= difference.high
    assert 0.93 <= covered / replicates <= 0.97


def test_the_numbers_of_seeds_must_agree() -> None:
    correct = make_correct()
    with pytest.raises(UserError, match="cannot pair 2 seeds with 1"):
        hierarchical_bootstrap([correct, correct], [correct])


# -- Spearman's correlation


def draw_ranked(rng: np.random.Generator, size: int, noise: float) -> Ranked:
    reference = rng.normal(size=size)
    return Ranked(np.round(reference + noise * rng.normal(size=size), 1), reference)  # with ties


def test_the_score_of_a_ranked_task_is_spearmans() -> None:
    ranked = draw_ranked(np.random.default_rng(8), 200, 0.7)
    assert score(ranked) == pytest.approx(spearmanr(ranked.prediction, ranked.reference).statistic, abs=1e-12)
    assert score(Ranked(np.ones(9), np.arange(9.0))) == 0.0


def test_a_resampled_correlation_is_that_of_the_repeated_samples() -> None:
    rng = np.random.default_rng(9)
    ranked = draw_ranked(rng, 60, 0.7)
    index = rng.integers(60, size=(5, 60))
    often = np.stack([np.bincount(row, minlength=60) for row in index])
    expected = [spearmanr(ranked.prediction[row], ranked.reference[row]).statistic for row in index]
    (found,) = stats._spearman([ranked], often.T.astype(np.float64))
    assert found == pytest.approx(np.array(expected), abs=1e-12)


def test_the_standard_error_of_a_correlation_is_that_of_its_resamples() -> None:
    ranked = draw_ranked(np.random.default_rng(10), 500, 0.8)
    zero = Ranked(np.ones(500), ranked.reference)
    spread = stats._bootstrap([{"x": ranked}], [{"x": zero}], 2000, 0)[1].std()
    result = TaskResult(metric="spearman", value=score(ranked), samples=500)
    assert standard_error({"x": result}) == pytest.approx(spread, rel=0.15)


def test_accuracy_and_correlation_average_together() -> None:
    rng = np.random.default_rng(11)
    better = draw_ranked(rng, 300, 0.3)
    worse = Ranked(np.round(better.reference + rng.normal(size=300), 1), better.reference)
    correct = make_correct()
    difference = paired_bootstrap({**correct, "s": better}, {**correct, "s": worse}, resamples=2000)
    assert difference.value == pytest.approx((score(better) - score(worse)) / 3)
    assert 0 < difference.low < difference.value < difference.high
    assert task_pvalues({"s": worse}, {"s": better}, alternative="less")["s"] < 1e-6
    assert task_pvalues({"s": better}, {"s": worse}, alternative="less")["s"] > 0.999


def test_other_references_or_metrics_are_not_paired() -> None:
    ranked = draw_ranked(np.random.default_rng(12), 20, 0.5)
    other = Ranked(ranked.prediction, ranked.reference[::-1])
    with pytest.raises(UserError, match="its references differ"):
        paired_bootstrap({"x": ranked}, {"x": other})
    with pytest.raises(UserError, match="one is scored by accuracy"):
        paired_bootstrap({"x": ranked}, {"x": np.ones(20, bool)})


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
        with pytest.raises(UserError, match="cannot pair"):
            compare(make_correct(), other)
    with pytest.raises(UserError, match="cannot pair"):
        mcnemar({}, {})


# -- tests


def test_mcnemar_is_the_sign_test_on_the_samples_that_one_gets_right() -> None:
    a = {"x": np.array([1] * 9 + [0] + [1] * 50, bool)}
    b = {"x": np.array([0] * 9 + [1] + [1] * 50, bool)}
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(a, b, alternative="greater") == pytest.approx((1 + 10) / 2**10)
    assert mcnemar(b, a, alternative="less") == pytest.approx((1 + 10) / 2**10)
    assert mcnemar(a, a) == 1.0


@pytest.mark.parametrize("side", ["two-sided", "less", "greater"])
def test_mcnemar_agrees_with_scipys_exact_binomial_test(side: stats.Side) -> None:
    for only_a, only_b in itertools.product(range(6), (0, 1, 3, 200, 4000)):
        if only_a + only_b:
            expected = binomtest(only_a, only_a + only_b, alternative=side).pvalue
            assert mcnemar_pvalues(only_a, only_b, side) == pytest.approx(expected, rel=1e-6), (
                only_a,
                only_b,
            )


def test_each_task_has_a_p_value_of_its_own() -> None:
    a = {"x": np.array([1, 1, 1, 1], bool), "y": np.array([1, 0], bool)}
    b = {"x": np.array([0, 0, 0, 1], bool), "y": np.array([1, 0], bool)}
    assert task_pvalues(a, b) == {"x": pytest.approx(2 / 2**3), "y": 1.0}
    assert task_pvalues(b, a, alternative="less") == {"x": pytest.approx(1 / 2**3), "y": 1.0}


def test_a_difference_without_effect_is_seldom_significant() -> None:
    rng = np.random.default_rng(13)
    pvalues = []
    for _ in range(300):
        a, b = draw_pairs(rng, {"x": 200, "y": 100})
        shuffled = rng.random(300) < 0.5  # swap the methods at random: no effect is left
        parts = {"x": shuffled[:200], "y": shuffled[200:]}
        first = {task: np.where(parts[task], a[task], b[task]) for task in a}
        second = {task: np.where(parts[task], b[task], a[task]) for task in a}
        pvalues.append(paired_bootstrap(first, second, resamples=500).p_value)
    assert kstest(pvalues, "uniform").pvalue > 0.01


def test_the_p_value_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(14)
    for _ in range(30):
        a, b = draw_pairs(rng, {"x": 60})
        difference = paired_bootstrap(a, b)
        assert (difference.p_value < 0.03) <= (difference.low > 0 or difference.high < 0)
        assert (difference.p_value > 0.07) <= (difference.low <= 0 <= difference.high)
    assert paired_bootstrap(a, a).p_value == 1.0


def test_mcnemar_pools_tasks() -> None:
    a = {"x": np.array([1, 1, 1], bool), "y": np.array([1, 1, 1], bool)}
    b = {"x": np.array([0, 0, 0], bool), "y": np.array([0, 0, 1], bool)}
    assert mcnemar(a, b) == pytest.approx(2 / 2**5)


def test_holm_agrees_with_the_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_holm_adjusts_each_row_on_its_own() -> None:
    rows = np.random.default_rng(15).random((20, 7)) ** 3
    assert holm(rows) == pytest.approx(np.stack([holm(row) for row in rows]))
    order = np.argsort(rows[0])
    assert (np.diff(holm(rows[0])[order]) >= 0).all()
    assert (holm(rows) >= rows).all()
