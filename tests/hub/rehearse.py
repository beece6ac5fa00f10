"""``python -m tests.hub.rehearse --out DIR``: the paper's suites, end to end, on a replica of the hub.

The commands are those that a user types; models and data are made-up stand-ins, so no number is a result.
Typed again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.hub.content import build, build_text
from tests.hub.server import Hub
from tests.hub.suites import TEXT_NAMES, write_lm_tasks, write_suites
from tests.hub.text_data import TRAIN

LLAMA = "replica/tiny-llama"  # experts: -a, whole, and -b, an adapter
LM_TASKS = ("rte", "sst2")
FEWER = {  # for time; between them, both merges, and every row on clip-vit-b32-8
    "clip-vit-l14-20": [
        "--merge",
        "task-arithmetic",
        "--method",
        "gptq",
        "epmq",
        "epmq-features",
        "--controls",
        "experts",
        "merged",
        "regmean",
    ],
    "flan-t5-base-glue8": ["--comparison", "regression"],
    "flan-t5-base-glue8-lora16": [
        "--comparison",
        "regression",
        "--merge",
        "ties",
        "--method",
        "gptq",
        "epmq",
    ],
}

REFINED = ("clip-vit-b32-8", "flan-t5-base-glue8")  # one of images, one of text
OTHERS = {  # a cut of further comparisons
    "roundings": ["--merge", "ties", "--method", "gptq-refit", "--target", "merged"],
    "merges": ["--merge", "wudi", "task-arithmetic-svc", "--method", "gptq"],
}
STEPS = ["--samples", "8", "--refine-steps", "2", "--refine-batch", "2"]


def main() -> None:
    """Plan, pin, run and compare each suite, and run a causal model; parts go side by side."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub.rehearse", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--bits", nargs="+", default=["4"])
    parser.add_argument("--only", choices=("clip", "glue", "lm"), nargs="+", default=["clip", "glue", "lm"])
    options = parser.parse_args()
    out = options.out.absolute()
    start = time.perf_counter()
    if len(options.only) > 1:
        side_by_side(out, options.only, options.bits)
    else:
        rehearse_part(out, options.only[0], options.bits)
    print(f"\nrehearsed in {time.perf_counter() - start:.0f} s: made-up stand-ins, no number is a result")


def side_by_side(out: Path, parts: list[str], bits: list[str]) -> None:
    """Each part in a process of its own; what one prints is shown when it ends, failures included."""
    print(f"rehearsing {', '.join(parts)} side by side; each is shown when it has ended", flush=True)

    def run(part: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "tests.hub.rehearse",
            "--out",
            str(out),
            "--only",
            part,
            "--bits",
            *bits,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(len(parts)) as pool:
        for part, done in zip(parts, pool.map(run, parts), strict=True):
            print(done.stdout, flush=True)
            if done.returncode:
                sys.exit(f"{done.stderr[-4000:]}\nrehearsal: part {part} failed")


def rehearse_part(out: Path, part: str, bits: list[str]) -> None:
    """One part, command by command; the first failure ends it."""
    content = build(out / "content"), build_text(out / "content")
    suites = {"clip": write_suites(out / "suites"), "glue": write_suites(out / "suites", TEXT_NAMES)}
    with Hub(*content) as hub:
        env = {**hub.env(out / "hub-cache"), "EPMQ_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
        for suite in suites.get(part, []):
            rehearse(suite, out / suite.stem, ["--bits", *bits, *FEWER.get(suite.stem, [])], env)
        if part == "lm":
            rehearse_lm(out, bits, env)


def rehearse(suite: Path, out: Path, given: list[str], env: Mapping[str, str]) -> None:
    """One suite."""
    epmq("run", str(suite), *given, "--plan", env=env)
    epmq("pin", str(suite), env=env)
    epmq("run", str(suite), *given, "--out", str(out), env=env)
    if suite.stem in REFINED:
        rows = ["--merge", "ties", "--method", "epmq-features-tuned", "--controls", "distilled-gptq"]
        refined = ["--comparison", "refined", *rows, *STEPS]
        epmq("run", str(suite), *refined, *given[:2], "--out", str(out), env=env)
        for comparison, rows in OTHERS.items():
            asked = ["--comparison", comparison, *rows, "--controls", *given[:2]]
            epmq("run", str(suite), *asked, "--out", str(out), env=env)
    epmq("table", str(out), "--save", env=env)
    epmq("compare", str(out), env=env)


def rehearse_lm(out: Path, bits: list[str], env: Mapping[str, str]) -> None:
    """A causal language model with two experts, one of them an adapter, on two tasks of GLUE."""
    tasks = write_lm_tasks(out / "tasks", LM_TASKS)
    models = ["--base", LLAMA, "--expert", f"{LLAMA}-a", f"{LLAMA}-b"]
    given = [*models, "--tasks", *map(str, tasks), "--bits", *bits]
    epmq("run", "lm", *given, "--samples", str(TRAIN), "--out", str(out / "lm"), env=env)
    refined = ["--merge", "ties", "--method", "gptq-tuned", "epmq-qat", "--controls", *STEPS]
    epmq("run", "lm", *given, *refined, "--out", str(out / "lm"), env=env)
    epmq("table", str(out / "lm"), "--save", env=env)


def epmq(*arguments: str, env: Mapping[str, str]) -> None:
    """The command, shown and run in a process of its own."""
    print("\n$ epmq", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "benchmarks.cli.main", *arguments], env=env, check=False)
    if done.returncode:
        sys.exit(f"rehearsal: epmq {arguments[0]} ended with status {done.returncode}")


if __name__ == "__main__":
    main()
