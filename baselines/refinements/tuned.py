"""Codes stay: scales, biases and norms are tuned, so that the model is as many bits as before."""

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
    "tuned",
    changes="continuous",
    reference="",
    summary="scales, biases and norms by back-propagation; codes and zero points stay",
)
def tuned(
    tower: Tower,
    quantised: Mapping[str, QuantizedWeight],
    lessons: Lessons,
    budget: Budget,
    state: Path | None = None,
) -> Refined:
    """Refine what is not a code; scales are rounded to the dtype that they are stored in at every step."""
    from epmq.refinement.descent import descend
    from epmq.refinement.grids import FixedCodes, learnt_grids
    from epmq.refinement.parts import offsets

    steady = offsets(tower)
    with learnt_grids(tower, quantised, FixedCodes) as layers:
        rates = [(layers.factors, budget.scale_rate), (steady, budget.learning_rate)]
        curve = descend(tower, rates, lessons, budget, state)
        found = layers.found()
    return Refined(found, curve)
