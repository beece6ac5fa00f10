"""A disk that is full at a random moment: one line, and the same command goes on to the same records.

The disk is one whose files take so many bytes and no more (``RLIMIT_FSIZE``), results and caches alike.
"""

from __future__ import annotations

import os
import random
import resource
import threading
from pathlib import Path

from results.analysis.analysis import Analysis
from results.store.folder import RunFolder
from tests.fixtures.tiny_suite import TinySuite
from tests.kills.test_run import OPTIONS, forked, tables

MOMENTS = int(os.environ.get("EPMQ_FULL_DISKS", "20"))
UNLIMITED = -1


def run_command(suite: Path, out: Path, cache: Path, limit: int) -> None:
    """``epmq run`` in a process of its own, with files of ``limit`` bytes; what it says is beside ``out``."""
    import datasets
    from tqdm import tqdm

    from benchmarks.cli.main import main

    tqdm.set_lock(threading.RLock())
    os.dup2(os.open(f"{out}.said", os.O_WRONLY), 2)
    datasets.config.HF_DATASETS_CACHE = cache / "datasets"
    os.environ["EPMQ_CACHE"] = str(cache / "epmq")
    if limit != UNLIMITED:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os._exit(main(["run", str(suite), "--out", str(out), *OPTIONS]))


def ended(tiny: TinySuite, out: Path, cache: Path, limit: int = UNLIMITED) -> tuple[int | None, list[str]]:
    """Exit status and standard error of a run in a process of its own."""
    pipe = Path(f"{out}.said")  # the limit is of files, a pipe has none
    os.mkfifo(pipe)
    process = forked(run_command, tiny.file, out, cache, limit)
    said = pipe.read_text("utf-8", "replace").replace("\r", "\n").splitlines()
    process.join()
    pipe.unlink()
    return process.exitcode, said


def test_a_full_disk_costs_one_line_and_nothing_that_was_there(tiny: TinySuite, tmp_path: Path) -> None:
    whole, filled = tmp_path / "whole", tmp_path / "filled"
    assert ended(tiny, whole, tmp_path / "cache")[0] == 0
    sizes = [p.stat().st_size for p in (*whole.rglob("*"), *(tmp_path / "cache").rglob("*")) if p.is_file()]
    draw, refused, before = random.Random(0), 0, 0
    for _ in range(MOMENTS):
        limit = int(max(sizes) ** draw.random())
        status, said = ended(tiny, filled, tmp_path / "cache of the filled", limit)
        assert status in (0, 2), (limit, said[-5:])
        if status == 2:
            refused += 1
            assert len([line for line in said if line.startswith("epmq: error:")]) == 1, limit
            assert not any("Traceback" in line for line in said)
        if (filled / "manifest.json").exists():
            found = RunFolder.open(filled).read()
            assert len(found.records) >= before, "what was finished stays"
            before = len(found.records)
    assert refused > 0
    assert ended(tiny, filled, tmp_path / "cache of the filled")[0] == 0
    assert Analysis.open(filled).problems == []
    assert tables(filled) == tables(whole)
