"""How good the regression gate is: its false-alarm rate and power, measured on bootstrap replicas of a run.

``python -m benchmarks.studies.gate DIR`` prints both; exit status 1 if the measured rate is above the stated
one by more than chance.

A replica is a pair (golden run, run) that is as good as itself by construction. The golden run's test samples
are drawn with replacement from the run's, within each task and alike for all cells. Then each sample of each
cell is, with the probability *churn*, drawn anew: what another machine or another order of sums does to
a quantised model. With churn 1 the pair are two independent bootstrap replicas, the noisiest case. Alarms
at such a pair are false. A loss of some points is put in by making right samples wrong at random.

The tests of layer objectives are in the same family and counted: of a pair of the same code their p-values
are uniform, which is what the measured spread of the objectives is for. ``benchmarks.studies.replay``
measures that spread and counts the alarms of whole runs of the same code by other code paths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from epmq.errors import UserError
from results.judge.check import RATE, alarms, cell_pvalues
from results.judge.objectives import changes
from results.store.folder import RunFolder
from results.tables.formats import json_text

Counts = NDArray[np.int64]
CHURNS = (0.05, 0.2, 1.0)
LOSSES = (1.0, 3.0)


@dataclass(frozen=True)
class Measured:
    """How many of ``replicas`` pairs raised an alarm, with the 95 % interval of the rate (Clopper-Pearson).

    ``loss`` is in points of accuracy, on every task of ``where``; 0 is no loss, so that alarms are false.
    """

    churn: float
    loss: float
    where: str
    alarms: int
    replicas: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        """The share of replicas with an alarm."""
        return self.alarms / self.replicas


@dataclass(frozen=True)
class GateReport:
    """What the gate does on replicas of a run of ``cells`` cells, at the stated false-alarm rate."""

    run: str
    cells: int
    tests: int
    objective_tests: int
    stated: float
    measured: tuple[Measured, ...]

    @property
    def keeps_its_rate(self) -> bool:
        """Whether no measured false-alarm rate is above the stated one by more than chance."""
        return all(found.low <= self.stated for found in self.measured if found.loss == 0)

    def render(self) -> str:
        """The measured rates as a table with a line on the stated rate, ending in a line break."""
        rows = [
            {
                "churn": f"{100 * found.churn:g} %",
                "loss": f"{found.loss:g} point{'s' * (found.loss != 1)}"
                if found.loss
                else "none (false alarms)",
                "where": found.where,
                "alarms": f"{found.alarms} of {found.replicas}",
                "rate": f"{100 * found.rate:.1f} %",
                "95 % interval": f"{100 * found.low:.1f} to {100 * found.high:.1f} %",
            }
            for found in self.measured
        ]
        table = tabulate(rows, "keys", "simple", disable_numparse=True)
        outcome = "agrees" if self.keeps_its_rate else "DISAGREES: it is above the stated rate"
        return (
            f"{self.run}: {self.cells} cells, {self.tests} tests of accuracy and {self.objective_tests} of "
            f"layer objectives in one family\n\n{table}\n\n"
            f"stated false-alarm rate: at most {self.stated:.2%}; measured: {outcome}\n"
            "churn: share of the samples whose outcome is drawn anew; objectives are the golden run's\n"
        )

    def as_json(self) -> dict[str, object]:
        """The report for programs."""
        measured = [{**asdict(found), "rate": found.rate} for found in self.measured]
        return {**asdict(self), "measured": measured, "keeps_its_rate": self.keeps_its_rate}


def measure(
    folder: RunFolder,
    *,
    replicas: int = 200,
    rate: float = RATE,
    churns: Sequence[float] = CHURNS,
    losses: Sequence[float] = LOSSES,
    seed: int = 0,
) -> GateReport:
    """Measure the gate of ``results.judge.check`` on replicas of a run: false alarms, and its power.

    Each loss is put once into one cell, drawn anew for each replica, and once into every cell. Tasks of
    Spearman's correlation are left out.

    Raises:
        UserError: an argument is out of range, or the run's samples cannot be used or differ between cells.
    """
    shares = all(0 < churn <= 1 for churn in churns) and all(0 < loss < 100 for loss in losses)
    if replicas < 1 or not 0 < rate < 1 or not shares:
        raise UserError(
            "replicas must be 1 or more, the rate between 0 and 1, churn above 0 and at most 1, "
            "a loss above 0 and below 100 points"
        )
    right = _right(folder)
    cells = len(right[0])
    tested = [change for record in folder.records() for change in changes(record, record)]
    objectives = sum(change.spread is not None for change in tested)
    rng = np.random.default_rng(seed)
    found = []
    for churn in churns:
        counts = _replicas(right, replicas, churn, rng)
        found.append(_measured(counts, objectives, rate, churn, 0.0, "", rng))
        for loss in losses:
            one = np.zeros((replicas, cells), bool)
            one[np.arange(replicas), rng.integers(cells, size=replicas)] = True
            for where, hit in (("one cell", one), ("every cell", np.ones_like(one))):
                lossy = _lossy(counts, right, loss, hit, rng)
                found.append(_measured(lossy, objectives, rate, churn, loss, where, rng))
    return GateReport(str(folder.path), cells, cells * (1 + len(right)), objectives, rate, tuple(found))


def _right(folder: RunFolder) -> list[NDArray[np.bool_]]:
    """By task which samples each cell got right, (cells, samples)."""
    runs = [folder.samples(record.key).correct for record in folder.records()]
    shapes = {tuple(sorted((task, right.size) for task, right in run.items())) for run in runs}
    if len(shapes) != 1 or not runs[0]:
        raise UserError(f"{folder.path}: its cells need accuracies on the same samples; there are none such")
    return [np.stack([run[task] for run in runs]) for task in sorted(runs[0])]


def _replicas(
    right: Iterable[NDArray[np.bool_]], replicas: int, churn: float, rng: np.random.Generator
) -> Counts:
    """The counts (3, replicas, cells, tasks) of samples right in both runs, lost, and gained."""
    return np.stack(
        [np.stack([_pair(task, churn, rng) for _ in range(replicas)], axis=1) for task in right], axis=-1
    )


def _pair(right: NDArray[np.bool_], churn: float, rng: np.random.Generator) -> Counts:
    """The counts (3, cells) of one replica of one task."""
    golden, anew = (right[:, rng.integers(right.shape[1], size=right.shape[1])] for _ in range(2))
    changed = (golden != anew) & (rng.random(right.shape, dtype=np.float32) < churn)
    lost, gained = (changed & golden).sum(axis=1), (changed & ~golden).sum(axis=1)
    return np.stack([golden.sum(axis=1) - lost, lost, gained])


def _lossy(
    counts: Counts,
    right: Sequence[NDArray[np.bool_]],
    loss: float,
    hit: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Counts:
    """The counts after a loss of ``loss`` points on every task of the cells ``hit`` (replicas, cells)."""
    accuracy = np.stack([task.mean(axis=1) for task in right], axis=-1)
    share = np.divide(loss / 100, accuracy, out=np.ones_like(accuracy), where=accuracy > loss / 100)
    share = share * hit[..., None]
    both, lost, gained = counts
    unlearned = rng.binomial(both, share)
    return np.stack([both - unlearned, lost + unlearned, gained - rng.binomial(gained, share)])


def _measured(
    counts: Counts,
    objectives: int,
    rate: float,
    churn: float,
    loss: float,
    where: str,
    rng: np.random.Generator,
) -> Measured:
    from scipy.stats import binomtest

    _, lost, gained = counts
    of_accuracy = cell_pvalues(lost, gained, "less")
    replicas = len(of_accuracy)
    pvalues = np.concatenate([of_accuracy.reshape(replicas, -1), rng.random((replicas, objectives))], axis=1)
    found = int(alarms(pvalues, rate).any(axis=1).sum())
    interval = binomtest(found, replicas).proportion_ci(0.95)
    return Measured(churn, loss, where, found, replicas, float(interval.low), float(interval.high))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print false-alarm rate and power; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--replicas", type=int, default=200, metavar="N", help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=RATE, metavar="P", help="stated rate (%(default)s)")
    parser.add_argument(
        "--churn", type=float, nargs="+", default=CHURNS, metavar="P", help="drawn anew, 0 to 1"
    )
    parser.add_argument("--loss", type=float, nargs="+", default=LOSSES, metavar="POINTS", help="(1 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the replicas (%(default)s)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    options = parser.parse_args(arguments)
    try:
        report = measure(
            RunFolder.open(options.folder),
            replicas=options.replicas,
            rate=options.rate,
            churns=options.churn,
            losses=options.loss,
            seed=options.seed,
        )
    except UserError as error:
        parser.error(str(error))
    print(json_text(report.as_json()) if options.json else report.render(), end="")
    return int(not report.keeps_its_rate)


if __name__ == "__main__":
    sys.exit(main())
