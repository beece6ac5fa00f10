"""Singular-value calibration after a merge, one matrix at a time; all that is no matrix stays as merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from epmq.errors import UserError
from epmq.merging import CHECKS, Checkpoint, merge_method, task_arithmetic, ties

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 0.1
ROUND_OFF = 1e-12  # of a task's energy; what it has in a direction below this is nothing


def calibrated(
    merged: Iterator[tuple[str, Tensor]], base: Checkpoint, experts: Sequence[Checkpoint], floor: float
) -> Iterator[tuple[str, Tensor]]:
    """The stream of any merge with its singular values calibrated, see :func:`task_arithmetic_svc`.

    A direction that several tasks share, and that their sum counts several times, shrinks to what one of them
    has there. A task that does nothing in a direction has the coefficient 0. Float64.

    Args:
        merged: names and tensors of a merge of ``base`` and ``experts``.
        floor: the least coefficient that counts; small values let weak directions grow.
    """
    import torch

    for name, tensor in merged:
        if tensor.dim() != 2 or not tensor.is_floating_point():
            yield name, tensor
            continue
        origin = base[name].double()
        u, s, vt = torch.linalg.svd(tensor.double() - origin, full_matrices=False)
        total = torch.zeros_like(s)
        for expert in experts:
            responses = u.T @ (expert[name].double() - origin)
            energy = responses.square().sum(1)
            inner = s * (responses * vt).sum(1)
            there = energy > ROUND_OFF * energy.sum()
            coefficients = torch.where(there, inner / energy.where(there, 1.0), 0.0)
            total += coefficients.clamp(min=floor)
        yield name, (origin + (u * (s * len(experts) / total)) @ vt).float()


def _floor(*, floor: float = FLOOR, **_: float) -> None:
    if floor <= 0:
        raise UserError(f"svc: floor {floor} is out of range; give a number above 0")


def _ties_and_floor(*, scale: float = 0.3, keep: float = 0.2, floor: float = FLOOR) -> None:
    CHECKS["ties"](scale=scale, keep=keep)
    _floor(floor=floor)


@merge_method("task-arithmetic-svc", reference="arXiv:2602.05536", check=_floor)
def task_arithmetic_svc(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 0.3, floor: float = FLOOR
) -> Iterator[tuple[str, Tensor]]:
    """Task arithmetic, then singular-value calibration (Li et al. 2026, arXiv 2602.05536).

    With ``tau = U S V^T`` of a merged matrix and ``s_rt`` the coefficient of ``u_r^T tau`` on ``u_r^T D_t``,
    ``S_r`` is divided by the mean over tasks of ``max(floor, s_rt)``. What is no matrix stays as merged.
    """
    _floor(floor=floor)
    return calibrated(task_arithmetic(base, experts, scale=scale), base, experts, floor)


@merge_method("ties-svc", reference="arXiv:2602.05536", check=_ties_and_floor)
def ties_svc(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    scale: float = 0.3,
    keep: float = 0.2,
    floor: float = FLOOR,
    multiplicity: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """TIES, then singular-value calibration as of ``task-arithmetic-svc``."""
    _floor(floor=floor)
    return calibrated(
        ties(base, experts, scale=scale, keep=keep, multiplicity=multiplicity), base, experts, floor
    )
