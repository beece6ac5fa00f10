"""Time GPTQ against its textbook form, factorisation and loop apart and together: ``nox -s studies``.

The textbook form is written here as the paper's algorithm 1 reads: Cholesky, inverse, Cholesky; then an eager
loop over columns, block 128; all in float32. Ours factors in float64. Everything is measured in one process,
textbook and ours in turns, and medians are reported; a solve begins with the moments and ends with the codes.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from epmq.layer.gptq import gptq
from epmq.layer.grid import decode, encode, fit_grid
from epmq.layer.moments import Moments
from epmq.layer.problem import LayerProblem
from epmq.layer.spec import QuantSpec

SHAPES = ((768, 768), (2304, 768), (3072, 768), (768, 3072), (1024, 4096))
BLOCK = 128
TOLERANCE = 1e-3  # on the relative difference of the objectives: a tie in float32 changes the rest of its row


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write it with ``--out``; 1 when the objectives disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.speed_gptq", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="timings a median is taken of (default 9)")
    parser.add_argument("--threads", type=int, help="threads (default: all)")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--out", type=Path, help="write the measurements to this JSON file")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [measure(*shape, QuantSpec(options.bits), options.repeats) for shape in tqdm(SHAPES, leave=False)]
    print(environment())
    print(tabulate(rows, headers="keys", floatfmt=("", *[".2f"] * 9, ".4%", ".1e")))
    if options.out:
        options.out.write_text(json.dumps({"environment": environment(), "layers": rows}, indent=1) + "\n")
    return int(any(abs(row["objective"]) > TOLERANCE for row in rows))


def measure(rows: int, columns: int, spec: QuantSpec, repeats: int) -> dict[str, Any]:
    """One layer: milliseconds, ratios (textbook over ours), share of equal codes, objective gap."""
    problem = made_up_problem(rows, columns)
    bare = problem.hessian
    factor = textbook_factor(bare)
    ours, theirs = in_turns(
        lambda: LayerProblem(problem.centre, bare, problem.reference).factor,
        lambda: textbook_factor(bare.float()),
        repeats=repeats,
    )
    ours_loop, theirs_loop = in_turns(
        lambda: gptq(problem, spec), lambda: textbook_loop(problem.centre, factor, spec), repeats=repeats
    )
    moments = Moments.empty(problem.centre)
    moments.fold(bare)
    ours_solve, theirs_solve = in_turns(
        lambda: gptq(LayerProblem.from_moments(problem.centre, moments, target="merged"), spec),
        lambda: textbook_loop(problem.centre, textbook_factor(bare.float()), spec),
        repeats=repeats,
    )
    codes, scale, zero = textbook_loop(problem.centre, factor, spec)
    found = gptq(problem, spec)
    wanted = problem.objective(decode(codes, scale, zero, spec))
    return {
        "layer": f"{rows}x{columns}",
        "loop ms": ours_loop,
        "textbook ms": theirs_loop,
        "ratio": theirs_loop / ours_loop,
        "factor ms": ours,
        "textbook factor ms": theirs,
        "factor ratio": theirs / ours,
        "solve ms": ours_solve,
        "textbook solve ms": theirs_solve,
        "solve ratio": theirs_solve / ours_solve,
        "equal codes": float((codes == found.codes).double().mean()),
        "objective": problem.objective(found.dequantize()) / wanted - 1,
    }


def made_up_problem(rows: int, columns: int) -> LayerProblem:
    """A layer with correlated inputs of unequal variance, GPTQ's usual damping."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    spread = torch.exp(torch.randn(columns, 1, generator=generator))
    inputs = mix @ (spread * torch.randn(columns, 2 * columns, generator=generator))
    weight = 0.02 * torch.randn(rows, columns, generator=generator)
    return LayerProblem.merged(weight, [inputs @ inputs.T / inputs.shape[1]])


def textbook_factor(hessian: Tensor) -> Tensor:
    """The upper factor of the inverse Hessian by Cholesky, inverse and Cholesky again."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def textbook_loop(centre: Tensor, factor: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1, a column at a time in float32; codes, and the rows' scale and zero point."""
    weight, factor = centre.float(), factor.float()
    scale, zero = (t.float()[:, None] for t in fit_grid(centre, spec))
    codes = torch.zeros_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        stop = min(start + BLOCK, weight.shape[1])
        block, errors = weight[:, start:stop].clone(), torch.zeros_like(weight[:, start:stop])
        inside = factor[start:stop, start:stop]
        for column in range(stop - start):
            now = block[:, column : column + 1]
            code = encode(now, scale, zero, spec)
            error = (now - decode(code, scale, zero, spec)) / inside[column, column]
            block[:, column:] -= error @ inside[column : column + 1, column:]
            errors[:, column] = error[:, 0]
            codes[:, start + column] = code[:, 0]
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, scale, zero


def in_turns(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Median milliseconds of each function after one call to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:
                taken.append(1000 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def environment() -> str:
    """Where the numbers come from, in one line."""
    versions = f"torch {torch.__version__}, numba {numba.__version__}"
    return f"{platform.platform()}; {versions}; {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
