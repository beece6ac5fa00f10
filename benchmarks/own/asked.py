"""What ``epmq quantise`` is asked for, as the one cell and the suite that the benchmark would compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from baselines.controls import CONTROLS
from benchmarks.own.models import Form, refuse_absent
from benchmarks.own.samples import Asked as AskedSamples
from benchmarks.run.cells import DECODERS, Cell, Request, expand
from benchmarks.suites.any_lm import MAX_LENGTH
from benchmarks.suites.forms import (
    ClipSuite,
    ImageData,
    ImageTask,
    Suite,
    TextData,
    TextSuite,
    TextTask,
)
from epmq.calibration import Target
from epmq.errors import UserError, choose, nearest

COUNT = 128  # samples a task; GPTQ's own number
ANSWER_TOKENS = 32
NAME = "quantise"
SPLIT = "samples"  # all that there are of a task
PROCESSOR = "fast"  # of the two CLIP image processors, what transformers takes by default


@dataclass(frozen=True)
class Asked:
    """Models, samples, merge and method; no suite and no labels.

    Attributes:
        base: a folder, ``owner/name`` or ``owner/name@revision``.
        experts: the same by task; whole models or LoRA adapters.
        samples: of each task; ``count`` of them are drawn by ``seed``.
        method: a rounding, familiar name or control of ``epmq list`` that rounds.
        target: of a rounding that brings no target of its own.
        decoder: of language models, what calibration reads besides prompts; one of ``cells.DECODERS``.
        max_length, answer_tokens: of language models, tokens of a prompt and of an expert's answer.
        calibration, refinement, spec: axes over the defaults, by name.
    """

    base: str
    experts: Mapping[str, str]
    samples: Mapping[str, AskedSamples]
    merge: str = "task-arithmetic"
    merge_options: Mapping[str, Any] = field(default_factory=dict)
    method: str = "epmq-features"
    target: Target = "merged"
    bits: int = 4
    count: int = COUNT
    seed: int = 0
    decoder: str | None = None
    max_length: int = MAX_LENGTH
    answer_tokens: int = ANSWER_TOKENS
    calibration: dict[str, Any] = field(default_factory=dict)
    refinement: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    def refuse_mistakes(self) -> None:
        """Refuse names that do not fit together and numbers out of range; raises UserError."""
        if not self.experts:
            raise UserError("no expert is given; give --expert TASK=ID for each")
        for task in self.samples:
            if task not in self.experts:
                raise UserError(
                    f"samples of {task!r}: no expert is of that task{nearest(task, self.experts)}"
                )
        if missing := [task for task in self.experts if task not in self.samples]:
            raise UserError(f"expert of {missing[0]!r} has no samples; give --samples {missing[0]}=WHERE")
        refuse_absent(self.base, "base")
        for task, where in self.experts.items():
            refuse_absent(where, f"expert of {task!r}")
        for name in ("count", "max_length", "answer_tokens"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} {getattr(self, name)} is out of range; give 1 or more")


def cell(asked: Asked, form: Form) -> Cell:
    """The one cell that makes the model.

    Raises:
        UserError: a name is unknown, a value out of range, or the method leaves full precision.
    """
    decoder = asked.decoder
    if form.kind == "text":
        decoder = decoder or "experts"
        choose("decoder", decoder, DECODERS)
        if decoder == "targets":
            raise UserError("--decoder targets needs labels, of which there are none; give experts or start")
    elif decoder is not None:
        raise UserError(f"--decoder {decoder!r} changes nothing in a CLIP model; leave it out")
    control = asked.method in CONTROLS
    request = Request(
        merge=[asked.merge],
        method=[] if control else [asked.method],
        target=[asked.target],
        bits=[asked.bits],
        controls=[asked.method] if control else [],
        samples=[asked.count],
        seeds=[asked.seed],
        decoder=decoder,
        merge_options=[dict(asked.merge_options)],
        pooled=form.kind == "clip",
        calibration=asked.calibration,
        refinement=asked.refinement,
        spec=asked.spec,
    )
    cells = expand(request)
    if len(cells) > 1:
        names = ", ".join(each.method for each in cells[:3])
        raise UserError(f"method {asked.method!r} is {names} and more; name one")
    if cells[0].spec is None or cells[0].own != "nothing":
        raise UserError(
            f"method {asked.method!r} leaves full precision; give one that rounds, as epmq-features"
        )
    for task in asked.experts:
        for refining in (cells[0].before, cells[0].after):
            if refining is not None:
                refining.budget.split(task, asked.count)
    return cells[0]


def suite(asked: Asked, form: Form) -> Suite:
    """What the workbenches read of a suite: models, tasks, layout. It comes from no file and has no tests."""
    tasks: list[Any] = [_task(asked, task, where, form) for task, where in asked.experts.items()]
    common: dict[str, Any] = {
        "name": NAME,
        "version": 1,
        "kind": form.kind,
        "description": f"{len(tasks)} experts of {asked.base}",
        "library": form.library,
        "base": asked.base,
        "tower": form.tower,
        "metric": "none",
        "comparisons": {},
        "checkpoints": {},
        "tasks": tasks,
    }
    if form.architecture is not None:
        return TextSuite.model_construct(
            **common, architecture=form.architecture, max_length=asked.max_length
        )
    processor = PROCESSOR if form.library == "transformers" else None
    return ClipSuite.model_construct(**common, image_processor=processor)


def _task(asked: Asked, task: str, where: str, form: Form) -> Any:
    data: dict[str, Any] = {
        "path": asked.samples[task].where,
        "config": None,
        "revision": None,
        "train_split": SPLIT,
        "eval_split": SPLIT,
        "label_column": "label",
        "train_size": None,
        "eval_size": None,
        "licence": "",
    }
    if form.kind == "text":
        given = TextData.model_construct(**data, columns=["text"])
        return TextTask.model_construct(task=task, dataset=given, expert=where, prompt=task)
    images = ImageData.model_construct(**data, image_column="image")
    return ImageTask.model_construct(task=task, dataset=images, expert=where, class_names=[], templates=[])
