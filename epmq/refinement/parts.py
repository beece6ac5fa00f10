"""Which parameters of a tower a refinement may change."""

from __future__ import annotations

from torch import nn

from epmq.models.tower import Tower


def merged(tower: Tower) -> list[nn.Parameter]:
    """Every parameter that merging changes, each once; what is shared stays the base's."""
    found = {id(p): p for p in tower.merged_parameters().values()}
    return list(found.values())


def offsets(tower: Tower) -> list[nn.Parameter]:
    """Biases, and the scales of norms, of what merging changes: vectors that are named bias or weight."""
    own = {id(p) for p in merged(tower)}
    found = {
        id(p): p
        for name, p in tower.named_parameters()
        if p.dim() == 1 and name.rpartition(".")[2] in ("bias", "weight") and id(p) in own
    }
    return list(found.values())
