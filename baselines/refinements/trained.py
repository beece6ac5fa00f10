"""Everything that merging changes is trained: in full precision, or through the rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from baselines.refinements.registry import Refined, refinement

if TYPE_CHECKING:
    from epmq.layer.weight import QuantizedWeight
    from epmq.models.tower import Tower
    from epmq.refinement.budget import Budget
    from epmq.refinement.descent import Lessons


@refinement(
    "trained",
    changes="all",
    reference="arXiv:1308.3432",
    summary="every weight by back-propagation, quantised ones through the rounding (straight-through)",
)
def trained(
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    lessons: Lessons,
    budget: Budget,
    state: Path | None = None,
) -> Refined:
    """Refine every parameter that is not shared with the base; of a quantised layer, what is rounded.

    In full precision, without quantised layers, this is distillation of the experts into one model (Hinton et
    al. 2015, arXiv 1503.02531).
    """
    from epmq.refinement.descent import descend
    from epmq.refinement.grids import ThroughRounding, learnt_grids
    from epmq.refinement.parts import merged

    weights = merged(tower)
    with learnt_grids(tower, quantised, ThroughRounding) as layers:
        rates = [(layers.factors, budget.scale_rate), (weights, budget.learning_rate)]
        curve = descend(tower, rates, lessons, budget, state)
        found = layers.found()
    return Refined(found, curve)
