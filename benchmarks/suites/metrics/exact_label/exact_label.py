"""Accuracy of generated labels, an ``evaluate`` module that is loaded from this file."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class ExactLabel(evaluate.Metric):  # type: ignore[misc]
    """Share of predictions that equal their reference: case sensitive, nothing stripped or normalised.

    FusionBench's accuracy on GLUE (github.com/tanganke/fusion_bench, commit 54c9e8c,
    ``fusion_bench/tasks/flan_t5_text_generation/glue_evaluation.py``): whatever is not exactly the label's
    text is wrong, so that a collapsed model scores 0.0 and not chance.
    """

    def _info(self) -> Any:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference, character by character.",
            citation="",
            inputs_description="predictions, references: texts.",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        right = sum(said == wanted for said, wanted in zip(predictions, references, strict=True))
        return {"exact_label": right / len(references)}
