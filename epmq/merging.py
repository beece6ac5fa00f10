"""Merging as pure functions, streamed tensor by tensor.

A checkpoint is any mapping from names to tensors: a dict, or :class:`epmq.checkpoints.lazy.LazyCheckpoint`.
Every method yields ``(name, tensor)`` in the base's order; arithmetic is float32; tensors that are not
floating point (an old ``position_ids`` buffer) are the base's. Semantics follow FusionBench, commit 54c9e8c9.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from epmq import plugins
from epmq.errors import UserError, choose

if TYPE_CHECKING:  # listing the methods does not wait for torch
    from torch import Tensor

Checkpoint: TypeAlias = "Mapping[str, Tensor]"
Merge: TypeAlias = "Callable[..., Iterator[tuple[str, Tensor]]]"
MERGES: dict[str, Merge] = {}
CHECKS: dict[str, Callable[..., None]] = {}  # of options, by merge
REFERENCES: dict[str, str] = {}  # the paper, by merge
BUNDLED = (
    "epmq.merges.spectral",
    "epmq.merges.dropped",
    "epmq.merges.calibrated",
    "epmq.merges.masked",
)
ENTRY_POINT_GROUP = "epmq.merges"  # of packages that add merging methods; the value names their module


def merge_method(
    name: str, *, reference: str = "", check: Callable[..., None] | None = None
) -> Callable[[Merge], Merge]:
    """Register a merging method under ``name``.

    Args:
        reference: where it is from, as ``arXiv:2212.04089``.
        check: called with the method's options; raises UserError for one out of range, before any work.
    """

    def register(function: Merge) -> Merge:
        if name in MERGES:
            raise UserError(f"merge {name!r} is registered twice")
        MERGES[name] = function
        REFERENCES[name] = reference
        if check is not None:
            CHECKS[name] = check
        return function

    return register


@cache
def _discover() -> None:
    for module in BUNDLED:
        importlib.import_module(module)
    plugins.load(ENTRY_POINT_GROUP)


def known() -> dict[str, Merge]:
    """Every merging method by name, those of installed plug-ins included."""
    _discover()
    return MERGES


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A merge's options: what is given of them, its own defaults for the rest.

    Raises:
        UserError: the merge is unknown, or an option is out of range.
    """
    choose("merge", name, known())
    parameters = inspect.signature(MERGES[name]).parameters.values()
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not None]
    options = {p.name: given.get(p.name, p.default) for p in named}
    if wrong := [n for n, value in options.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise UserError(f"{name}: {wrong[0]} {options[wrong[0]]} is not a finite number")
    if name in CHECKS:
        CHECKS[name](**options)
    return options


def merge(name: str, base: Checkpoint, experts: Sequence[Checkpoint], **options: Any) -> dict[str, Tensor]:
    """All tensors of a named merge; raises UserError for an unknown name or no experts."""
    choose("merge", name, known())
    if not experts:
        raise UserError("merging needs at least one expert")
    return dict(MERGES[name](base, experts, **options))


@merge_method("simple-average", reference="arXiv:2203.05482")
def simple_average(base: Checkpoint, experts: Sequence[Checkpoint]) -> Iterator[tuple[str, Tensor]]:
    """theta = (1/T) sum_t theta_t; the base is not part of the mean."""
    import torch

    for name, origin in base.items():
        if not origin.is_floating_point():
            yield name, origin
            continue
        total = torch.zeros_like(origin, dtype=torch.float32)
        for expert in experts:
            total += expert[name].float()
        yield name, total / len(experts)


@merge_method("task-arithmetic", reference="arXiv:2212.04089")
def task_arithmetic(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 0.3
) -> Iterator[tuple[str, Tensor]]:
    """theta = theta_0 + scale * sum_t (theta_t - theta_0) (Ilharco et al. 2022, arXiv 2212.04089)."""
    import torch

    for name, origin in base.items():
        if not origin.is_floating_point():
            yield name, origin
            continue
        total = torch.zeros_like(origin, dtype=torch.float32)
        for expert in experts:
            total += expert[name].float() - origin.float()
        yield name, origin.float() + scale * total


def _ties_options(*, scale: float = 0.3, keep: float = 0.2) -> None:
    if not 0 < keep <= 1:
        raise UserError(f"ties: keep {keep} is out of range; give a share in (0, 1]")


@merge_method("ties", reference="arXiv:2306.01708", check=_ties_options)
def ties(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    scale: float = 0.3,
    keep: float = 0.2,
    multiplicity: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect signs, disjoint sum.

    1. Trim: each task vector keeps its entries of magnitude at or above the k-th smallest over the whole
       vector, k = d - int(keep * d).
    2. Elect: the sign of the sum of trimmed vectors; a coordinate whose sum is exactly 0 takes the majority
       sign over all coordinates.
    3. Sum the trimmed entries that agree with the elected sign; add ``scale`` times the sum to the base.

    The disjoint *sum* with 0.3 is what FusionBench's published rows use, not the paper's disjoint mean.

    Args:
        keep: share of entries kept.
        multiplicity: how often a tensor counts in the flattened vector when it is tied (T5's embedding is
            listed three times in a state dict: ``{"shared.weight": 3}``); 1 when absent.
    """
    import torch

    _ties_options(scale=scale, keep=keep)
    counts = multiplicity or {}
    names = [name for name, tensor in base.items() if tensor.is_floating_point()]
    cuts = [_trim_cut(base, expert, names, keep, counts) for expert in experts]
    majority = _majority_sign(base, experts, names, cuts, counts)
    for name, origin in base.items():
        if not origin.is_floating_point():
            yield name, origin
            continue
        trimmed = _trimmed(name, base, experts, cuts)
        sign = torch.sign(trimmed.sum(0))
        sign = torch.where(sign == 0, torch.full_like(sign, majority), sign)
        agree = torch.where(sign > 0, trimmed > 0, trimmed < 0)
        yield name, origin.float() + scale * (trimmed * agree).sum(0)


def _trim_cut(
    base: Checkpoint, expert: Checkpoint, names: Sequence[str], keep: float, counts: Mapping[str, int]
) -> float:
    """The k-th smallest magnitude of one whole task vector, the only flattened vector in memory."""
    import torch

    repeats = {name: counts.get(name, 1) for name in names}
    size = sum(base[name].numel() * repeat for name, repeat in repeats.items())
    flat, filled = torch.empty(size, dtype=torch.float32), 0
    for name, repeat in repeats.items():
        magnitudes = (expert[name].float() - base[name].float()).abs().flatten()
        for _ in range(repeat):
            flat[filled : filled + len(magnitudes)] = magnitudes
            filled += len(magnitudes)
    k = max(1, size - int(keep * size))
    flat.numpy().partition(k - 1)  # in place; torch.kthvalue would copy the vector and its indices
    return float(flat[k - 1])


def _trimmed(name: str, base: Checkpoint, experts: Sequence[Checkpoint], cuts: Sequence[float]) -> Tensor:
    """One tensor of every task vector with its small entries zeroed, ``(tasks, *shape)``."""
    import torch

    origin = base[name].float()
    vectors = torch.stack([expert[name].float() - origin for expert in experts])
    limits = torch.tensor(cuts, dtype=torch.float32).view(-1, *[1] * origin.dim())
    return torch.where(vectors.abs() >= limits, vectors, torch.zeros_like(vectors))


def _majority_sign(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    names: Sequence[str],
    cuts: Sequence[float],
    counts: Mapping[str, int],
) -> float:
    import torch

    total = 0.0
    for name in names:
        sign = torch.sign(_trimmed(name, base, experts, cuts).sum(0))
        total += counts.get(name, 1) * float(sign.double().sum())
    return float(torch.sign(torch.tensor(total)))
