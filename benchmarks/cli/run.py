"""``epmq run``: computes the cells of a comparison that a results folder lacks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cli import lm

# What needs torch is imported by the command itself, for it takes seconds.
from benchmarks.cli.paths import given_path, home
from benchmarks.cli.screen import show
from benchmarks.cli.tables import report_problems
from benchmarks.suites import load as suites
from epmq.errors import UserError
from results.analysis.analysis import Analysis

MERGE_OPTIONS = {  # by name: the type and what it is
    "scale": (float, "factors on the task vectors (each merge has its own)"),
    "keep": (float, "TIES: shares of entries kept (0.2)"),
    "common": (float, "Iso-CTS: shares of the rank that all tasks have in common (0.8)"),
    "drop": (float, "DARE: shares of entries dropped (0.5)"),
    "drop_seed": (int, "DARE: seeds of what is dropped (0)"),
    "floor": (float, "singular-value calibration: least coefficients (0.1)"),
    "mask": (float, "consensus: how large a task's entry is beside the others' sum (0.4)"),
    "agreeing": (int, "consensus: least numbers of tasks that agree (2)"),
}
MOST_SEEDS = 1000  # draws of one command


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
    run = commands.add_parser(
        "run",
        help="compute the cells of a comparison that a results folder lacks",
        description="Cross-product of merges, methods, targets and bits, with the controls. What is not "
        "given comes from the suite's named comparison. After an interruption, run the same command again.",
    )
    run.add_argument(
        "suite", type=home, help="a suite's name (see 'epmq list'), the path of a suite file, or lm"
    )
    run.add_argument("--out", type=given_path, metavar="DIR", help="results folder, made if missing")
    run.add_argument(
        "--comparison", default="default", help="the suite's comparison to start from (default: default)"
    )
    run.add_argument("--merge", nargs="+", metavar="NAME")
    run.add_argument(
        "--method",
        nargs="*",
        metavar="NAME",
        help="roundings or familiar names; patterns allowed; no name leaves them out",
    )
    run.add_argument("--target", nargs="+", metavar="TARGET", help="of roundings: merged, expert")
    run.add_argument("--bits", nargs="+", type=int, metavar="N", help="2 to 8")
    run.add_argument("--controls", nargs="*", metavar="NAME", help="see 'epmq list'; no name leaves them out")
    run.add_argument(
        "--samples",
        nargs="+",
        type=int,
        metavar="N",
        help="calibration samples per task, one number or several",
    )
    run.add_argument("--seed", type=int, default=0, help="draw of the calibration samples (default 0)")
    run.add_argument("--seeds", type=int, default=1, metavar="N", help="so many draws from --seed on (1)")
    lm.add_to(run)
    _add_machine(run)
    axes = add_axes(run)
    axes.add_argument(
        "--decoder",
        metavar="STR",
        help="text: calibration reads what the experts generate, the targets, or start alone (experts)",
    )
    add_merge_options(axes, nargs="+")
    run.set_defaults(command=_run)


def add_axes(parser: Any) -> Any:
    """Add the axes of calibration, grid and refinement; returns the group of the first two."""
    axes = parser.add_argument_group("axes that the paper leaves open (defaults in parentheses)")
    for name, default in {**suites.CALIBRATION_AXES, **suites.SPEC_AXES}.items():
        _add_axis(axes, name, default)
    refining = parser.add_argument_group(
        "axes of rows that are refined end to end (defaults of a row may differ)"
    )
    for name, default in suites.REFINEMENT_AXES.items():
        _add_axis(refining, name, default, prefix="refine_")
    return axes


def add_merge_options(group: Any, **how: Any) -> None:
    """Add the options of merges; ``how`` goes to every ``add_argument``."""
    for name, (kind, what) in MERGE_OPTIONS.items():
        metavar = "N" if kind is int else "X"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=what, **how)


def _add_machine(run: Any) -> None:
    group = run.add_argument_group("how it is computed")
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    group.add_argument("--dtype", default="float32", help="of evaluation: float32, bfloat16 or float16")
    group.add_argument("--together", type=int, default=1, metavar="N", help="models per evaluation pass (1)")
    group.add_argument("--workers", type=int, metavar="N", help="processes that decode images")
    group.add_argument(
        "--keep-models",
        action="store_true",
        default=None,
        help="keep the cells' models in EPMQ_CACHE, packed, for 'epmq export'",
    )
    group.add_argument("--executor", default="local", help="local, or ray (needs the extra epmq[ray])")
    group.add_argument("--lock", type=given_path, metavar="FILE", help="lock file (default: the suite's own)")
    group.add_argument("--unpinned", action="store_true", help="take the hub's newest, and say so in records")
    group.add_argument("--plan", action="store_true", help="print what would be done and download nothing")


def _add_axis(group: Any, name: str, default: Any, prefix: str = "") -> None:
    flag = "--" + (prefix + name).replace("_", "-")
    if isinstance(default, bool):
        group.add_argument(flag, action="store_true", default=None, help="(off)")
    else:
        kind = int if default is None else type(default)
        group.add_argument(flag, type=kind, metavar=kind.__name__.upper(), help=f"({default})")


def _run(options: argparse.Namespace) -> int:
    suite = lm.suite(options)
    chosen = suites.options(suite, options.comparison)
    chosen |= {name: getattr(options, name) for name in chosen if getattr(options, name, None) is not None}
    chosen["calibration"] |= given(options, suites.CALIBRATION_AXES)
    chosen["refinement"] |= given(options, suites.REFINEMENT_AXES, prefix="refine_")
    chosen["spec"] |= given(options, suites.SPEC_AXES)
    if options.out is None and not options.plan:
        raise UserError(
            "arguments are required: --out DIR, the results folder, or --plan; see 'epmq run --help'"
        )
    _refuse_out_of_range(options)
    from benchmarks.run.cells import Request, expand
    from benchmarks.run.executors import executor
    from benchmarks.run.plan import plan
    from benchmarks.run.runner import run
    from benchmarks.sources.lock import default_path
    from benchmarks.sources.pin import lock_for_run
    from benchmarks.workbench.base import Setting
    from benchmarks.workbench.machine import Machine

    request = Request(
        **chosen,
        seeds=range(options.seed, options.seed + options.seeds),
        decoder=options.decoder,
        merge_options=_crossed(given(options, MERGE_OPTIONS)),
    )
    machine = Machine.choose(options.device, options.dtype)
    if options.plan:
        there = (options.lock or default_path(suite)).exists()
        lock = lock_for_run(suite, options.lock, unpinned=options.unpinned) if there else None
        show(f"{plan(suite, expand(request), lock, machine)}\n")
        return 0
    execute = executor(options.executor)
    lock = lock_for_run(suite, options.lock, unpinned=options.unpinned)
    how = given(options, ("together", "workers", "keep_models"))
    setting = Setting(machine, lock, pinned=not options.unpinned, **how)
    asked = {k: v for k, v in vars(options).items() if k not in ("command", "out") and v is not None}
    asked = {k: str(v) if isinstance(v, Path) else v for k, v in asked.items()}
    folder = run(suite, request, options.out, asked, setting, execute)
    analysis = Analysis(folder)
    report_problems(analysis)
    print(
        f"{len(analysis.records)} cells in {folder.path}; 'epmq table {folder.path}' prints them",
        file=sys.stderr,
    )
    return 0


def _refuse_out_of_range(options: argparse.Namespace) -> None:
    """Refuse numbers that no machine could follow, before anything is made of them; raises UserError."""
    for name in ("seeds", "together"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)} is out of range; give 1 or more")
    if options.seeds > MOST_SEEDS:
        raise UserError(f"--seeds {options.seeds} is out of range; give 1 to {MOST_SEEDS}")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers} is out of range; give 0 or more")


def _crossed(options: dict[str, list[float]]) -> list[dict[str, float]]:
    """Every combination of the values given to each option."""
    return [dict(zip(options, values, strict=True)) for values in product(*options.values())]


def given(options: argparse.Namespace, names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """The options of these names that a command gives."""
    found = {name: getattr(options, prefix + name) for name in names}
    return {name: value for name, value in found.items() if value is not None}
