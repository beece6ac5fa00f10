"""What the task files name as metrics: lm-eval's side of our ``evaluate`` modules.

A function named like its module pairs one document's reference with the prediction; ``NAME_value`` turns all
pairs of a task into the value, in one call of the module, as lm-eval's own corpus-level metrics do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

MODULES = Path(__file__).parents[1] / "suites" / "metrics"

Pair = tuple[str, str]  # reference, prediction


def exact_label(references: Sequence[str], predictions: Sequence[str]) -> Pair:
    """One document's pair for ``exact_label_value``."""
    return references[0], predictions[0]


def spearman_text(references: Sequence[str], predictions: Sequence[str]) -> Pair:
    """One document's pair for ``spearman_text_value``."""
    return references[0], predictions[0]


def exact_label_value(pairs: Sequence[Pair]) -> float:
    """Accuracy in 0..1, see ``suites/metrics/exact_label``."""
    return value("exact_label", pairs)


def spearman_text_value(pairs: Sequence[Pair]) -> float:
    """Spearman's rho in -1..1, see ``suites/metrics/spearman_text``."""
    return value("spearman_text", pairs)


def value(name: str, pairs: Sequence[Pair]) -> float:
    """What the ``evaluate`` module ``name`` finds over all pairs."""
    references, predictions = zip(*pairs, strict=True)
    found = _module(name).compute(references=list(references), predictions=list(predictions))
    return float(found[name])


def number(text: str) -> float:
    """The finite number that a text spells, else 0.0 (as ``spearman_text`` reads it)."""
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) else 0.0


@cache
def _module(name: str) -> Any:
    """The module, loaded from its file; in memory, so that processes share no file."""
    import evaluate

    return evaluate.load(str(MODULES / name), keep_in_memory=True)
