"""What ``epmq quantise`` will do, in words, before it does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from benchmarks.own.asked import Asked
from benchmarks.own.models import Form, OwnSources, Place
from benchmarks.own.samples import Samples
from benchmarks.run.cells import Cell
from benchmarks.run.plan import Plan, machine_rate, size
from benchmarks.sources.resolve import chosen, model_files
from benchmarks.suites.forms import Suite
from benchmarks.workbench.machine import Machine
from epmq.layer.spec import SCALE_BITS, QuantSpec


def plan(
    asked: Asked,
    form: Form,
    cell: Cell,
    suite: Suite,
    samples: Mapping[str, Samples],
    sources: OwnSources,
    machine: Machine,
) -> str:
    """The plan as text; the hub is asked for sizes, and nothing is downloaded.

    Args:
        samples: those that were drawn; of others, on the hub, nothing is known yet.
    """
    rows = [
        [task, expert, asked.count, _available(task, samples), asked.samples[task].where]
        for task, expert in asked.experts.items()
    ]
    kind = {"clip": f"a CLIP image tower ({form.library})", "text": f"a language model ({form.architecture})"}
    parts = [
        f"base: {asked.base}, {kind[form.kind]}",
        tabulate(rows, ["task", "expert", "samples", "of", "from"], disable_numparse=True),
        "\n".join(
            [
                f"merge: {_with(cell)}",
                f"method: {_method(cell)}",
                f"grid: {_grid(cell.spec, form)}",
            ]
        ),
    ]
    if downloads := _downloads(asked, suite, sources):
        parts.append(tabulate(downloads, ["download at most", "commit", "size"], disable_numparse=True))
    if form.tower is not None:
        parts.append(Plan(suite, [cell], [], machine_rate(machine), machine).needs())
    return "\n\n".join(parts)


def _available(task: str, samples: Mapping[str, Samples]) -> str:
    return str(samples[task].available) if task in samples else "not yet known"


def _with(cell: Cell) -> str:
    """What the method starts from, with the merge's options."""
    return ", ".join([cell.start, *(f"{key} {value}" for key, value in cell.merge_options.items())])


def _method(cell: Cell) -> str:
    """The rounding, its target and what comes before and after."""
    last = cell.passes[-1]
    said = [cell.method, f"rounded by {cell.rounding}", f"target {last.target}"]
    if cell.decoder is not None:
        said.append(f"decoder reads {cell.decoder}" if cell.decoder != "experts" else "experts' answers read")
    if cell.search is not None:
        said.append("options are chosen on held-out samples")
    for place, refining in (("before", cell.before), ("after", cell.after)):
        if refining is not None:
            said.append(f"{refining.name} {place} it, {refining.budget.steps} steps")
    return ", ".join(said)


def _grid(spec: QuantSpec | None, form: Form) -> str:
    assert spec is not None
    step = "output channel" if spec.group_size is None else f"{spec.group_size} inputs"
    kind = "symmetric" if spec.symmetric else "asymmetric"
    kind = kind if spec.grid == "uniform" else f"levels of {spec.grid}"
    said = f"{spec.bits} bits, {kind}, a scale per {step}"
    columns = spec.group_size or form.width
    if columns is None:
        return said
    step_bits = SCALE_BITS[spec.scale_dtype] + (0 if spec.symmetric else spec.bits)
    return f"{said}; about {spec.bits + step_bits / columns:.2f} bits a weight with scales"


def _downloads(asked: Asked, suite: Suite, sources: OwnSources) -> list[list[str]]:
    found = []
    for where in dict.fromkeys([asked.base, *asked.experts.values()]):
        if Path(where).is_dir():
            continue
        there = sources.listed(Place.of(where, "model"))
        names = chosen(there.sizes, model_files(suite, where))
        found.append([where, there.revision[:12], size(sum(there.sizes[name] for name in names))])
    return found
