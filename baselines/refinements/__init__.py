"""Refinements by name: what is done end to end, on the calibration samples, before or after rounding."""

from baselines.refinements.registry import Changes, Refined, Refinement, get, names, refinement

__all__ = ["Changes", "Refined", "Refinement", "get", "names", "refinement"]
