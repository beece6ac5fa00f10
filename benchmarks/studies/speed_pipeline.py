"""E-PMQ's time over plain GPTQ's, by phase: ``python -m benchmarks.studies.speed_pipeline --folder DIR``.

ViT-B/32 with random weights and 8 synthetic experts, task arithmetic, 4 bits, whole pipeline of a cell:
merge, calibration, rounding, evaluation. On a GPU (``--device cuda``) take the suite's own 256 images a task;
on a CPU fewer (the default) keep it within minutes.
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

PHASES = ("merge", "calibrate", "quantise", "evaluate")
METHODS = ("gptq", "epmq", "epmq-features")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.speed_pipeline", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where models are written, and kept")
    parser.add_argument("--shape", default="b32", choices=("b32", "l14"))
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="calibration images a task (default 8)")
    parser.add_argument("--test", type=int, default=32, help="test images a task (default 32)")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    folder = options.folder.absolute()
    suite = write_suite(folder, options.shape, options.experts, options.samples, options.test)
    out = folder / f"run-pipeline-{time.time_ns()}"
    command = [sys.executable, "-m", "benchmarks.cli.main", "run", str(suite), "--controls", "merged"]
    command += ["--device", options.device, "--out", str(out)]
    subprocess.run(command, check=True, env={**os.environ, "EPMQ_CACHE": str(folder / "cache")})
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    seconds = {record["method"]: record["seconds"] for record in records}
    print(tabulate([row(method, seconds) for method in METHODS], headers="keys", floatfmt=".2f"))
    return 0


def row(method: str, seconds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Seconds by phase and in all, and the ratio to plain GPTQ."""
    mine = {phase: seconds[method].get(phase, 0.0) for phase in PHASES}
    total, gptq = sum(mine.values()), sum(seconds["gptq"].values())
    return {"method": method, **mine, "total": total, "over gptq": total / gptq}


if __name__ == "__main__":
    sys.exit(main())
