"""A package of somebody else's that adds a baseline through the entry point, as pip would lay it out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "row-best"  # the baseline that the package adds
METHOD = """
import torch

from baselines import baseline, get
from epmq.weight import QuantizedWeight


@baseline("row-best", reference="none", summary="the better of RTN and GPTQ for every row")
def row_best(problem, spec):
    one, two = get("rtn")(problem, spec), get("gptq")(problem, spec)
    errors = [problem.row_objective(found.dequantize()) for found in (one, two)]
    first = (errors[0] < errors[1])[:, None]
    pick = [torch.where(first, getattr(one, k), getattr(two, k)) for k in ("codes", "scale", "zero")]
    return QuantizedWeight(*pick, spec)
"""
DIST_INFO = "row_best_rounding-0.1.dist-info"
FILES = {
    "row_best_rounding.py": METHOD,
    f"{DIST_INFO}/METADATA": "Metadata-Version: 2.1\nName: row-best-rounding\nVersion: 0.1\n",
    f"{DIST_INFO}/entry_points.txt": "[epmq.baselines]\nrow-best = row_best_rounding\n",
}


def write_package(folder: Path, files: dict[str, str] = FILES) -> Path:
    """Lay the installed package out in ``folder`` and return it."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def run_with(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``python *command`` in a process that sees this repository and the package in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
