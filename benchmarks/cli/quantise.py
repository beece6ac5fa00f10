"""``epmq quantise``: models and samples of one's own to a checkpoint folder, without a suite file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# What needs torch is imported by the command itself, for it takes seconds.
from benchmarks.cli.paths import given_path, home
from benchmarks.cli.run import MERGE_OPTIONS, add_axes, add_merge_options, given
from benchmarks.cli.screen import show
from benchmarks.suites import load as suites
from benchmarks.suites.any_lm import MAX_LENGTH
from benchmarks.suites.strict import PLAIN
from epmq.errors import UserError

if TYPE_CHECKING:
    from epmq.packed.writing import Written


def add_to(commands: Any) -> None:
    """Add the command to the parser's sub-commands."""
    parser = commands.add_parser(
        "quantise",
        help="merge and quantise models of your own into a checkpoint folder",
        description="A base, its experts and a few samples without labels become a small checkpoint. Tasks "
        "are names of yours. After an interruption, run the same command again.",
    )
    parser.add_argument(
        "--base",
        type=home,
        required=True,
        metavar="ID",
        help="the model that experts come from: a folder, a hub id or ID@REVISION; a CLIP, a T5, or a "
        "Llama-, Mistral- or Qwen-like model",
    )
    parser.add_argument(
        "--expert",
        action="append",
        required=True,
        metavar="TASK=ID",
        help="an expert, whole or LoRA, named as the base is; once for each",
    )
    parser.add_argument(
        "--samples",
        action="append",
        required=True,
        metavar="TASK=WHERE",
        help="what calibrates it: a folder of images, a text file (.txt, a prompt a line, or .jsonl), or a "
        "data set (a folder, a .parquet file, a hub id or ID@REVISION)",
    )
    parser.add_argument("--to", type=given_path, metavar="DIR", help="the checkpoint folder, which is made")
    parser.add_argument(
        "--format", default="compressed-tensors", help="compressed-tensors (default), dense or epmq"
    )
    parser.add_argument("--merge", default="task-arithmetic", metavar="NAME", help="(task-arithmetic)")
    parser.add_argument("--method", default="epmq-features", metavar="NAME", help="(epmq-features)")
    parser.add_argument("--target", default="merged", help="of a rounding: merged (default) or expert")
    parser.add_argument("--bits", type=int, default=4, metavar="N", help="2 to 8 (4)")
    _add_samples(parser)
    machine = parser.add_argument_group("how it is computed")
    machine.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")
    machine.add_argument("--workers", type=int, metavar="N", help="processes that decode images")
    machine.add_argument("--plan", action="store_true", help="print what would be done and do nothing")
    add_merge_options(add_axes(parser))
    parser.set_defaults(command=_quantise)


def _add_samples(parser: Any) -> None:
    group = parser.add_argument_group("which samples")
    group.add_argument("--count", type=int, default=128, metavar="N", help="samples of each task (128)")
    group.add_argument("--seed", type=int, default=0, help="draw of the samples (0)")
    group.add_argument("--split", default="train", help="of data sets (train)")
    group.add_argument("--column", metavar="NAME", help="of data sets and .jsonl, where there are several")
    group.add_argument(
        "--decoder",
        metavar="STR",
        help="text: calibration also reads what the experts answer, or start alone (experts)",
    )
    group.add_argument(
        "--max-length", type=int, default=MAX_LENGTH, metavar="N", help=f"tokens of a prompt ({MAX_LENGTH})"
    )
    group.add_argument(
        "--answer-tokens", type=int, default=32, metavar="N", help="tokens of an expert's answer at most (32)"
    )


def _quantise(options: argparse.Namespace) -> int:
    experts = _by_task(options.expert, "--expert")
    where = _by_task(options.samples, "--samples")
    if options.to is None and not options.plan:
        raise UserError("arguments are required: --to DIR, the checkpoint folder, or --plan")
    if options.workers is not None and options.workers < 0:
        raise UserError(f"--workers {options.workers} is out of range; give 0 or more")
    from benchmarks.own.asked import Asked
    from benchmarks.own.quantise import quantise
    from benchmarks.own.samples import Asked as Samples
    from benchmarks.workbench.machine import Machine

    asked = Asked(
        base=options.base,
        experts=experts,
        samples={t: Samples(t, place, options.split, options.column) for t, place in where.items()},
        merge=options.merge,
        merge_options=given(options, MERGE_OPTIONS),
        method=options.method,
        target=options.target,
        bits=options.bits,
        count=options.count,
        seed=options.seed,
        decoder=options.decoder,
        max_length=options.max_length,
        answer_tokens=options.answer_tokens,
        calibration=given(options, suites.CALIBRATION_AXES),
        refinement=given(options, suites.REFINEMENT_AXES, prefix="refine_"),
        spec=given(options, suites.SPEC_AXES),
    )
    written = quantise(
        asked,
        options.to or Path(),
        format=options.format,
        machine=Machine.choose(options.device),
        workers=options.workers,
        say=lambda text: show(f"{text}\n"),
        only_plan=options.plan,
    )
    if written is not None:
        show(f"\n{_told(written)}\n")
    return 0


def _told(written: Written) -> str:
    """What was written, in a line or two."""
    size = f"{written.file_bytes / 1e6:.2f} MB"
    lines = [f"{written.folder}: {written.format}, {size}; its README.md says how to load it"]
    if written.packed_weights:
        bits = 8 * written.packed_bytes / written.packed_weights
        lines.append(f"{written.packed_weights} weights are packed, {bits:.2f} bits each with scales")
    lines += [f"{name} is stored dense: {reason}" for name, reason in written.dense.items()]
    return "\n".join(lines)


def _by_task(values: Sequence[str], flag: str) -> dict[str, str]:
    """``TASK=WHERE`` by task; raises UserError."""
    found: dict[str, str] = {}
    for value in values:
        task, equals, where = value.partition("=")
        if not equals or not where or not PLAIN.fullmatch(task):
            raise UserError(f"{flag} {value[:100]!r} is not TASK=WHERE, as cars=models/cars; correct it")
        if task in found:
            raise UserError(f"{flag} {task} is given twice; give every task one")
        found[task] = home(where)
    return found
