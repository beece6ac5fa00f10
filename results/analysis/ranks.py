"""Intervals of ranks: where each of several methods would stand, had other samples been drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from results.analysis.stats import Floats, Outcomes, paired, resampled_scores, shared_tasks

RESAMPLES = 2000
_DIGITS = 12  # beyond which averages of the same numbers may differ


class Ranks(NamedTuple):
    """The 95 % interval of a rank, both ends included; 1 is the best, of ``of`` methods."""

    low: int
    high: int
    of: int


@dataclass(frozen=True)
class Contender:
    """What is ranked: by calibration seed the outcomes, one for each time that this draw was computed."""

    draws: Sequence[Sequence[Outcomes]]
    seeds: tuple[int, ...]


def rank_intervals(
    contenders: Sequence[Contender], *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Ranks]:
    """The interval of each contender's rank by its task average, over resamples that all have in common.

    A resample draws test samples with replacement within each task, the same ones for everybody, then seeds
    as in ``results.analysis.stats.hierarchical_bootstrap``: S - 1 out of S, the same ones for all that have
    the same seeds. Of a draw that was computed more than once the mean counts. A rank is one more than the
    number of those with a higher average, so that equals share it. The ends are the 2.5 and 97.5 % quantiles
    of the rank, each rounded outwards to a rank that occurred.

    Raises:
        UserError: the contenders are not of the same samples.
    """
    averages = _averages(contenders, resamples, seed)
    found = []
    for own in averages.T:
        ranks = 1 + (averages > own[:, None]).sum(axis=1)
        low = np.quantile(ranks, 0.025, method="lower")
        high = np.quantile(ranks, 0.975, method="higher")
        found.append(Ranks(int(low), int(high), len(contenders)))
    return found


def _averages(contenders: Sequence[Contender], resamples: int, seed: int) -> Floats:
    """Resampled averages (resamples, contenders)."""
    everyone = [outcomes for each in contenders for draw in each.draws for outcomes in draw]
    rng = np.random.default_rng(seed)
    scores = np.zeros((resamples, len(everyone)))
    tasks = shared_tasks(everyone)
    for task in tasks:
        outcomes, _ = paired(task, everyone, [])
        scores += resampled_scores(outcomes, resamples, rng) / len(tasks)
    weights: dict[tuple[int, ...], Floats] = {}
    averages, start = [], 0
    for each in contenders:
        if each.seeds not in weights:
            weights[each.seeds] = _weights(len(each.seeds), resamples, rng)
        means = []
        for draw in each.draws:
            means.append(scores[:, start : start + len(draw)].mean(axis=1))
            start += len(draw)
        averages.append((np.stack(means, axis=1) * weights[each.seeds]).sum(axis=1))
    return np.round(np.stack(averages, axis=1), _DIGITS)


def _weights(seeds: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How much each seed counts in each resample (resamples, seeds)."""
    if seeds == 1:
        return np.ones((resamples, 1))
    return np.asarray(rng.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1))
