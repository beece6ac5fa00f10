"""``python -m tests.hub.forks``: runs the commands of a JSON list of lists on the standard input, in order.

Each is shown and has a process of its own, forked from this one, which has done the slow imports with the
environment of a replica's client. The first failure ends it.
"""

from __future__ import annotations

import json
import os
import sys

import benchmarks.images.from_transformers
import benchmarks.images.workbench
import benchmarks.run.plan
import benchmarks.run.runner
import benchmarks.sources.pin
import benchmarks.text.workbench  # noqa: F401 (imported before the forks)
from benchmarks.cli.main import main as epmq


def main() -> int:
    """The status of the command that failed, or 0."""
    commands: list[list[str]] = json.load(sys.stdin)
    for words in commands:
        print("\n$ epmq", *words, flush=True)
        pid = os.fork()
        if pid == 0:
            return epmq(words)  # and ends as a command does
        if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            print(f"epmq {words[0]} ended with status {status}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
