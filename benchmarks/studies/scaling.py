"""Time what is made from results folders as they grow: ``python -m benchmarks.studies.scaling``.

The folders hold made-up records of two tasks, three seeds to a setting; every time is what this process
computes in one call, waiting for the disk not counted, on files that were just written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from results.analysis.analysis import Analysis
from results.figures import files
from results.judge.check import check
from results.paper.compare import compare
from results.report import page
from results.store.folder import RunFolder
from results.store.records import LayerResult, Manifest, Record, TaskResult
from results.tables.comparison import render

SIZES = (50, 500, 2000)
SUITES, EACH = (10, 100), 20  # folders, of so many records each
SAMPLES, SEEDS = 200, 3
METHODS = ("gptq", "rtn", "awq", "epmq")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every size and print seconds and milliseconds a record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.scaling", description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=SIZES, metavar="N", help="(50 500 2000)")
    parser.add_argument("--suites", type=int, nargs="*", default=SUITES, metavar="N", help="(10 100)")
    parser.add_argument("--without-report", action="store_true", help="leave the page with its figures out")
    options = parser.parse_args(arguments)
    rows = []
    for size in tqdm(options.records, leave=False, disable=None):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder) / "run", size, report=not options.without_report)
    print(tabulate(rows, headers="keys", floatfmt=("", "", ".3f", ".3f")))
    if options.suites:
        print()
        print(tabulate([of_suites(count) for count in options.suites], headers="keys", floatfmt=".3f"))
    return 0


def of_suites(count: int) -> dict[str, Any]:
    """Seconds of the tables of ``count`` folders of as many suites, and milliseconds a folder."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(number) for number in range(count)]
        for number, path in enumerate(paths):
            write(path, EACH, suite=f"toy-{number}")
        start = time.process_time()
        for path in paths:
            render(Analysis.open(path), "md")
        seconds = time.process_time() - start
    return {"suites": count, "seconds": seconds, "ms a suite": 1000 * seconds / count}


def measure(path: Path, size: int, *, report: bool) -> list[dict[str, Any]]:
    """Seconds of every step on a folder of ``size`` records, and milliseconds a record."""
    write(path, size)
    steps: dict[str, Callable[[], object]] = {
        "table": lambda: render(Analysis.open(path), "md"),
        "compare": lambda: compare(Analysis.open(path)),
        "check": lambda: check(Analysis.open(path), Analysis.open(path)),
    }
    if report:
        steps["report"] = lambda: _report(path)
    rows = [_row(name, size, step, per=size) for name, step in steps.items()]
    folder, (record, correct) = RunFolder.open(path), cell(size)
    return [*rows, _row("append one", size, lambda: folder.append(record, correct), per=1)]


def _row(name: str, size: int, step: Callable[[], object], per: int) -> dict[str, Any]:
    start = time.process_time()
    step()
    seconds = time.process_time() - start
    return {"step": name, "records": size, "seconds": seconds, "ms a record": 1000 * seconds / per}


def _report(path: Path) -> None:
    analysis = Analysis.open(path)
    page.save(analysis, files.drawings(analysis), path / "report.html")


def write(path: Path, size: int, suite: str = "toy") -> None:
    """A folder of ``size`` made-up records."""
    manifest = Manifest(suite=suite, suite_version=1, created="2026-01-01T00:00:00Z")
    folder = RunFolder.open(path, manifest, create=True)
    for number in range(size):
        folder.append(*cell(number, suite))


def cell(number: int, suite: str = "toy") -> tuple[Record, dict[str, Any]]:
    """The record of this number, and which of its samples are right."""
    rng = np.random.default_rng(number)
    setting, seed = divmod(number, SEEDS)
    setting, method = divmod(setting, len(METHODS))
    correct = {task: rng.random(SAMPLES) < 0.7 for task in ("digits", "shapes")}
    values = {task: float(right.mean()) for task, right in correct.items()}
    made = Record(
        key=f"{number:016x}",
        suite=suite,
        suite_version=1,
        device="cpu",
        dtype="float32",
        pinned=True,
        kind="method",
        merge="ties",
        method=METHODS[method],
        rounding=METHODS[method],
        target="expert" if METHODS[method] == "epmq" else "merged",
        bits=2 + setting % 7,
        axes={"group_size": None, "symmetric": False, "samples": 16 + setting // 7},
        seed=seed,
        tasks={task: TaskResult(value=value, samples=SAMPLES) for task, value in values.items()},
        average=sum(values.values()) / len(values),
        layers=tuple(LayerResult(name=f"block.{i}", rows=8, columns=4, objective=0.25) for i in range(8)),
        seconds={"quantise": 0.1},
        peak_memory_bytes=1000,
        bits_per_weight=4.25,
    )
    return made, correct


if __name__ == "__main__":
    sys.exit(main())
