"""Statistics of metrics measured on the same samples: errors, paired intervals, paired tests.

An *outcome* is what a cell did on one task's test samples: a boolean array (samples,), right or wrong, or
``Ranked`` where the metric is Spearman's rank correlation. Differences are fractions in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epmq.errors import UserError
from results.store.records import TaskResult

Floats = NDArray[np.float64]
Side = Literal["two-sided", "less", "greater"]
NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile: two-sided 95 %
_MANY = 1e6  # degrees of freedom from which on Student's distribution is the normal one
_BUDGET = 2**18  # entries of the largest array that resampling makes: small enough for a processor's cache


@dataclass(frozen=True)
class Ranked:
    """Predictions and references, each (samples,) float64, of a task scored by Spearman's correlation."""

    prediction: Floats
    reference: Floats

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.prediction.size


Outcome = NDArray[np.bool_] | Ranked
Outcomes = Mapping[str, Outcome]


class Difference(NamedTuple):
    """A difference of two averages in [-1, 1], with its 95 % interval [low, high] and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def standard_error(tasks: Mapping[str, TaskResult]) -> float:
    """The standard error of the task average, sqrt(sum_t var_t) / T; tasks are independent.

    Accuracy: binomial, p (1 - p) / n. Spearman: (1 - r^2)^2 (1 + r^2 / 2) / (n - 3), the delta method on
    Fisher's z with the variance of Bonett & Wright (2000).
    """
    return math.sqrt(math.fsum(_variance(task) for task in tasks.values())) / len(tasks)


def _variance(task: TaskResult) -> float:
    if task.metric == "accuracy":
        return task.value * (1 - task.value) / task.samples
    square = task.value**2
    return (1 - square) ** 2 * (1 + square / 2) / max(task.samples - 3, 1)


# -- intervals


def paired_bootstrap(a: Outcomes, b: Outcomes, *, resamples: int = 10_000, seed: int = 0) -> Difference:
    """A's task average minus b's; see ``hierarchical_bootstrap``, of one seed."""
    return hierarchical_bootstrap([a], [b], resamples=resamples, seed=seed)


def hierarchical_bootstrap(
    a: Sequence[Outcomes], b: Sequence[Outcomes], *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """The mean over seeds of a's task average minus b's, with its 95 % interval and p-value.

    ``a[s]`` and ``b[s]`` are the two methods under the s-th calibration seed, all on the same test samples. A
    resample draws test samples with replacement within each task, the same ones for both methods and all
    seeds, and then seeds with replacement: S - 1 out of S, so that the variance between few seeds is
    estimated without bias (Rao & Wu 1988; drawing S understates it by (S - 1) / S).

    With one seed the interval is the resamples' 2.5 and 97.5 % quantiles, of the test samples alone. A few
    seeds take too few values for quantiles, so with several it is Student's t times the resamples' standard
    deviation, at the degrees of freedom that the seeds' share in the variance leaves (Satterthwaite 1946).
    Where calibration varies much more than the test samples do, three seeds still cover 91 % only, five 95 %.

    The p-value is that of a t-test on the same standard deviation and degrees of freedom: unlike a count of
    resamples it has no smallest value, which Holm's correction for many comparisons would need.

    Raises:
        UserError: ``a`` and ``b`` are not of the same samples.
    """
    value, draws, freedom = _bootstrap(a, b, resamples, seed)
    p_value = _t_pvalue(value, draws, freedom, "two-sided")
    if len(a) == 1:
        low, high = np.quantile(draws, (0.025, 0.975))
        return Difference(value, float(low), float(high), p_value)
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, 0.975) * draws.std())
    return Difference(value, max(value - half, -1.0), min(value + half, 1.0), p_value)


def _t_pvalue(value: float, draws: Floats, freedom: float, side: Side) -> float:
    from scipy.special import stdtr

    spread = float(draws.std())
    if spread == 0:
        return 1.0 if value == 0 else float(side == ("greater" if value < 0 else "less"))
    t = value / spread
    tails = {"less": t, "greater": -t, "two-sided": -abs(t)}
    return float(stdtr(freedom, tails[side])) * (2 if side == "two-sided" else 1)


def _bootstrap(
    a: Sequence[Outcomes], b: Sequence[Outcomes], resamples: int, seed: int
) -> tuple[float, Floats, float]:
    """The difference, its resamples (resamples,) and the degrees of freedom of their variance."""
    if len(a) != len(b):
        raise UserError(f"cannot pair {len(a)} seeds with {len(b)}: run both methods with the same --seeds")
    tasks = [paired(task, a, b) for task in shared_tasks([*a, *b])]
    rng = np.random.default_rng(seed)
    values, draws = np.zeros(len(a)), np.zeros((resamples, len(a)))
    for first, second in tasks:
        resample = _resample_ranked if isinstance(first[0], Ranked) else _resample_correct
        draws += resample(first, second, resamples, rng) / len(tasks)
        values += [(score(x) - score(y)) / len(tasks) for x, y in zip(first, second, strict=True)]
    drawn = _over_seeds(draws, rng)
    return float(values.mean()), drawn, _freedom(values, float(drawn.var()))


def _freedom(values: Floats, variance: float) -> float:
    """Satterthwaite's degrees of freedom of a variance that holds that between seeds' ``values``."""
    between = float(values.var(ddof=1)) / values.size if values.size > 1 else 0.0
    if between == 0:
        return _MANY
    return min(_MANY, (values.size - 1) * max(1.0, variance / between) ** 2)


def _over_seeds(draws: Floats, rng: np.random.Generator) -> Floats:
    resamples, seeds = draws.shape
    if seeds == 1:
        return draws[:, 0]
    drawn = rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)
    return np.asarray((draws * drawn).sum(axis=1))


def _resample_correct(
    a: Sequence[Outcome], b: Sequence[Outcome], resamples: int, rng: np.random.Generator
) -> Floats:
    """Resampled differences of accuracy (resamples, seeds).

    A sample's *kind* is its difference (-1, 0 or 1) under each seed. A resample depends only on how often it
    holds each kind, and these counts are multinomial with the observed frequencies: drawing the counts is
    exactly resampling the indices, at a cost that does not grow with the samples.
    """
    right = [np.stack([np.asarray(outcome, np.int8) for outcome in method]) for method in (a, b)]
    differences = right[0] - right[1]
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    size = counts.sum()
    rows = max(1, _BUDGET // counts.size)
    parts = [
        rng.multinomial(size, counts / size, size=min(rows, resamples - start)) @ kinds.T / size
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _resample_ranked(
    a: Sequence[Outcome], b: Sequence[Outcome], resamples: int, rng: np.random.Generator
) -> Floats:
    """Resampled differences of Spearman's correlation (resamples, seeds)."""
    found = _resampled_correlations([*a, *b], resamples, rng)
    return found[:, : len(a)] - found[:, len(a) :]


def _resampled_correlations(outcomes: Sequence[Outcome], resamples: int, rng: np.random.Generator) -> Floats:
    """Spearman's correlations (resamples, outcomes) on the same samples for all.

    Samples with the same reference and predictions are of one kind, and only how often a resample holds each
    kind is kept.
    """
    (samples,) = {outcome.size for outcome in outcomes}
    kind, alike = _kinds([outcome for outcome in outcomes if isinstance(outcome, Ranked)])
    kinds = alike[0].size
    rows = max(1, _BUDGET // samples)
    parts = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = kind[rng.integers(samples, size=(count, samples))] + kinds * np.arange(count)[:, None]
        often = np.bincount(drawn.ravel(), minlength=count * kinds).reshape(count, kinds)
        parts.append(_spearman(alike, np.ascontiguousarray(often.T, np.float64)).T)
    return np.concatenate(parts)


def _kinds(outcomes: Sequence[Ranked]) -> tuple[NDArray[np.int64], list[Ranked]]:
    """Each sample's kind, (samples,), and the outcomes on one sample of every kind, all references alike."""
    arrays = [outcomes[0].reference, *(outcome.prediction for outcome in outcomes)]
    values, kind = np.unique(np.stack(arrays), axis=1, return_inverse=True)
    return kind.reshape(-1), [Ranked(prediction, values[0]) for prediction in values[1:]]


def resampled_scores(outcomes: Sequence[Outcome], resamples: int, rng: np.random.Generator) -> Floats:
    """One task's scores (resamples, outcomes) where the same samples are drawn for all ``outcomes``.

    ``paired`` has seen that the outcomes are of the same samples and of one kind. Accuracies are drawn as in
    ``_resample_correct``: a kind is here which of the outcomes are right. Equal outcomes have equal scores.
    """
    if isinstance(outcomes[0], Ranked):
        return _resampled_correlations(outcomes, resamples, rng)
    right = np.stack([np.asarray(outcome, np.float64) for outcome in outcomes])
    kinds, counts = np.unique(right, axis=1, return_counts=True)
    size = counts.sum()
    rows = max(1, _BUDGET // counts.size)
    parts = [  # sums of whole numbers, so that their order does not matter
        rng.multinomial(size, counts / size, size=min(rows, resamples - start)).astype(np.float64) @ kinds.T
        for start in range(0, resamples, rows)
    ]
    return np.asarray(np.concatenate(parts) / size)


def _spearman(outcomes: Sequence[Outcome], often: Floats) -> Floats:
    """Spearman's correlations (outcomes, columns) of samples that each column of ``often`` repeats.

    The outcomes have their references in common. Ties share their mean rank; constant predictions have
    correlation 0. Ranks are halves, so that every sum is exact in whatever order it is taken.
    """
    ranked = [outcome for outcome in outcomes if isinstance(outcome, Ranked)]
    groups = _equal(ranked[0].reference)
    references = groups.T @ _centred_ranks(groups @ often)
    weighted = often * references
    spread = (weighted * references).sum(0)
    found = []
    for outcome in ranked:
        groups = _equal(outcome.prediction)
        members = groups @ often
        ranks = _centred_ranks(members)
        covariance = (ranks * (groups @ weighted)).sum(0)
        scale = np.sqrt((members * ranks**2).sum(0) * spread)
        found.append(np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0))
    return np.stack(found)


def _equal(values: Floats) -> Any:
    """Which samples have which value, ascending: a sparse matrix (values, samples) of zeros and ones."""
    from scipy.sparse import csr_array

    _, group = np.unique(values, return_inverse=True)
    return csr_array((np.ones(group.size), (group, np.arange(group.size))))


def _centred_ranks(members: Floats) -> Floats:
    """The mean rank of each value's ``members`` (values, columns), minus the mean of all ranks."""
    ranks = np.cumsum(members, axis=0) - (members - 1) / 2
    return np.asarray(ranks - (members.sum(axis=0) + 1) / 2)


def score(outcome: Outcome) -> float:
    """The accuracy, or Spearman's correlation, of one task's outcome."""
    if isinstance(outcome, Ranked):
        return float(_spearman([outcome], np.ones((outcome.size, 1)))[0, 0])
    return float(outcome.mean())


# -- tests


def task_pvalues(a: Outcomes, b: Outcomes, *, alternative: Side = "two-sided") -> dict[str, float]:
    """The p-value of each task on its own, by task: McNemar's exact test, for Spearman a normal one.

    "less" is evidence that ``a`` is the worse one. The normal test is on the paired bootstrap's deviation.
    """
    pvalues = {}
    for task in shared_tasks([a, b]):
        one, other = {task: a[task]}, {task: b[task]}
        if isinstance(a[task], Ranked):
            pvalues[task] = _t_pvalue(*_bootstrap([one], [other], 2000, 0), alternative)
        else:
            pvalues[task] = mcnemar(one, other, alternative=alternative)
    return pvalues


def mcnemar(a: Outcomes, b: Outcomes, *, alternative: Side = "two-sided") -> float:
    """The p-value of McNemar's exact test on the samples of all accuracy tasks together.

    Under the null hypothesis a sample that only one of the two gets right is as likely to be either's;
    "less" is evidence that ``a`` is the worse one. Without such samples the p-value is 1. The test is exact
    for any number of them: no chi-squared approximation is needed.

    Raises:
        UserError: ``a`` and ``b`` are not of the same samples.
    """
    only_b, _, only_a = paired_counts(a, b).sum(axis=0)
    return float(mcnemar_pvalues(only_a, only_b, alternative))


def mcnemar_pvalues(only_a: ArrayLike, only_b: ArrayLike, side: Side) -> Floats:
    """McNemar's exact p-values for counts of samples that only ``a`` or only ``b`` gets right."""
    from scipy.special import bdtr  # half a second to import, which printing a table need not wait for

    first, second = np.asarray(only_a), np.asarray(only_b)
    lower = {"less": first, "greater": second, "two-sided": np.minimum(first, second)}[side]
    tail = bdtr(lower, first + second, 0.5)
    return np.asarray(np.minimum(1, 2 * tail) if side == "two-sided" else tail)


def paired_counts(a: Outcomes, b: Outcomes) -> NDArray[np.int64]:
    """Count the pairs of each accuracy task, in the order of the names: only b right, alike, only a right.

    The result has shape (tasks, 3).

    Raises:
        UserError: the tasks or their sample counts differ, or there is nothing to compare.
    """
    rows: list[list[int]] = []
    for task in shared_tasks([a, b]):
        (first,), (second,) = paired(task, [a], [b])
        if isinstance(first, Ranked) or isinstance(second, Ranked):
            continue
        only_a, only_b = int(np.sum(first & ~second)), int(np.sum(~first & second))
        rows.append([only_b, first.size - only_a - only_b, only_a])
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def holm(pvalues: ArrayLike) -> Floats:
    """P-values (..., tests) adjusted for the number of tests by Holm's step-down method (1979).

    Rejecting those at or below a level keeps the chance of any false rejection in the family at that level.
    """
    given = np.asarray(pvalues, dtype=np.float64)
    order = np.argsort(given, axis=-1, kind="stable")
    steps = np.take_along_axis(given, order, axis=-1) * np.arange(given.shape[-1], 0, -1)
    adjusted = np.empty_like(given)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, axis=-1), 1), axis=-1)
    return adjusted


# -- pairing


def shared_tasks(runs: Sequence[Outcomes]) -> list[str]:
    """The tasks that all runs have, sorted.

    Raises:
        UserError: they have different ones, or none.
    """
    first = runs[0] if runs else {}
    for other in runs:
        if set(other) != set(first) or not first:
            raise UserError(f"cannot pair tasks {sorted(first)} with {sorted(other)}: they must be the same")
    if not first:
        raise UserError("cannot pair nothing: there must be a task")
    return sorted(first)


def paired(task: str, a: Sequence[Outcomes], b: Sequence[Outcomes]) -> tuple[list[Outcome], list[Outcome]]:
    """Both methods' outcomes of a task, seed by seed, after checking that they are of one kind.

    Raises:
        UserError: they are of other samples or scored in another way.
    """
    first, second = [run[task] for run in a], [run[task] for run in b]
    for outcome in [*first, *second]:
        if outcome.size != first[0].size or outcome.size == 0:
            raise UserError(f"cannot pair {first[0].size} samples of {task} with {outcome.size}")
        if isinstance(outcome, Ranked) != isinstance(first[0], Ranked):
            raise UserError(f"cannot pair {task}: one is scored by accuracy, the other by correlation")
        if _differ(outcome, first[0]):
            raise UserError(f"cannot pair {task}: its references differ; run both on the same samples")
    return first, second


def _differ(a: Outcome, b: Outcome) -> bool:
    both = isinstance(a, Ranked) and isinstance(b, Ranked)
    return both and not np.array_equal(a.reference, b.reference)  # type: ignore[union-attr]
