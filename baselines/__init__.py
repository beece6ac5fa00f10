"""Baselines: one file per rounding method, and the registry that finds them."""

from baselines.registry import Baseline, baseline, get, names

__all__ = ["Baseline", "baseline", "get", "names"]
