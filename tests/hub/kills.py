"""``python -m tests.hub.kills SUITE OUT N SECONDS``: kills ``epmq run`` N times at random, then lets it end.

Started with the environment of a replica's client. Every run is forked from this process, which has done the
slow imports, and meets its kill within SECONDS. Prints how many runs were killed at work, and fails if a
finished record changed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import benchmarks.images.from_transformers
import benchmarks.run.plan
import benchmarks.run.runner  # noqa: F401 (imported before the forks)
from benchmarks.cli.main import main as epmq


def start(suite: str, out: Path) -> int:
    """A run in a process of its own; returns its number."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        status = epmq(["run", suite, "--comparison", "regression", "--out", str(out)])
        os._exit(status)
    return pid


def records(out: Path) -> list[bytes]:
    """The whole lines of the records, byte for byte."""
    file = out / "records.jsonl"
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


def main() -> int:
    suite, out, kills, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    draw, met = random.Random(0), 0
    for _ in range(kills):
        before, pid = records(out), start(suite, out)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        met += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        if records(out)[: len(before)] != before:
            sys.exit("a finished record changed")
    before = records(out)
    status = os.waitstatus_to_exitcode(os.waitpid(start(suite, out), 0)[1])
    if records(out)[: len(before)] != before:
        sys.exit("a finished record changed")
    print(met)
    return status


if __name__ == "__main__":
    sys.exit(main())
