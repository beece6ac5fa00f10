"""The cell that a record is of, found by key or name and put together from what the record holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from baselines.controls import CONTROLS
from baselines.recipes import Recipe, Search, resolve
from benchmarks.run.cells import BASE, Cell, Refining
from epmq.calibration import Calibration
from epmq.errors import UserError, nearest
from epmq.layer.spec import QuantSpec
from epmq.refinement.budget import Budget
from results.store.records import Axis, Record

_SHOWN = 8  # keys of an ambiguous name
Described = TypeVar("Described", Calibration, QuantSpec, Budget)


def find(records: Sequence[Record], wanted: str) -> Record:
    """The record of a key, of the beginning of one, or of a name such as ``gptq`` or ``ties/gptq/4``.

    A name is a method, ``METHOD/BITS`` or ``MERGE/METHOD/BITS``, as tables call rows; bits are ``full`` in
    full precision, the merge is ``none`` where nothing is merged.

    Raises:
        UserError: there is none, or several.
    """
    found = [r for r in records if wanted in (r.key, r.method, *_names(r))]
    if not found and len(wanted) >= 4:
        found = [r for r in records if r.key.startswith(wanted)]
    if not found:
        known = sorted({r.method for r in records})
        raise UserError(f"cell {wanted[:60]!r} is not in the folder{nearest(wanted, known)}")
    if len(found) > 1:
        listed = ", ".join(f"{r.key} ({_names(r)[0]} seed {r.seed})" for r in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UserError(f"cell {wanted[:60]!r} is {len(found)} cells; give the key of one: {listed}{more}")
    return found[0]


def _names(record: Record) -> tuple[str, str]:
    short = f"{record.method}/{record.bits or 'full'}"
    return f"{record.merge or 'none'}/{short}", short


def cell_of(record: Record) -> Cell:
    """The cell; whether it is the record's is told by its key.

    Raises:
        UserError: the record's method is not registered here, or an axis is none of ours.
    """
    recipe, axes = _recipe(record), record.axes
    try:
        spec = None if record.bits is None else _described(QuantSpec, axes, "")
        passes = tuple(
            _described(Calibration, axes, "then." * number) for number in range(len(recipe.passes))
        )
        before, after = (
            None if each is None else Refining(each.name, _described(Budget, axes, f"{place}."))
            for place, each in (("before", recipe.before), ("after", recipe.after))
        )
    except (TypeError, ValueError) as error:  # a stranger's axes may be anything
        raise UserError(
            f"record {record.key}: its axes are not those of {record.method} ({error})"
        ) from error
    samples, decoder = axes.get("samples"), axes.get("decoder")
    return Cell(
        method=record.method,
        kind=record.kind,
        start=record.merge or BASE,
        own=recipe.own,
        merge_options=dict(record.merge_options),
        passes=passes,
        rounding=record.rounding,
        spec=spec,
        samples=None if samples is None else int(samples),
        seed=record.seed,
        decoder=None if decoder is None else str(decoder),
        before=before,
        after=after,
        search=None if recipe.search is None else _asked(recipe.search, axes),
    )


def _recipe(record: Record) -> Recipe:
    if record.kind == "control":
        found = CONTROLS.get(record.method)
    else:
        targets: Any = [record.target] if record.target in ("merged", "expert") else ["merged"]
        named = {recipe.name: recipe for recipe in resolve([record.method], targets)}
        found = named.get(record.method)
    if found is None or found.rounding != record.rounding:
        raise UserError(
            f"{record.kind} {record.method!r} of record {record.key} is not registered here; add its file to "
            "baselines/roundings/, or install its package"
        )
    return found


def _described(kind: type[Described], axes: Mapping[str, Axis], prefix: str) -> Described:
    given: dict[str, Any] = {f.name: axes[prefix + f.name] for f in fields(kind) if prefix + f.name in axes}
    return kind(**given)


def _asked(search: Search, axes: Mapping[str, Axis]) -> Search:
    """What of the search was asked for: the others were fixed."""
    asked = {name.removeprefix("search.") for name in axes if name.startswith("search.")}
    return search.without({*search.merge, *search.axes} - asked)
