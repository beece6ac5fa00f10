"""Which parameters of a tower a refinement may change."""

from __future__ import annotations

from torch import nn

from epmq.models.tower import Tower


def merged(tower: Tower) -> list[nn.Parameter]:
    """Every parameter that merging changes, each once, sorted by name; what is shared stays the base's."""
    found = {id(p): p for _, p in sorted(tower.merged_parameters().items(), key=lambda pair: pair[0])}
    return list(found.values())


def offsets(tower: Tower) -> list[nn.Parameter]:
    """Biases and scales of norms of what merging changes: vectors named bias or weight, sorted by name."""
    own = {id(p) for p in merged(tower)}
    found = {
        id(p): p
        for name, p in sorted(tower.named_parameters(), key=lambda pair: pair[0])
        if p.dim() == 1 and name.rpartition(".")[2] in ("bias", "weight") and id(p) in own
    }
    return list(found.values())
