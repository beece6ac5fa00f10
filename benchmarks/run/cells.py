"""Cells: one row of a comparison, described by everything that can change its numbers."""

from __future__ import annotations

import collections
import hashlib
import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from baselines.recipes import FAMILIAR, Recipe, resolve
from epmq.calibration import Calibration, Target
from epmq.errors import UserError, choose
from epmq.layer.spec import QuantSpec
from epmq.merge import known

CONTROLS = {
    "zero-shot": "the base model",
    "experts": "every task by its own expert",
    "regmean": "RegMean in full precision",
    "regmean-gptq": "RegMean, then GPTQ",
    "merged": "the merged model in full precision",
    "epmq-fp": "W* of reading A in full precision: the ceiling of the weights target",
    "epmq-features-fp": "W* of reading B in full precision: the ceiling of the features target",
    "featcal-gptq": "W* of reading B in full precision first, then GPTQ of that model (FeatCal-style)",
}
DECODERS = {  # what calibration reads besides the prompts, in text suites
    "experts": "teacher-forced: what each task's own expert generates from the prompt (no label)",
    "targets": "teacher-forced: the sample's own target (needs its label)",
    "start": "an encoder-decoder's start token alone, or nothing (no label)",
}
UNMERGED = ("zero-shot", "experts")
PER_BITS = ("regmean-gptq", "featcal-gptq")  # controls that exist once per bit width
# RegMean (Jin et al. 2023, arXiv 2212.09849) as FusionBench runs it on CLIP: inputs from the experts' own
# streams, off-diagonal entries times 0.95, no ridge; all that is not a linear layer is the experts' mean.
REGMEAN = {
    "source": "expert",
    "mixing": 0.0,
    "anchor": 0.0,
    "anchor_scale": "relative",
    "off_diagonal": 0.95,
    "task_weight": "uniform",
    "recalibrate": "none",
}


@dataclass(frozen=True)
class Cell:
    """One row: a merge, a method, its axes, the samples and the seed.

    ``rounding`` is ``None`` for what is not quantised, ``calibration`` for what is not calibrated. Where the
    centre of ``calibration`` is first put in place in full precision, ``then`` calibrates its rounding.
    ``decoder`` is what a language model's calibration reads besides the prompts; ``None`` without one.
    """

    method: str
    kind: str
    merge: str | None
    merge_options: dict[str, Any] = field(default_factory=dict)
    rounding: str | None = None
    calibration: Calibration | None = None
    then: Calibration | None = None
    spec: QuantSpec | None = None
    samples: int | None = None
    seed: int = 0
    decoder: str | None = None

    @property
    def axes(self) -> dict[str, Any]:
        """Every axis, flat."""
        parts: dict[str, Any] = {} if self.samples is None else {"samples": self.samples}
        parts |= {} if self.decoder is None else {"decoder": self.decoder}
        for part in (self.calibration, self.spec):
            parts |= {} if part is None else asdict(part)
        if self.then:
            parts |= {f"then.{name}": value for name, value in asdict(self.then).items()}
        return parts

    @property
    def target(self) -> str | None:
        return self.calibration.target if self.calibration and self.kind == "method" else None

    @property
    def bits(self) -> int | None:
        return self.spec.bits if self.spec else None

    def key(self, context: Mapping[str, Any]) -> str:
        """16 hex digits of the hash of the cell and its context (suite, revisions, device class)."""
        described = {**asdict(self), "context": context}
        if self.decoder is None:  # of images; their keys are older than this axis
            del described["decoder"]
        text = json.dumps(described, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """What ``epmq run`` was asked for: a cross-product, and axes that override the defaults.

    ``seeds`` draw calibration samples; what is not calibrated is one cell, at seed 0. ``decoder`` is an axis
    of text suites.
    """

    merge: Sequence[str]
    method: Sequence[str]
    target: Sequence[Target]
    bits: Sequence[int]
    controls: Sequence[str]
    samples: int
    seeds: Sequence[int] = (0,)
    decoder: str | None = None
    merge_options: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)


def expand(request: Request) -> list[Cell]:
    """Every cell of a request, controls first; raises UserError for an unknown name or a bad value."""
    for name in request.merge:
        choose("merge", name, known())
    for name in request.target:
        choose("target", name, ("merged", "expert"))
    for name in request.controls:
        choose("control", name, CONTROLS)
    if wrong := [seed for seed in request.seeds if seed < 0]:
        raise UserError(f"seed {wrong[0]} is negative; give 0 or more")
    recipes = resolve(request.method, request.target)
    cells = [
        cell for name in CONTROLS if name in request.controls for cell in _general_control(request, name)
    ]
    for merge in request.merge:
        cells += [
            cell for name in CONTROLS if name in request.controls for cell in _control(request, name, merge)
        ]
        for bits in request.bits:
            for recipe in recipes:
                cells += _calibrated(request, "method", merge, recipe, bits)
    if not cells:
        raise UserError("nothing is asked for; name a method and a merge, or a control")
    _refuse_idle_options(request, cells)
    return cells


def _refuse_idle_options(request: Request, cells: Iterable[Cell]) -> None:
    """An option that no cell takes would be dropped without a word."""
    taken = [item for cell in cells for item in (cell.axes | cell.merge_options).items()]
    for name, value in (request.calibration | request.spec | request.merge_options).items():
        if (name, value) not in taken and (f"then.{name}", value) not in taken:
            raise UserError(f"{name} {value!r} changes no cell that is asked for; leave it out")


def _general_control(request: Request, name: str) -> Iterable[Cell]:
    """Controls that no merge belongs to."""
    if name in UNMERGED:
        yield Cell(name, "control", None)
    elif name.startswith("regmean"):
        recipe = Recipe(name, "gptq", "expert", CONTROLS[name], REGMEAN)
        for bits in request.bits if name in PER_BITS else [None]:
            yield from _calibrated(request, "control", "regmean", recipe, bits)


def _control(request: Request, name: str, merge: str) -> Iterable[Cell]:
    """Controls that exist for every merge."""
    if name == "merged":
        yield Cell(name, "control", merge, _options(request, merge))
    elif name in ("epmq-fp", "epmq-features-fp", "featcal-gptq"):
        of = FAMILIAR["epmq" if name == "epmq-fp" else "epmq-features"]
        for bits in request.bits if name in PER_BITS else [None]:
            yield from _calibrated(request, "control", merge, replace(of, name=name), bits)


def _calibrated(request: Request, kind: str, merge: str, recipe: Recipe, bits: int | None) -> Iterable[Cell]:
    """The cell of each seed."""
    calibration, then = recipe.calibration(request.calibration), None
    if recipe.name in PER_BITS:
        then = Recipe("gptq", "gptq", "merged", "").calibration(request.calibration)
    for seed in request.seeds:
        yield Cell(
            recipe.name,
            kind,
            merge,
            _options(request, merge),
            rounding=None if bits is None else recipe.rounding,
            calibration=calibration,
            then=then,
            spec=None if bits is None else QuantSpec(bits, **request.spec),
            samples=request.samples,
            seed=seed,
            decoder=request.decoder,
        )


def _options(request: Request, merge: str) -> dict[str, Any]:
    """The merge's options: what the command set, the method's own defaults for the rest."""
    if merge not in known():
        return {}
    parameters = inspect.signature(known()[merge]).parameters
    options = {
        name: request.merge_options.get(name, p.default)
        for name, p in parameters.items()
        if p.kind is p.KEYWORD_ONLY and p.default is not None
    }
    if wrong := [n for n, value in options.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise UserError(f"{merge}: {wrong[0]} {options[wrong[0]]} is not a finite number")
    one = {"weight": torch.zeros(1)}
    collections.deque(known()[merge](one, [one], **options), maxlen=0)  # so that it refuses them now
    return options
