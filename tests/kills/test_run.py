"""A run that is killed again and again ends where an uninterrupted run ends, and redoes nothing."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from results.analysis.analysis import Analysis
from results.store.folder import RunFolder
from results.tables.comparison import FORMATS, render
from tests.fixtures.tiny_suite import TinySuite

KILLS = int(os.environ.get("EPMQ_KILLS", "50"))
OPTIONS = [
    *("--method", "rtn", "gptq", "--bits", "4", "3", "--merge", "task-arithmetic", "ties"),
    *("--controls", "zero-shot", "experts", "merged", "regmean", "epmq-features-fp"),
]


def run_command(suite: Path, out: Path, cache: Path) -> None:
    """``epmq run``, in a process of its own."""
    import datasets
    from tqdm import tqdm

    from benchmarks.cli.main import main

    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a kill would leave behind
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    datasets.config.HF_DATASETS_CACHE = cache
    os._exit(main(["run", str(suite), "--out", str(out), *OPTIONS]))


def forked(target: Callable[..., None], *given: object) -> multiprocessing.process.BaseProcess:
    """A fresh process at work, forked by a server that has done the slow imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["benchmarks.run.runner", "benchmarks.cli.main", "tests.fixtures.tiny_suite"]
    )
    process = context.Process(target=target, args=given)
    process.start()
    return process


def start(tiny: TinySuite, out: Path) -> multiprocessing.process.BaseProcess:
    """A run in a process of its own."""
    return forked(run_command, tiny.file, out, tiny.folder.parent / "datasets-cache-of-runs")


def finish(tiny: TinySuite, out: Path) -> float:
    """Run to the end; returns the seconds that it took."""
    process, begin = start(tiny, out), time.perf_counter()
    process.join()
    assert process.exitcode == 0
    return time.perf_counter() - begin


def lines(out: Path) -> list[bytes]:
    """The whole lines of the records, byte for byte, times included."""
    file = out / "records.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def wait_for_progress(process: multiprocessing.process.BaseProcess, out: Path, before: int) -> None:
    while process.is_alive() and len(lines(out)) == before:
        time.sleep(0.002)


def tables(out: Path) -> dict[str, str]:
    return {fmt: render(Analysis.open(out), fmt) for fmt in FORMATS}


def test_killed_runs_lose_no_finished_cell_and_end_in_the_same_tables(
    tiny: TinySuite, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(tiny, tmp_path / "first, which fills the caches")
    seconds = finish(tiny, whole)
    draw, interrupted = random.Random(0), 0
    for _ in range(KILLS):
        before = lines(killed)
        process = start(tiny, killed)
        if draw.random() < 0.75:  # else the kill meets the start
            wait_for_progress(process, killed, len(before))
        time.sleep(draw.uniform(0, 3 * seconds / len(lines(whole))))
        process.kill()
        process.join()
        interrupted += process.exitcode == -signal.SIGKILL
        assert lines(killed)[: len(before)] == before, "what was finished stays as it was"
    before = lines(killed)
    finish(tiny, killed)
    assert interrupted > 0
    assert lines(killed)[: len(before)] == before, "finished cells are not computed again"
    assert len(lines(killed)) == len(lines(whole)) == len(RunFolder.open(killed).records())
    assert RunFolder.open(killed).read().problems == []
    assert tables(killed) == tables(whole)
