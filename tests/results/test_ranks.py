"""Rank intervals against all resamples of a tiny set, and what must hold of them whatever the outcomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from epmq.errors import UserError
from results.analysis.ranks import Contender, Ranks, rank_intervals
from results.analysis.stats import Outcomes, Ranked, score

Bools = NDArray[np.bool_]


def right(pattern: str) -> Bools:
    return np.array([letter == "1" for letter in pattern])


def one(**tasks: str) -> Contender:
    """A contender of one draw."""
    return Contender([[{task: right(pattern) for task, pattern in tasks.items()}]], (0,))


def exact(contenders: list[list[Outcomes]], index: list[tuple[int, ...]]) -> NDArray[np.int64]:
    """The ranks (resamples, contenders) of single draws over the given resamples, the same for each task."""
    found = []
    for chosen in index:
        picked = np.array(chosen)
        averages = [
            round(float(np.mean([outcomes[task][picked].mean() for task in outcomes])), 12)  # type: ignore[index]
            for (outcomes,) in contenders
        ]
        found.append([1 + sum(other > own for other in averages) for own in averages])
    return np.array(found)


def test_the_interval_is_that_of_all_resamples() -> None:
    patterns = ["110100", "011100", "000111", "100000"]
    contenders = [one(digits=pattern) for pattern in patterns]
    index = list(itertools.product(range(6), repeat=6))
    ranks = exact([list(each.draws[0]) for each in contenders], index)
    got = rank_intervals(contenders, resamples=40_000)
    for column, found in enumerate(got):
        expected = np.sort(ranks[:, column])
        low, high = (float(np.quantile(expected, q, method="inverted_cdf")) for q in (0.025, 0.975))
        assert (found.low, found.high) == (low, high)
        assert found.of == 4


def test_tasks_are_resampled_on_their_own() -> None:
    """With one sample a task nothing can change, where samples of tasks together would be mixed."""
    better, worse = one(a="1", b="0", c="1"), one(a="0", b="1", c="0")
    assert rank_intervals([better, worse]) == [Ranks(1, 1, 2), Ranks(2, 2, 2)]


def test_who_is_right_wherever_others_are_and_more_is_first() -> None:
    rng = np.random.default_rng(1)
    base = rng.random(400) < 0.5
    best = base | (rng.random(400) < 0.5)
    found = rank_intervals([Contender([[{"t": x}]], (0,)) for x in (base, best, base & False)])
    assert found == [Ranks(2, 2, 3), Ranks(1, 1, 3), Ranks(3, 3, 3)]


def test_equals_share_a_rank_however_often_they_were_drawn() -> None:
    rng = np.random.default_rng(2)
    same, other = ({"t": rng.random(90) < 0.5} for _ in range(2))
    contenders = [
        Contender([[same]], (0,)),
        Contender([[same], [same], [same], [same]], (0, 1, 2, 3)),
        Contender([[other]], (0,)),
        Contender([[same, same, same]], (5,)),
    ]
    first, second, third, fourth = rank_intervals(contenders)
    assert first == second == fourth
    assert third.high == 4


def test_draws_widen_the_interval() -> None:
    """Of a method that is sometimes the best and sometimes the last nothing is known."""
    good, middle, bad = (np.arange(1000) < part for part in (900, 500, 100))
    steady = Contender([[{"t": middle}]] * 3, (0, 1, 2))
    wild = Contender([[{"t": good}], [{"t": middle}], [{"t": bad}]], (0, 1, 2))
    assert rank_intervals([steady, wild])[1] == Ranks(1, 2, 2)
    assert rank_intervals([steady, Contender([[{"t": good}]] * 3, (0, 1, 2))])[1] == Ranks(1, 1, 2)


def test_a_draw_that_was_computed_twice_counts_once() -> None:
    low, high = np.arange(200) < 60, np.arange(200) < 140
    mean = Contender([[{"t": low}, {"t": high}]], (0,))
    assert rank_intervals([mean, Contender([[{"t": np.arange(200) < 138}]], (0,))])[0].low == 2


def test_correlations_are_ranked_too() -> None:
    reference = np.arange(60, dtype=np.float64)
    noise = np.random.default_rng(3).normal(size=60)
    outcomes = [{"t": Ranked(reference + spread * noise, reference)} for spread in (0.0, 30.0, 30.0)]
    assert score(outcomes[0]["t"]) == pytest.approx(1)
    found = rank_intervals([Contender([[each]], (0,)) for each in outcomes])
    assert found == [Ranks(1, 1, 3), Ranks(2, 2, 3), Ranks(2, 2, 3)]


def test_other_samples_cannot_be_ranked() -> None:
    with pytest.raises(UserError, match="cannot pair 3 samples of t with 4"):
        rank_intervals([one(t="110"), one(t="1100")])
    with pytest.raises(UserError, match="cannot pair tasks"):
        rank_intervals([one(t="110"), one(u="110")])
