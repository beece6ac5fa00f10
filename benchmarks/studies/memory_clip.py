"""Peak resident memory of a run on full-size models: ``python -m benchmarks.studies.memory_clip``.

ViT-L/14 with random weights, 5 and 20 synthetic experts on disk, TIES, GPTQ and both readings of E-PMQ on one
calibration image a task, on the CPU. Every run is a process of its own, whose peak the operating system
reports. Only the first block is quantised: blocks are of one size and only one is at work at a time, so the
others would add time and no memory. About 15 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.studies.synthetic import write_suite

LIMIT = 5 * 2**30  # bytes
SPREAD = 0.05  # between the numbers of experts
OPTIONS = "--merge ties --method gptq epmq epmq-features --controls merged --layers blocks.0.* --device cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.memory_clip", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where models are written, and kept")
    parser.add_argument("--shape", default="l14", choices=("b32", "l14"))
    parser.add_argument("--experts", nargs="+", type=int, default=[5, 20])
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    rows = [measure(folder, options.shape, count) for count in options.experts]
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    peaks = [row["peak GiB"] for row in rows]
    print(f"largest over smallest: {max(peaks) / min(peaks):.3f}; limits: 5 GiB, 1.05")
    return int(max(peaks) * 2**30 > LIMIT or max(peaks) / min(peaks) > 1 + SPREAD)


def measure(folder: Path, shape: str, experts: int) -> dict[str, Any]:
    """One run in a process of its own: its peak and its seconds."""
    suite = write_suite(folder, shape, experts, train=1, test=1)
    out = folder / f"run-{shape}-{experts}-{time.time_ns()}"
    command = [
        sys.executable,
        "-m",
        "benchmarks.cli.main",
        "run",
        str(suite),
        *OPTIONS.split(),
        "--out",
        str(out),
    ]
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "EPMQ_CACHE": str(folder / "cache")})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the run with {experts} experts failed")
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    return {
        "experts": experts,
        "cells": len(records),
        "peak GiB": usage.ru_maxrss * 1024 / 2**30,
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    sys.exit(main())
