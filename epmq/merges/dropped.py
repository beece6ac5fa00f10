"""DARE: entries of task vectors dropped at random, before another merge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from epmq.errors import UserError
from epmq.merging import Checkpoint, merge_method, task_arithmetic, ties

if TYPE_CHECKING:
    from torch import Tensor


def _share(*, drop: float = 0.5, drop_seed: int = 0, **_: float) -> None:
    if not 0 <= drop < 1:
        raise UserError(f"dare: drop {drop} is out of range; give a share from 0, below 1")
    if drop_seed < 0:
        raise UserError(f"dare: drop_seed {drop_seed} is negative; give 0 or more")


class _Dropped(Mapping[str, "Tensor"]):
    """An expert whose difference to the base has lost a share of its entries; the others make up for it."""

    def __init__(self, base: Checkpoint, expert: Checkpoint, drop: float, seed: str) -> None:
        self.base, self.expert, self.drop, self.seed = base, expert, drop, seed

    def __getitem__(self, name: str) -> Tensor:
        import torch

        expert = self.expert[name]
        if not expert.is_floating_point():
            return expert
        key = hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(key))
        kept = torch.rand(expert.shape, generator=generator) >= self.drop
        origin = self.base[name].float()
        return origin + (expert.float() - origin) * kept / (1 - self.drop)

    def __iter__(self) -> Iterator[str]:
        return iter(self.expert)

    def __len__(self) -> int:
        return len(self.expert)


def _dropped(
    base: Checkpoint, experts: Sequence[Checkpoint], drop: float, drop_seed: int
) -> list[Mapping[str, Tensor]]:
    _share(drop=drop, drop_seed=drop_seed)
    return [_Dropped(base, expert, drop, f"{drop_seed} {number}") for number, expert in enumerate(experts)]


@merge_method("dare", reference="arXiv:2311.03099", check=_share)
def dare(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    scale: float = 0.3,
    drop: float = 0.5,
    drop_seed: int = 0,
) -> Iterator[tuple[str, Tensor]]:
    """DARE (Yu et al. 2024, arXiv 2311.03099), then task arithmetic.

    Args:
        drop: share of the entries of every task vector that are set to 0; the others are divided by 1 - drop.
        drop_seed: of what is dropped, which also depends on the tensor's name and the task's number.
    """
    return task_arithmetic(base, _dropped(base, experts, drop, drop_seed), scale=scale)


@merge_method("dare-ties", reference="arXiv:2311.03099", check=_share)
def dare_ties(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    scale: float = 0.3,
    keep: float = 0.2,
    drop: float = 0.5,
    drop_seed: int = 0,
    multiplicity: Mapping[str, int] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """DARE, then TIES; for the options see both."""
    found = _dropped(base, experts, drop, drop_seed)
    return ties(base, found, scale=scale, keep=keep, multiplicity=multiplicity)
