"""Cells: one row of a comparison, described by everything that can change its numbers."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from baselines import refinements
from baselines.controls import CONTROLS
from baselines.recipes import Recipe, Search, resolve
from baselines.registry import get
from epmq.calibration import Calibration, Target
from epmq.errors import UserError, choose
from epmq.layer.spec import QuantSpec
from epmq.merging import known, options_of
from epmq.refinement.budget import Budget

DECODERS = {  # what calibration reads besides the prompts, in text suites
    "experts": "teacher-forced: what each task's own expert generates from the prompt (no label)",
    "targets": "teacher-forced: the sample's own target (needs its label)",
    "start": "an encoder-decoder's start token alone, or nothing (no label)",
}
BASE = "base"  # the start that is no merge
LARGEST_SEED = 2**53  # every reader of JSON has whole numbers so far


@dataclass(frozen=True)
class Refining:
    """A registered refinement by name, with its budget."""

    name: str
    budget: Budget

    @property
    def module(self) -> str:
        """The file of the refinement."""
        return inspect.getfile(refinements.get(self.name).refine)

    @property
    def axes(self) -> dict[str, Any]:
        """Every axis, flat."""
        return {"name": self.name, **asdict(self.budget)}


@dataclass(frozen=True)
class Cell:
    """One row: what it starts from, its calibration passes and rounding, the samples and the seed.

    ``start`` is a merge by name, or ``"base"``; ``own`` is what every task has of its own expert besides. Of
    the ``passes`` all but the last put their centre in place in full precision; so does the last where
    ``rounding`` is ``None``. ``before`` refines the start, ``after`` what the last pass leaves. ``search``
    says which options and axes are no more than where a choice begins. ``decoder`` is what a language model's
    calibration reads besides the prompts; ``None`` without one.
    """

    method: str
    kind: str
    start: str
    own: str = "nothing"
    merge_options: dict[str, Any] = field(default_factory=dict)
    passes: tuple[Calibration, ...] = ()
    rounding: str | None = None
    spec: QuantSpec | None = None
    samples: int | None = None
    seed: int = 0
    decoder: str | None = None
    before: Refining | None = None
    after: Refining | None = None
    search: Search | None = None

    @property
    def merge(self) -> str | None:
        """The merge by name; ``None`` where nothing is merged."""
        return None if self.start == BASE else self.start

    @property
    def axes(self) -> dict[str, Any]:
        """Recorded axes, flat; of a pass after the first under ``then.``, of the next ``then.then.``."""
        parts: dict[str, Any] = {} if self.samples is None else {"samples": self.samples}
        parts |= {} if self.decoder is None else {"decoder": self.decoder}
        for number, calibration in enumerate(self.passes):
            prefix = "" if number == 0 else "then." * number
            parts |= {f"{prefix}{name}": value for name, value in calibration.recorded.items()}
        for prefix, refining in (("before", self.before), ("after", self.after)):
            if refining is not None:
                parts |= {f"{prefix}.{name}": value for name, value in refining.axes.items()}
        if self.search is not None:
            parts |= {f"search.{name}": value for name, value in self.search.recorded.items()}
        return parts if self.spec is None else parts | self.spec.recorded

    @property
    def target(self) -> str | None:
        """The target of a method's last pass; ``None`` for controls."""
        return self.passes[-1].target if self.passes and self.kind == "method" else None

    @property
    def bits(self) -> int | None:
        """Bits a code; ``None`` in full precision."""
        return self.spec.bits if self.spec else None

    @property
    def modules(self) -> list[str]:
        """The files of its rounding and of its refinements."""
        methods: list[Any] = [] if self.rounding is None else [get(self.rounding).rounding]
        return [inspect.getfile(each) for each in methods] + [
            each.module for each in (self.before, self.after) if each is not None
        ]

    def key(self, context: Mapping[str, Any]) -> str:
        """16 hex digits of the hash of the cell and its context (suite, revisions, device class).

        Raises:
            TypeError: the context holds what is not JSON, which would have no stable key.
        """
        passes = [each.recorded for each in self.passes]
        spec = None if self.spec is None else self.spec.recorded
        described = {**asdict(self), "passes": passes, "spec": spec, "context": context}
        for name in (
            "before",
            "after",
            "search",
        ):  # cells without have the keys of before
            if described[name] is None:
                del described[name]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """What ``epmq run`` was asked for: a cross-product, and axes that override the defaults.

    ``seeds`` draw calibration samples; what is not calibrated is one cell, at seed 0. ``decoder`` is an axis
    of text suites. ``merge_options`` holds one set of options or several; ``chosen`` a suite's own defaults
    of calibration axes, by reading; ``pooled`` whether its models' head reads a class token alone.
    """

    merge: Sequence[str]
    method: Sequence[str]
    target: Sequence[Target]
    bits: Sequence[int]
    controls: Sequence[str]
    samples: Sequence[int]
    seeds: Sequence[int] = (0,)
    decoder: str | None = None
    merge_options: Sequence[Mapping[str, Any]] = ({},)
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pooled: bool = True
    calibration: dict[str, Any] = field(default_factory=dict)
    refinement: dict[str, Any] = field(default_factory=dict)
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
    if wrong := [seed for seed in request.seeds if seed > LARGEST_SEED]:
        raise UserError(f"seed {wrong[0]} is out of range; give 0 to {LARGEST_SEED}")
    methods = resolve(request.method, request.target)
    controls = [recipe for name, recipe in CONTROLS.items() if name in request.controls]
    cells = [cell for recipe in controls if recipe.start for cell in _of_bits(request, recipe, recipe.start)]
    for merge in request.merge:
        cells += [
            cell for recipe in controls if not recipe.start for cell in _of_bits(request, recipe, merge)
        ]
        cells += [
            cell for bits in request.bits for row in methods for cell in _cells(request, row, merge, bits)
        ]
    if not cells:
        raise UserError("nothing is asked for; name a method and a merge, or a control")
    _refuse_idle_options(request, cells)
    return cells


def _refuse_idle_options(request: Request, cells: Iterable[Cell]) -> None:
    """An option that no cell takes would be dropped without a word."""
    taken = [item for cell in cells for item in (cell.axes | cell.merge_options).items()]
    parts = [part for cell in cells for part in (*cell.passes, cell.spec) if part is not None]
    taken += [item for part in parts for item in asdict(part).items()]
    options = [item for given in request.merge_options for item in given.items()]
    refining = {name: (f"before.{name}", f"after.{name}") for name in request.refinement}
    for name, value in [*(request.calibration | request.refinement | request.spec).items(), *options]:
        if not any((place, value) in taken for place in refining.get(name, (name,))):
            raise UserError(f"{name} {value!r} changes no cell that is asked for; leave it out")


def _of_bits(request: Request, recipe: Recipe, start: str) -> Iterable[Cell]:
    """A control's cells: one a bit width where it is rounded."""
    for bits in request.bits if recipe.rounding else [None]:
        yield from _cells(request, recipe, start, bits)


def _cells(request: Request, recipe: Recipe, start: str, bits: int | None) -> Iterable[Cell]:
    """A cell for each set of options, number of samples and seed; what is not calibrated has one a set.

    None where a search has nothing to choose, as of a merge without a factor.
    """
    last, text = len(recipe.passes) - 1, request.decoder is not None
    passes = tuple(
        each.calibration(
            request.calibration,
            rounded=number == last and recipe.rounding is not None,
            chosen=request.chosen,
            pooled=request.pooled,
        )
        for number, each in enumerate(recipe.passes)
    )
    before, after = (
        None if each is None else Refining(each.name, each.budget(request.refinement, text=text, exact=exact))
        for each, exact in ((recipe.before, True), (recipe.after, recipe.rounding is None))
    )
    calibrated = passes or before or after or recipe.search
    given = {name for each in (request.calibration, *request.merge_options) for name in each}
    search = recipe.search and recipe.search.without(given)
    draws = list(product(request.samples, request.seeds)) if calibrated else [(None, 0)]
    for options, (samples, seed) in product(_options(request, start), draws):
        if search and not search.axes and not search.merge.keys() & options.keys():
            continue
        yield Cell(
            recipe.name,
            recipe.kind,
            start,
            recipe.own,
            options,
            passes,
            recipe.rounding,
            None if bits is None else QuantSpec(bits, **request.spec),
            samples=samples,
            seed=seed,
            decoder=request.decoder if calibrated else None,
            before=before,
            after=after,
            search=search,
        )


def _options(request: Request, start: str) -> list[dict[str, Any]]:
    """The different sets of options of a merge; one empty set where nothing is merged."""
    if start == BASE:
        return [{}]
    found: list[dict[str, Any]] = []
    for given in request.merge_options:
        if (options := options_of(start, given)) not in found:
            found.append(options)
    return found
