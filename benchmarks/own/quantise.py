"""A base, its experts and a few unlabelled samples to a checkpoint folder, in one call."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from benchmarks.export.card import named
from benchmarks.own.asked import Asked, cell, suite
from benchmarks.own.card import card
from benchmarks.own.models import OwnSources, form_of
from benchmarks.own.plan import plan
from benchmarks.own.samples import Samples, drawn
from benchmarks.own.solved import Solved
from benchmarks.own.workbench import open_workbench
from benchmarks.run import compute, unfinished
from benchmarks.run.cells import Cell
from benchmarks.run.outcome import Outcome
from benchmarks.run.plan import size
from benchmarks.run.provenance import code_of
from benchmarks.sources.resolve import model_files
from benchmarks.workbench.base import Setting, Workbench
from benchmarks.workbench.machine import Machine
from epmq.errors import UserError, choose
from epmq.models.layers import layer_groups
from epmq.models.tower import Tower
from epmq.packed.new_folder import nearest_there, refuse_taken
from epmq.packed.writing import Format, Written, write_checkpoint

SPARE = 1.05  # of the disk, over what the weights take


def quantise(
    asked: Asked,
    to: Path,
    *,
    format: Format = "compressed-tensors",  # noqa: A002, the command line's word
    machine: Machine | None = None,
    workers: int | None = None,
    say: Callable[[str], object] = lambda _: None,
    only_plan: bool = False,
) -> Written | None:
    """Merge and quantise what is asked for, and write it as a checkpoint folder, whole or not at all.

    What a killed call had finished (merged weights, rounded layers, refinement steps) is in the cache, and
    the same call goes on from there.

    Args:
        to: must not be there.
        format: one of :data:`epmq.packed.writing.Format`.
        workers: processes that decode images.
        say: is given the plan, before any weights are read.
        only_plan: stop there.

    Raises:
        UserError: anything is not what it should be; nothing is written then.
    """
    machine = machine or Machine.choose()
    if not only_plan:
        refuse_taken(to)
    choose("format", format, get_args(Format))
    asked.refuse_mistakes()
    sources = OwnSources()
    form = form_of(sources.configuration(asked.base))
    one, made_up = cell(asked, form), suite(asked, form)
    here = {task: x for task, x in asked.samples.items() if Path(x.where).exists()}
    samples = {task: drawn(each, form.kind, asked.count, asked.seed) for task, each in here.items()}
    say(plan(asked, form, one, made_up, samples, sources, machine))
    if only_plan:
        return None
    for task, each in asked.samples.items():
        if task not in samples:
            samples[task] = drawn(each, form.kind, asked.count, asked.seed)
    setting = Setting(machine) if workers is None else Setting(machine, workers=workers)
    workbench = open_workbench(
        made_up, setting, sources, {task: samples[task] for task in asked.experts}, asked.answer_tokens
    )
    compute.refuse_impossible(workbench, one)
    _refuse_unfit(workbench.tower, one, format, to)
    source = sources.model(asked.base, model_files(made_up, asked.base)).folder
    return _made(workbench, one, samples, source, to, format)


def _refuse_unfit(tower: Tower, one: Cell, format: Format, to: Path) -> None:  # noqa: A002
    """Refuse what could not be written, as far as it is known before the work; raises UserError."""
    assert one.spec is not None
    quantised = {
        f"{part}.{path}.weight"
        for part, group in layer_groups(tower, one.passes[-1].layers).values()
        for path in group
    }
    if format == "compressed-tensors" and all(name.startswith("stem.") for name in quantised):
        raise UserError("compressed-tensors holds linear layers alone; give --format epmq for embeddings")
    size_of = {name: parameter.numel() for name, parameter in tower.named_parameters()}
    packed = sum(n * one.spec.bits // 8 for name, n in size_of.items() if name in quantised)
    rest = sum(2 * n for name, n in size_of.items() if name not in quantised or format == "dense")
    needed = int(SPARE * (rest + (0 if format == "dense" else packed)))
    nearest = nearest_there(to)
    if (free := shutil.disk_usage(nearest).free) < needed:
        raise UserError(
            f"{to}: needs {size(needed)} at least, {nearest} has {size(free)} left; free some space or "
            "choose another folder"
        )


def _made(
    workbench: Workbench,
    one: Cell,
    samples: Mapping[str, Samples],
    source: Path,
    to: Path,
    format: Format,  # noqa: A002
) -> Written:
    assert one.samples is not None
    assert one.spec is not None
    workbench.calibration_inputs(one.samples, one.seed, one.decoder)  # before the long work
    folder = unfinished.place(workbench, "solved/*", asdict(one), one.modules)
    solved = Solved(folder, one.spec)
    outcome = Outcome()
    tower, weights = compute.model(workbench, one, outcome, solved)
    if solved.read:
        print(f"epmq: {solved.read} layers were rounded before an interruption", file=sys.stderr)
    written = write_checkpoint(
        to,
        model=tower,
        weights=weights,
        source=source,
        format=format,
        card=lambda about: card(one, workbench, samples, about),
        note=_note(workbench, one, outcome),
    )
    solved.forget()
    return written


def _note(workbench: Workbench, one: Cell, outcome: Outcome) -> dict[str, Any]:
    """Where the checkpoint comes from, as JSON."""
    suite = workbench.suite
    return {
        "base": named(suite.base),
        "experts": {task.task: named(task.expert) for task in suite.tasks},
        "samples": {task.task: named(task.dataset.path) for task in suite.tasks},
        "revisions": workbench.revisions,
        "merge": one.merge,
        "merge_options": one.merge_options,
        "method": one.method,
        "axes": one.axes,
        "seed": one.seed,
        "code_sha256": code_of(one),
        "seconds": outcome.seconds,
    }
