"""``python -m tests.hub.rehearse --out DIR``: the paper's CLIP suites, end to end, on a replica of the hub.

The commands are those that a user types; models and data are made-up stand-ins, so no number is a result.
Typed again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.hub.content import build
from tests.hub.server import Hub
from tests.hub.suites import write_suites


def main() -> None:
    """Plan, pin, run and compare each suite; the first command that fails ends it."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.rehearse", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bits", nargs="+", default=["4"])
    options = parser.parse_args()
    out = options.out.absolute()
    start = time.perf_counter()
    content, suites = build(out / "content"), write_suites(out / "suites")
    with Hub(content) as hub:
        env = {**hub.env(out / "hub-cache"), "EPMQ_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
        for suite in suites:
            rehearse(suite, out / suite.stem, options.bits, env)
    print(f"\nrehearsed in {time.perf_counter() - start:.0f} s: made-up stand-ins, no number is a result")


def rehearse(suite: Path, out: Path, bits: list[str], env: Mapping[str, str]) -> None:
    """One suite."""
    epmq("run", str(suite), "--bits", *bits, "--plan", env=env)
    epmq("pin", str(suite), env=env)
    epmq("run", str(suite), "--bits", *bits, "--out", str(out), env=env)
    epmq("table", str(out), "--save", env=env)
    epmq("compare", str(out), env=env)


def epmq(*arguments: str, env: Mapping[str, str]) -> None:
    """The command, shown and run in a process of its own."""
    print("\n$ epmq", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "benchmarks.cli", *arguments], env=env, check=False)
    if done.returncode:
        sys.exit(f"rehearsal: epmq {arguments[0]} ended with status {done.returncode}")


if __name__ == "__main__":
    main()
