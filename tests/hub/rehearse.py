"""``python -m tests.hub.rehearse --out DIR``: the paper's suites, end to end, on a replica of the hub.

The commands are those that a user types; models and data are made-up stand-ins, so no number is a result.
Typed again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
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
    """One part, command by command; the first failure ends it.

    The first command is started as a user starts it; the others are forks, which need not import again.
    """
    content = build(out / "content"), build_text(out / "content")
    suites = {"clip": write_suites(out / "suites"), "glue": write_suites(out / "suites", TEXT_NAMES)}
    typed: list[list[str]] = []
    for suite in suites.get(part, []):
        typed += rehearsed(suite, out / suite.stem, ["--bits", *bits, *FEWER.get(suite.stem, [])])
    if part == "lm":
        typed += rehearsed_lm(out, bits)
    with Hub(*content) as hub:
        env = {**hub.env(out / "hub-cache"), "EPMQ_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
        first, *others = typed
        print("\n$ epmq", *first, flush=True)
        for command, asked in (
            (["benchmarks.cli.main", *first], ""),
            (["tests.hub.forks"], json.dumps(others)),
        ):
            done = subprocess.run(
                [sys.executable, "-m", *command], env=env, input=asked, text=True, check=False
            )
            if done.returncode:
                sys.exit(f"rehearsal: {' '.join(command[:2])} ended with status {done.returncode}")


def rehearsed(suite: Path, out: Path, given: list[str]) -> list[list[str]]:
    """What is typed for one suite."""
    typed = [["run", str(suite), *given, "--plan"], ["pin", str(suite)]]
    typed.append(["run", str(suite), *given, "--out", str(out)])
    if suite.stem in REFINED:
        rows = ["--merge", "ties", "--method", "epmq-features-tuned", "--controls", "distilled-gptq"]
        refined = ["--comparison", "refined", *rows, *STEPS]
        typed.append(["run", str(suite), *refined, *given[:2], "--out", str(out)])
        for comparison, rows in OTHERS.items():
            asked = ["--comparison", comparison, *rows, "--controls", *given[:2]]
            typed.append(["run", str(suite), *asked, "--out", str(out)])
    return [*typed, ["table", str(out), "--save"], ["compare", str(out)]]


def rehearsed_lm(out: Path, bits: list[str]) -> list[list[str]]:
    """The same for a causal language model with two experts, one an adapter, on two tasks of GLUE."""
    tasks = write_lm_tasks(out / "tasks", LM_TASKS)
    models = ["--base", LLAMA, "--expert", f"{LLAMA}-a", f"{LLAMA}-b"]
    given = [*models, "--tasks", *map(str, tasks), "--bits", *bits]
    refined = ["--merge", "ties", "--method", "gptq-tuned", "epmq-qat", "--controls", *STEPS]
    return [
        ["run", "lm", *given, "--samples", str(TRAIN), "--out", str(out / "lm")],
        ["run", "lm", *given, *refined, "--out", str(out / "lm")],
        ["table", str(out / "lm"), "--save"],
    ]


if __name__ == "__main__":
    main()
