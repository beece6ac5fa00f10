"""What another processor changes: an embedded suite's regression comparison again, by other code paths.

``python -m benchmarks.studies.replay FOLDER`` runs the comparison as it is; with vector instructions switched
off in torch (``ATEN_CPU_CAPABILITY=default``); with two threads; and with every matrix product off by up to
``SCALE`` units in the last place at random, a few times. It does so with the comparison's own calibration
inputs and with those of the model quantised so far. Runs that are in FOLDER already are not made again. It
prints the spread of layer objectives over all pairs of runs, how many samples changed sides, and of each
suite and source how many ordered pairs the gate (``epmq check``) fails, which is false each time; ``--write``
keeps the spread for the gate. Exit status 1 if the gate failed a pair of the comparison as it is.

``SCALE`` is such that a perturbed run is about as far from the plain one as the run without vectors is (with
1 it is about three times nearer). Where inputs are those of the model quantised so far, two runs of the same
code are two models with different errors: a test on the same samples can tell them apart, and the gate fails
more of such pairs than its stated rate. That is why the comparison calibrates from fixed inputs.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.run.cells import Request
from benchmarks.run.runner import run
from benchmarks.sources.pin import lock_for_run
from benchmarks.suites import load
from benchmarks.workbench.base import Setting
from benchmarks.workbench.machine import Machine
from results.analysis.analysis import Analysis
from results.judge.check import check
from results.judge.objectives import ROUND_OFF, SPREAD, changes, inputs_are_fixed
from results.store.records import Record
from results.tables.formats import json_text

SCALE = 4.0  # units in the last place
SUITES = ("micro-clip-8", "micro-glue-8")
SOURCES = ("merged", "quantised")
PATHS: dict[str, dict[str, str]] = {
    "plain": {},
    "no-vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "two-threads": {"OMP_NUM_THREADS": "2"},
}
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "attention")


class _Perturbed(TorchDispatchMode):
    def __init__(self, seed: int, scale: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.scale = scale
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if not any(name in func.__name__ for name in _PRODUCTS):
            return found
        return tuple(map(self._changed, found)) if isinstance(found, tuple) else self._changed(found)

    def _changed(self, product: Any) -> Any:
        if not isinstance(product, Tensor) or not product.is_floating_point():
            return product
        signs = torch.randint(-1, 2, product.shape, generator=self.generator, dtype=torch.int8)
        return product + product * signs.to(product) * (self.scale * torch.finfo(product.dtype).eps)


@contextmanager
def perturbed(seed: int, scale: float = SCALE) -> Iterator[None]:
    """Within, every entry of a matrix product is off by ``scale`` units in the last place or not at all."""
    with _Perturbed(seed, scale):
        yield


@dataclass(frozen=True)
class Spread:
    """How far apart one cell's runs are, over all pairs of them.

    ``layer`` and ``mean`` are root mean squares of the log ratio of objectives, of layers and of their mean;
    ``largest`` is that of a layer. ``churn`` is the mean share of test samples that changed sides.
    """

    suite: str
    cell: str
    fixed_inputs: bool
    pairs: int
    layer: float
    largest: float
    mean: float
    churn: float


def spread(runs: Sequence[Analysis]) -> Iterator[Spread]:
    """The spread of every cell that has layer objectives."""
    by_key = [{record.key: record for record in run.records} for run in runs]
    for key, first in by_key[0].items():
        pairs = list(combinations(range(len(runs)), 2))
        if not any(layer.objective > ROUND_OFF for layer in first.layers):
            continue
        ratios = [_ratios(by_key[i][key], by_key[j][key]) for i, j in pairs]
        layers = [ratio for *some, _ in ratios for ratio in some]
        churn = [_churn(runs[i], runs[j], by_key[i][key], by_key[j][key]) for i, j in pairs]
        yield Spread(
            suite=first.suite,
            cell=f"{first.merge} {first.method}",
            fixed_inputs=inputs_are_fixed(first),
            pairs=len(pairs),
            layer=_rms(layers),
            largest=max(map(abs, layers)),
            mean=_rms([mean for *_, mean in ratios]),
            churn=fmean(churn),
        )


def _ratios(old: Record, new: Record) -> list[float]:
    """Log ratios of every layer's objective, and of their mean last."""
    return [change.ratio for change in changes(old, new)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(fmean(value**2 for value in values))


def _churn(run: Analysis, other: Analysis, a: Record, b: Record) -> float:
    correct = [analysis.folder.samples(record.key).correct for analysis, record in ((run, a), (other, b))]
    return float(np.concatenate([correct[0][task] != correct[1][task] for task in correct[0]]).mean())


def false_alarms(runs: Sequence[Analysis]) -> tuple[int, int]:
    """How many of the ordered pairs of runs the gate fails, and how many pairs there are."""
    pairs = list(permutations(runs, 2))
    return sum(check(run, golden).failed for golden, run in pairs), len(pairs)


def pooled(found: Sequence[Spread]) -> dict[str, dict[str, float]]:
    """What the gate judges by: the largest spread of any cell, to two digits, by kind of inputs."""
    kinds = {"fixed inputs": True, "quantised inputs": False}
    return {
        kind: {
            name: float(f"{max(getattr(one, name) for one in found if one.fixed_inputs == fixed):.1e}")
            for name in ("layer", "mean")
        }
        for kind, fixed in kinds.items()
    }


def _runs(folder: Path, suite: str, source: str, replays: int) -> list[Analysis]:
    """Every run of a suite and a source, made where it is missing."""
    made = []
    for name, environment in PATHS.items():
        made.append(folder / suite / source / name)
        command = [sys.executable, "-m", "benchmarks.cli.main", "run", suite, "--comparison", "regression"]
        command += ["--source", source, "--device", "cpu", "--out", str(made[-1])]
        subprocess.run(command, check=True, env={**os.environ, **environment})
    for seed in range(1, replays + 1):
        made.append(folder / suite / source / f"perturbed-{seed}")
        with perturbed(seed):
            _run(suite, source, made[-1])
    return [Analysis.open(path) for path in made]


def _run(name: str, source: str, out: Path) -> None:
    """The same in this process."""
    suite = load.load(name)
    asked = load.options(suite, "regression")
    asked["calibration"] |= {"source": source}
    lock = lock_for_run(suite, None, unpinned=False)
    setting = Setting(Machine.choose("cpu", "float32"), lock)
    run(suite, Request(**asked), out, {"comparison": "regression", "source": source}, setting)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--suites", nargs="+", default=SUITES, metavar="SUITE", help="(both embedded ones)")
    parser.add_argument("--replays", type=int, default=3, metavar="N", help="perturbed runs (%(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the spread for the gate")
    options = parser.parse_args(arguments)
    everything = {
        (suite, source): _runs(options.folder, suite, source, options.replays)
        for suite in options.suites
        for source in SOURCES
    }
    found = [one for runs in everything.values() for one in spread(runs)]
    if options.write:
        SPREAD.write_text(json_text({"spread": pooled(found), "cells": [asdict(one) for one in found]}))
    print(tabulate([asdict(one) for one in found], "keys", "simple", floatfmt=".1e"))
    failures = 0
    for (suite, source), runs in everything.items():
        failed, pairs = false_alarms(runs)
        print(f"{suite}, source {source}: the gate fails {failed} of {pairs} ordered pairs of the same code")
        failures += failed if source == SOURCES[0] else 0
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
