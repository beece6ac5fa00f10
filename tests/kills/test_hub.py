"""A run from the hub that is killed again and again, wherever it is, ends the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from results.analysis.analysis import Analysis
from results.store.records import Record
from results.tables.comparison import render
from tests.hub.content import build, shared
from tests.hub.server import Hub
from tests.hub.suites import write_suites

KILLS = int(os.environ.get("EPMQ_KILLS", "50"))


def untimed(record: Record) -> Record:
    return record.model_copy(update={"seconds": {}, "peak_memory_bytes": 0, "record_sha256": None})


def test_killed_runs_from_the_hub_end_in_the_same_tables(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    suite, *_ = write_suites(tmp_path / "suites")
    with Hub(build(shared(tmp_path_factory))) as hub:
        for name, kills in (("whole", 0), ("killed", KILLS)):
            env = {
                **hub.env(tmp_path / name / "hub", timeout=900),
                "EPMQ_CACHE": str(tmp_path / name / "cache"),
            }
            where = [str(suite), str(tmp_path / name / "out")]
            command = [sys.executable, "-m", "tests.hub.kills", *where, str(kills), "1.5"]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0, "some were killed at work; how many depends on the machine"
    whole, killed = (Analysis.open(tmp_path / name / "out") for name in ("whole", "killed"))
    assert killed.problems == []
    one, other = ({r.key: untimed(r) for r in analysis.records} for analysis in (whole, killed))
    assert one == other
    assert render(killed, "md") == render(whole, "md")
