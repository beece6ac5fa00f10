"""`table`, `report` and `golden update`, killed at random moments, do no harm."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.tiny_runs import snapshot
from tests.results.test_golden import fit

KILLS = int(os.environ.get("EPMQ_KILLS", "50"))
TEMPORARY = ".tmp"


def command(folder: Path, name: str) -> list[str]:
    run, golden = str(folder / "run"), str(folder / "golden")
    arguments = {
        "table": ["table", run, "--save"],
        "report": ["report", run],
        "golden": ["golden", "update", run, "--golden", golden, "--reason", "a first one"],
    }[name]
    return [sys.executable, "-m", "benchmarks.cli.main", *arguments]


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the golden's history, which has the time of each update, and what a kill left behind."""
    return {
        name: data
        for name, data in snapshot(folder).items()
        if not name.endswith("history.jsonl") and TEMPORARY not in name
    }


@pytest.mark.parametrize("name", ["table", "report", "golden"])
def test_a_command_that_is_killed_does_no_harm(tmp_path: Path, name: str) -> None:
    fit(tmp_path / "whole" / "run")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    begin = time.perf_counter()
    subprocess.run(command(tmp_path / "whole", name), check=True, capture_output=True)
    seconds = time.perf_counter() - begin
    draw = random.Random(name)
    for number in range(KILLS):
        process = subprocess.Popen(
            command(tmp_path / "killed", name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.5, 1) * seconds)  # the first half of it are imports
        process.send_signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
        process.wait()
    subprocess.run(command(tmp_path / "killed", name), check=True, capture_output=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
