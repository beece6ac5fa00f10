"""The model card of an exported cell, from its record and its suite."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.suites.forms import Suite
from benchmarks.suites.load import locate, on_hub
from benchmarks.workbench.base import Workbench
from epmq.packed.writing import Written
from results.analysis.stats import NORMAL_95, standard_error
from results.store.records import Record, TaskResult

HEAD = "---\ntags: [epmq, quantised, model-merging]\n---\n\n# "  # the hub's front matter
LOADING = {
    "compressed-tensors": "{kind}.from_pretrained(FOLDER)  # needs the package compressed-tensors",
    "dense": "{kind}.from_pretrained(FOLDER)",
    "epmq": "epmq.load_weights(model, FOLDER)  # into a model of the base's architecture",
}


def card(record: Record, workbench: Workbench, written: Written) -> str:
    """Markdown with the hub's front matter."""
    suite, revisions = workbench.suite, workbench.revisions
    title = f"{suite.name}: {record.method}, {_bits(record)}"
    parts = [
        HEAD + title,
        "Several experts, merged into one model"
        + (f" and quantised to {record.bits} bits.\n" if record.bits else ".\n")
        + "Made by epmq, a benchmark suite for post-merge quantisation; `epmq.json` names the record of its "
        "measurement by hash.",
        "## Sources\n\n" + sources(suite, revisions),
        "## How it was made\n\n" + _made(record, written),
        "## Measured\n\n" + _measured(record),
        "## Loading\n\n" + loading(written),
        "## Licences\n\n" + _licences(workbench),
    ]
    return "\n\n".join(parts) + "\n"


def _bits(record: Record) -> str:
    return f"{record.bits} bits" if record.bits else "full precision"


def sources(suite: Suite, revisions: dict[str, Any]) -> str:
    """A table of base and experts with their revisions."""
    experts = revisions["experts"]
    rows = [("base", named(suite.base), revisions["base"])]
    rows += [(f"expert of {task.task}", named(task.expert), experts[task.task]) for task in suite.tasks]
    return tabulate(rows, ("", "model", "revision"), "github", disable_numparse=True)


def named(where: str) -> str:
    """A model as others can know it: of a folder its last two names, and nothing of this machine."""
    return where if on_hub(where) or where.startswith("package:") else "/".join(Path(where).parts[-2:])


def _made(record: Record, written: Written) -> str:
    rows: list[tuple[str, Any]] = [
        ("merge", merge_told(record.merge, record.merge_options)),
        ("method", record.method),
        ("calibration", f"{record.axes.get('samples', 'no')} samples a task, seed {record.seed}, no labels"),
    ]
    if record.search is not None:
        rows.append(("chosen", ", ".join(f"{n} {v}" for n, v in record.search.setting.items())))
    if record.bits_per_weight:
        rows.append(("bits a weight, with scales", f"{record.bits_per_weight:.3f}"))
    if written.packed_weights:
        stored = 8 * written.packed_bytes / written.packed_weights
        rows.append((f"bits a weight in {written.format}", f"{stored:.3f}"))
    rows.append(
        (
            "weights on disk",
            f"{written.file_bytes / 1e6:.2f} MB, of which dense {written.dense_bytes / 1e6:.2f} MB",
        )
    )
    axes = {n: v for n, v in record.axes.items() if n not in ("samples", "decoder")}
    return making(rows, axes, written)


def merge_told(name: str | None, options: Mapping[str, Any]) -> str:
    """A merge with its options, in words."""
    given = ", ".join(f"{option} {value}" for option, value in options.items())
    return (name or "none") + (f" ({given})" if given else "")


def making(rows: Sequence[tuple[str, Any]], axes: Mapping[str, Any], written: Written) -> str:
    """How a checkpoint was made: a table, every axis, and the layers that are stored dense."""
    text = tabulate(rows, ("", ""), "github", disable_numparse=True)
    if axes:
        text += "\n\nEvery axis: " + ", ".join(f"`{name}` {value}" for name, value in axes.items()) + "."
    if written.dense:
        listed = "\n".join(f"- `{name}`: {reason}" for name, reason in sorted(written.dense.items()))
        text += f"\n\nQuantised layers that are stored dense:\n\n{listed}"
    return text


def _measured(record: Record) -> str:
    rows: list[tuple[Any, ...]] = [
        (name, task.metric, *_interval({name: task}), task.samples) for name, task in record.tasks.items()
    ]
    rows.append(("average", "", *_interval(record.tasks), ""))
    head = ("task", "metric", "value", "95 % interval", "samples")
    told = f"On {record.suite} version {record.suite_version}, cell `{record.key}`, in percent."
    return told + "\n\n" + tabulate(rows, head, "github", disable_numparse=True)


def _interval(tasks: dict[str, TaskResult]) -> tuple[str, str]:
    value = math.fsum(task.value for task in tasks.values()) / len(tasks)
    reach = NORMAL_95 * standard_error(tasks)
    low, high = max(-1.0, value - reach), min(1.0, value + reach)
    return f"{100 * value:.2f}", f"{100 * low:.2f} to {100 * high:.2f}"


def loading(written: Written) -> str:
    """How the folder is loaded, and what memory that takes."""
    how = LOADING[written.format].format(kind="Model")
    text = f"```text\n{how}\n```"
    if written.format == "dense":
        return text + "\n\nThe weights are dequantised: they take the memory of any float32 model."
    if written.format == "compressed-tensors" and written.transformers_unpacks:
        text += (
            "\n\ntransformers makes the layers dense as it loads them (`dequantize` in `config.json`): the "
            "folder is small on disk, the model in memory is not."
        )
    elif written.format == "compressed-tensors":
        text += "\n\ntransformers makes the layers dense in the first pass; vLLM computes with packed ones."
    return text + "\n\n`Model` is the class that `architectures` in `config.json` names."


def _licences(workbench: Workbench) -> str:
    suite = workbench.suite
    lines = [f"- base {named(suite.base)}: {licence(suite.base)}"]
    lines += [f"- expert of {t.task}, {named(t.expert)}: {licence(t.expert)}" for t in suite.tasks]
    lines += [f"- data of {t.task}: {t.dataset.licence}" for t in suite.tasks]
    return derived(lines)


def derived(lines: Sequence[str]) -> str:
    """The section of the licences of what a model is made from."""
    return "This model is derived from these; their terms hold.\n\n" + "\n".join(lines)


def licence(where: str) -> str:
    """What the front matter of a local model's card says."""
    if on_hub(where):
        return "see its card on the hub"
    if where.startswith("package:"):
        return "bundled with epmq, see its NOTICE"
    file = locate(where) / "README.md"
    found = None
    if file.is_file():
        found = re.search(r"^license: *(\S+)", file.read_text("utf-8", errors="replace")[:4096], re.MULTILINE)
    return found[1] if found else "not stated beside it; ask whoever gave it to you"
