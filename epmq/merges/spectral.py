"""Merges by singular values, one matrix at a time; all that is no matrix is averaged.

``D_t = W_t - W_0`` is read again for every pass over the experts, so that no more of them than one is in
memory. Arithmetic is float32, of :func:`wudi` float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from epmq.errors import UserError
from epmq.merging import Checkpoint, merge_method

if TYPE_CHECKING:
    from torch import Tensor

Differences: TypeAlias = "Callable[[], Iterator[Tensor]]"
ROUND_OFF = 1e-6  # singular values below this share of the largest are none


def _merged(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    scale: float,
    combine: Callable[[Differences, int], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Base plus ``scale`` times what ``combine`` makes of a matrix's differences, or their mean otherwise."""
    for name, origin in base.items():
        if not origin.is_floating_point():
            yield name, origin
            continue

        def differences(name: str = name, origin: Tensor = origin) -> Iterator[Tensor]:
            return (expert[name].float() - origin.float() for expert in experts)

        matrix = origin.dim() == 2
        tau = combine(differences, len(experts)) if matrix else _sum(differences) / len(experts)
        yield name, origin.float() + scale * tau


def _sum(differences: Differences) -> Tensor:
    parts = differences()
    total = next(parts).clone()
    for part in parts:
        total += part
    return total


@merge_method("iso-c", reference="arXiv:2502.04959")
def iso_c(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 1.5
) -> Iterator[tuple[str, Tensor]]:
    """Isotropic merging in the common subspace (Marczak et al. 2025, arXiv 2502.04959).

    With ``sum_t D_t = U S V^T``, the base plus ``scale * mean(S) U V^T``.
    """
    import torch

    def combine(differences: Differences, _: int) -> Tensor:
        u, s, vt = torch.linalg.svd(_sum(differences), full_matrices=False)
        tau: Tensor = s.mean() * (u @ vt)
        return tau

    return _merged(base, experts, scale, combine)


def _common_share(*, scale: float = 1.5, common: float = 0.8) -> None:
    if not 0 <= common <= 1:
        raise UserError(f"iso-cts: common {common} is out of range; give a share from 0 to 1")


@merge_method("iso-cts", reference="arXiv:2502.04959", check=_common_share)
def iso_cts(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 1.5, common: float = 0.8
) -> Iterator[tuple[str, Tensor]]:
    """Isotropic merging in common and task-specific subspaces (Marczak et al. 2025, arXiv 2502.04959).

    The leading triples of ``sum_t D_t``, ``U_k`` those on the left, and as many of every task's
    ``D_t - U_k U_k^T D_t`` as the rank has room for; both sides made orthogonal together, all singular
    values their mean.

    Args:
        common: share of the rank that is the sum's; what the tasks cannot share evenly is the sum's, too.
    """
    import torch

    _common_share(common=common)

    def combine(differences: Differences, tasks: int) -> Tensor:
        u, s, vt = torch.linalg.svd(_sum(differences), full_matrices=False)
        each = round((len(s) - int(len(s) * common)) / tasks)
        shared = len(s) - each * tasks
        left, values, right = [u[:, :shared]], [s[:shared]], [vt[:shared]]
        for difference in differences():
            own = torch.linalg.svd(difference - left[0] @ (left[0].T @ difference), full_matrices=False)
            left, values, right = [*left, own[0][:, :each]], [*values, own[1][:each]], [*right, own[2][:each]]
        return torch.cat(values).mean() * (_polar(torch.cat(left, 1)) @ _polar(torch.cat(right)))

    return _merged(base, experts, scale, combine)


@merge_method("tsv-m", reference="arXiv:2412.00081")
def tsv_m(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 1.0
) -> Iterator[tuple[str, Tensor]]:
    """Task singular vectors (Gargiulo et al. 2025, arXiv 2412.00081).

    Of every ``D_t`` the ``floor(rank / T)`` leading triples, at least one; put side by side, the vectors made
    orthogonal on both sides, the singular values kept. Triples whose value is round-off are left out, so that
    an adapter's missing rank turns nothing.
    """
    import torch

    def combine(differences: Differences, tasks: int) -> Tensor:
        left: list[Tensor] = []
        values: list[Tensor] = []
        right: list[Tensor] = []
        for difference in differences():
            u, s, vt = torch.linalg.svd(difference, full_matrices=False)
            kept = int((s[: max(1, len(s) // tasks)] > ROUND_OFF * s[0]).sum())
            left, values, right = [*left, u[:, :kept]], [*values, s[:kept]], [*right, vt[:kept]]
        return (_polar(torch.cat(left, 1)) * torch.cat(values)) @ _polar(torch.cat(right))

    return _merged(base, experts, scale, combine)


@merge_method("wudi", reference="arXiv:2503.08099")
def wudi(
    base: Checkpoint, experts: Sequence[Checkpoint], *, scale: float = 1.0
) -> Iterator[tuple[str, Tensor]]:
    """WUDI (Cheng et al. 2025, arXiv 2503.08099) at the minimum that its descent heads for.

    ``tau`` minimises ``sum_t ||(tau - D_t) D_t^T||_F^2 / ||D_t||_F^2``: RegMean with
    ``D_t^T D_t / ||D_t||_F^2`` for the inputs' Grams, solved by the pseudo-inverse. The published code stops
    after 300 steps of Adam.
    """
    import torch

    def combine(differences: Differences, _: int) -> Tensor:
        sums: list[Tensor] = []
        for difference in differences():
            own = difference.double()
            gram = own.T @ own / own.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
            parts = gram, own @ gram
            sums = [total + part for total, part in zip(sums, parts, strict=True)] if sums else [*parts]
        gram, product = sums
        tau: Tensor = product @ torch.linalg.pinv(gram, hermitian=True)
        return tau.float()

    return _merged(base, experts, scale, combine)


def _polar(x: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, or rows where it is wide."""
    import torch

    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    nearest: Tensor = u @ vt
    return nearest
