"""Statistics of accuracies measured on the same samples: errors, paired intervals, paired tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from results.errors import ResultError
from results.records import TaskResult

Paired = Mapping[str, NDArray[np.bool_]]
Side = Literal["two-sided", "less", "greater"]
_SIGNS = np.array([-1, 0, 1])


class Difference(NamedTuple):
    """A difference of two averages in [-1, 1], with its interval [low, high]."""

    value: float
    low: float
    high: float


def standard_error(tasks: Mapping[str, TaskResult]) -> float:
    """Return the standard error of the task average, sqrt(sum_t p_t (1 - p_t) / n_t) / T.

    Binomial within each task; the tasks' samples are independent.
    """
    variance = math.fsum(task.value * (1 - task.value) / task.samples for task in tasks.values())
    return math.sqrt(variance) / len(tasks)


def paired_counts(a: Paired, b: Paired) -> NDArray[np.int64]:
    """Count the pairs of each task, in the order of the names: only b right, alike, only a right.

    `a` and `b` hold boolean arrays (samples,) by task; the result has shape (tasks, 3).

    Raises
    ------
    ResultError
        where the tasks or their sample counts differ, or there is nothing to compare.
    """
    if set(a) != set(b) or not a:
        raise ResultError(f"can't pair tasks {sorted(a)} with {sorted(b)}: they must be the same")
    rows = []
    for task in sorted(a):
        if a[task].shape != b[task].shape or a[task].size == 0:
            raise ResultError(f"can't pair {a[task].size} samples of {task} with {b[task].size}")
        only_a, only_b = np.sum(a[task] & ~b[task]), np.sum(~a[task] & b[task])
        rows.append([only_b, a[task].size - only_a - only_b, only_a])
    return np.array(rows, dtype=np.int64)


def paired_bootstrap(a: Paired, b: Paired, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return a's task average minus b's with its 95 % percentile interval (Efron & Tibshirani 1993, ch. 13).

    Resampling draws test samples with replacement within each task, both methods together. A draw's
    difference depends only on how often it holds a pair of each kind (b alone right, alike, a alone
    right), and those counts are multinomial with the observed frequencies: drawing the counts is exactly
    resampling the indices.

    Raises
    ------
    ResultError
        where `a` and `b` are not of the same samples.
    """
    counts = paired_counts(a, b)
    sizes = counts.sum(axis=1)
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    for row, size in zip(counts, sizes, strict=True):
        draws += rng.multinomial(size, row / size, size=resamples) @ _SIGNS / size
    low, high = np.quantile(draws / len(counts), (0.025, 0.975))
    return Difference(float(np.mean(counts @ _SIGNS / sizes)), float(low), float(high))


def mcnemar(a: Paired, b: Paired, *, alternative: Side = "two-sided") -> float:
    """Return the p-value of McNemar's exact test on the samples of all tasks together.

    Under the null hypothesis a sample that only one of the two gets right is as likely to be either's;
    "less" is evidence that `a` is the worse one. Without such samples the p-value is 1.

    Raises
    ------
    ResultError
        where `a` and `b` are not of the same samples.
    """
    from scipy.stats import binomtest  # a second to import, which printing a table need not wait for

    only_b, _, only_a = (int(count) for count in paired_counts(a, b).sum(axis=0))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, alternative=alternative).pvalue)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number by Holm's step-down method, in the given order."""
    adjusted = [0.0] * len(pvalues)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        largest = max(largest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = largest
    return adjusted
