"""Consensus merging: entries that matter to one task alone, or to none, stay the base's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from epmq.errors import UserError
from epmq.merging import Checkpoint, merge_method

if TYPE_CHECKING:
    from torch import Tensor


def _masks(*, scale: float = 0.3, mask: float = 0.4, agreeing: int = 2) -> None:
    if mask < 0:
        raise UserError(f"consensus: mask {mask} is out of range; give 0 or more")
    if agreeing < 0:
        raise UserError(f"consensus: agreeing {agreeing} is out of range; give a number of tasks, 0 or more")


@merge_method("consensus", reference="arXiv:2405.07813", check=_masks)
def consensus(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    *,
    scale: float = 0.3,
    mask: float = 0.4,
    agreeing: int = 2,
) -> Iterator[tuple[str, Tensor]]:
    """Consensus merging (Wang et al. 2024, arXiv 2405.07813) of task arithmetic.

    With ``tau = sum_t D_t``, task t has an entry in its mask where ``|D_t| > mask * |tau - D_t|``; the base
    plus ``scale * tau`` where enough masks have it. The authors choose ``mask`` of every task among 0.2 to
    0.6, and ``scale``, by labelled validation samples; here one value stands for all tasks.

    Args:
        mask: how much of the others' part an entry of ``D_t`` must exceed.
        agreeing: the least number of tasks whose mask has an entry that is kept; 0 is task arithmetic.
    """
    import torch

    _masks(scale=scale, mask=mask, agreeing=agreeing)
    for name, origin in base.items():
        if not origin.is_floating_point():
            yield name, origin
            continue
        start = origin.float()
        total = torch.zeros_like(start)
        for expert in experts:
            total += expert[name].float() - start
        count = torch.zeros_like(start)
        for expert in experts:
            own = expert[name].float() - start
            count += own.abs() > mask * (total - own).abs()
        yield name, start + scale * total * (count >= agreeing)
