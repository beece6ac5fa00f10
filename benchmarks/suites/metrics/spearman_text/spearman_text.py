"""Rank correlation of generated numbers, an ``evaluate`` module that is loaded from this file."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import spearmanr


class SpearmanText(evaluate.Metric):  # type: ignore[misc]
    """Spearman's rho between predictions and references, both parsed with ``float``; failures count as 0.0.

    FusionBench's STS-B metric (github.com/tanganke/fusion_bench, commit 54c9e8c,
    ``fusion_bench/tasks/flan_t5_text_generation/glue_evaluation.py``): ``scipy.stats.spearmanr`` over the
    whole split, on the reference's text and not on the raw label. Two cases are ours:

    - where one side is constant rho is not defined and scipy gives NaN with a warning; a record needs a
      finite number, and answers that do not depend on the question carry no rank information: 0.0.
    - "nan" and "inf", which ``float`` takes, count as failures too: a NaN would make rho NaN.
    """

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Spearman's rho of texts read as numbers; what is no finite number counts as 0.0.",
            citation="",
            inputs_description="predictions, references: texts.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        said, wanted = (np.array([number(text) for text in texts]) for texts in (predictions, references))
        constant = np.ptp(said) == 0 or np.ptp(wanted) == 0
        return {"spearman_text": 0.0 if constant else float(spearmanr(said, wanted).statistic)}


def number(text: str) -> float:
    """The finite number that ``text`` spells, else 0.0."""
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if np.isfinite(found) else 0.0
