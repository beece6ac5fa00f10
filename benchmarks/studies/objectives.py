"""Layer objectives of every rounding relative to GPTQ's, on the real layers of an embedded suite.

``python -m benchmarks.studies.objectives micro-clip-8 --out FILE`` walks the merged model with GPTQ; each
layer's problem, on inputs from the layers that GPTQ has rounded before it, is given to every registered
rounding, whose objective and processor seconds are taken. So all of them round the same problems. It is done
with both targets at 4, 3 and 2 bits per channel and at 2 bits in groups of 32, and prints a table. FILE
(JSON) keeps every setting when it is done: the same command goes on after an interruption, and adds what was
registered since.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm.auto import tqdm

import baselines
from baselines.contract import realistic_problem
from baselines.recipes import READING_A
from benchmarks.run.executors import open_workbench
from benchmarks.suites import load as suites
from benchmarks.workbench.base import Workbench
from epmq.calibration import Calibration, Target
from epmq.errors import UserError
from epmq.files import replacing
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec
from epmq.layer.weight import QuantizedWeight
from epmq.merging import options_of
from epmq.models.layers import layer_groups
from epmq.walk import walk

MERGE = "task-arithmetic"
SAMPLES = 128
SPECS = (QuantSpec(4), QuantSpec(3), QuantSpec(2), QuantSpec(2, group_size=32))
TARGETS: tuple[Target, ...] = ("merged", "expert")


@dataclass
class Measured:
    """One rounding's objectives and processor seconds, a layer each."""

    objectives: list[float]
    seconds: list[float]

    def row(self, against: Measured) -> dict[str, float]:
        """Relative to another rounding: the geometric mean over layers and the worst; mean seconds."""
        pairs = zip(self.objectives, against.objectives, strict=True)
        logs = [math.log(ours / theirs) for ours, theirs in pairs]
        return {
            "ratio": math.exp(sum(logs) / len(logs)),
            "worst": math.exp(max(logs)),
            "seconds": sum(self.seconds) / len(self.seconds),
        }


def measure(
    workbench: Workbench, target: Target, spec: QuantSpec, names: list[str], samples: int = SAMPLES
) -> dict[str, Measured]:
    """Every named rounding on every layer's problem in a walk of GPTQ's."""
    found = {name: Measured([], []) for name in names}
    gptq = baselines.get("gptq")
    for name in names:  # what is compiled at the first call
        baselines.get(name)(realistic_problem(rows=4, columns=32), spec)

    def solve(problem: LayerProblem) -> QuantizedWeight:
        for name, measured in found.items():
            start = time.process_time()
            solution = baselines.get(name)(problem, spec)
            measured.seconds.append(time.process_time() - start)
            measured.objectives.append(problem.objective(solution.dequantize()))
        return gptq(problem, spec)

    tower = workbench.merged(MERGE, options_of(MERGE, {}))
    axes = READING_A.calibration({}, rounded=True) if target == "expert" else Calibration()
    inputs = workbench.calibration_inputs(samples, 0, None if workbench.suite.kind == "clip" else "experts")
    steps = walk(tower, workbench.models.experts, inputs, axes, solve, base=workbench.models.base)
    for _ in tqdm(steps, desc=f"{target}, {spec.bits} bits", total=len(layer_groups(tower, axes.layers))):
        pass
    return found


def search(workbench: Workbench, file: Path, samples: int = SAMPLES) -> dict[str, Any]:
    """Measure what the file lacks; returns its content.

    Raises:
        UserError: the file is of another suite, or is not what this study writes.
    """
    names, suite = baselines.names(), workbench.suite.name
    told = {"suite": suite, "merge": MERGE, "samples": samples}
    content: dict[str, Any] = {**told, "rows": []}
    if file.exists():
        content = _read(file)
        if {name: content.get(name) for name in told} != told:
            raise UserError(f"{file}: is not of {told}; give another --out")
    for target, spec in product(TARGETS, SPECS):
        where = {"target": target, "bits": spec.bits, "group_size": spec.group_size}
        there = {row["rounding"] for row in content["rows"] if row.items() >= where.items()}
        if missing := [name for name in names if name not in there]:
            found = measure(workbench, target, spec, list({"gptq": None, **dict.fromkeys(missing)}), samples)
            rows = {name: {**where, "rounding": name, **m.row(found["gptq"])} for name, m in found.items()}
            content["layers"] = len(found["gptq"].objectives)
            content["rows"] += [rows[name] for name in missing]
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
    return content


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found["rows"], list):
            raise TypeError
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file}: is not a file of this study; give another --out") from error
    return dict(found)


def table(content: dict[str, Any]) -> str:
    """Markdown: a line for each rounding, ratios by target and grid, then mean milliseconds a layer."""
    rows = content["rows"]
    heading = [
        "rounding",
        *(f"{target}, {_grid(spec)}" for target, spec in product(TARGETS, SPECS)),
        "ms a layer",
    ]
    lines = []
    for name in sorted({row["rounding"] for row in rows}, key=lambda name: (name != "gptq", name)):
        own = [row for row in rows if row["rounding"] == name]
        seconds = sum(row["seconds"] for row in own) / len(own)
        lines.append([f"`{name}`", *_ratios(own), f"{1000 * seconds:.0f}"])
    return tabulate(lines, heading, "pipe", disable_numparse=True)


def _ratios(own: list[dict[str, Any]]) -> Iterator[str]:
    for target, spec in product(TARGETS, SPECS):
        where = {"target": target, "bits": spec.bits, "group_size": spec.group_size}
        found = [row["ratio"] for row in own if row.items() >= where.items()]
        yield f"{found[0]:.2f}" if found else "not run"


def _grid(spec: QuantSpec) -> str:
    return f"{spec.bits} bits" + (f" in {spec.group_size}" if spec.group_size else "")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", help="an embedded suite")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON, made or gone on with")
    options = parser.parse_args()
    print(table(search(open_workbench(suites.load(options.suite)), options.out)))


if __name__ == "__main__":
    main()
