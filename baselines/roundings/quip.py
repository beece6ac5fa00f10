"""Incoherence: rotate a layer's inputs at random, round there by GPTQ, store the seed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from baselines.registry import baseline

if TYPE_CHECKING:  # what needs torch is imported when a layer is rounded
    from epmq.layer.problem import LayerProblem
    from epmq.layer.spec import QuantSpec
    from epmq.layer.weight import QuantizedWeight

SEED = 0


def turned(problem: LayerProblem, seed: int) -> LayerProblem:
    """The same problem for inputs ``U x``: every weight's objective is that of the weight times ``U``."""
    from epmq.layer.problem import LayerProblem
    from epmq.layer.rotation import rotated, rotated_both

    hessian = rotated_both(problem.hessian, seed)
    asymmetry = None if problem.asymmetry is None else rotated_both(problem.asymmetry, seed)
    centre, reference = rotated(problem.centre, seed), rotated(problem.reference, seed)
    return LayerProblem(centre, (hessian + hessian.mT) / 2, reference, problem.warnings, asymmetry)


@baseline(
    "quip",
    reference="arXiv:2307.13304",
    summary="GPTQ on randomly rotated inputs; of the rotation only the seed is stored",
)
def quip(problem: LayerProblem, spec: QuantSpec) -> QuantizedWeight:
    """Incoherence processing (Chee et al. 2023) with the randomised Hadamard transform of QuIP#, then GPTQ.

    ``W U^T`` is rounded with ``U H U^T``, and ``U`` undoes it after decoding. The public code also rotates
    the outputs and rescales columns; here rows stay independent, so that a layer can be cut out of a group,
    and nothing but a seed of 32 bits is stored. The grid is that of the specification, no lattice.
    """
    from epmq.layer import gptq as core

    return replace(core.gptq(turned(problem, SEED), spec), rotation=SEED)
