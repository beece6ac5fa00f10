"""Controls: rows that stand beside the methods, of the same parts as these."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from baselines.recipes import (
    AUTO_MERGE,
    DISTILLED,
    GPTQ,
    NO_ANCHOR_A,
    NO_ANCHOR_B,
    READING_A,
    READING_B,
    THROUGH,
    Pass,
    Recipe,
)

_control = partial(Recipe, kind="control")

# RegMean (Jin et al. 2023, arXiv 2212.09849) as FusionBench runs it on CLIP: inputs from the experts' own
# streams, off-diagonal entries times 0.95, no ridge; all that is not a linear layer is the experts' mean.
REGMEAN = Pass(
    "expert",
    {
        "source": "expert",
        "mixing": 0.0,
        "anchor": 0.0,
        "anchor_scale": "relative",
        "anchor_point": 1.0,
        "teacher": "experts",
        "patch_weight": 1.0,
        "off_diagonal": 0.95,
        "task_weight": "uniform",
        "recalibrate": "none",
        "biases": "kept",
        "norms": "kept",
    },
)
# RegMean++ (arXiv 2508.03121), likewise: the states before a block come from the model as it is being merged;
# within it they are the expert's own block's, so that all of a block's layers are solved at once.
REGMEAN_PP = replace(REGMEAN, fixed={**REGMEAN.fixed, "source": "expert-block"})
# FeatCal (arXiv 2605.13030) at the settings of its public code, which is for CLIP. Where there is no class
# token all tokens count alike; an RMS norm has a scale only. Its 1e-8 beside the ridge of 0.05 is left out.
FEATCAL = Pass(
    "expert",
    {
        "source": "quantised",
        "sequential": "block",
        "mixing": 0.25,
        "anchor": 0.05,
        "anchor_scale": "absolute",
        "anchor_point": 2.2,
        "task_weight": "frobenius",
        "teacher": "experts",
        "off_diagonal": 1.0,
        "recalibrate": "none",
        "biases": "closed-form",
        "norms": "closed-form",
    },
    pooled={"patch_weight": 0.01, "patch_scope": "queries"},
)
# The merged model in full precision is its own teacher: what errors of earlier layers did to a layer's inputs
# is made up for, and no expert is read. QEP (arXiv 2504.09629) with its factor at 1.
COMPENSATED = Pass("expert", {"teacher": "merged", "mixing": 1.0})
# QEP at the factor and the damping of its paper: W* = W_m + a W_m E[(x~ - x) x^T] (G + d mean(diag G) I)^-1.
QEP = Pass(
    "expert",
    {
        "teacher": "merged",
        "mixing": 0.5,
        "anchor": 1.0,
        "anchor_scale": "relative",
        "anchor_point": 1.0,
        "anchor_in": "centre",
    },
)
# GPTAQ (arXiv 2504.02692): GPTQ's column loop with a term for the same errors, at the factor of its code.
GPTAQ = Pass("merged", {"asymmetry": 0.25})
CONTROLS = {
    recipe.name: recipe
    for recipe in (
        _control("zero-shot", "the base model", start="base", reference=""),
        _control("experts", "every task by its own expert", start="base", own="all", reference=""),
        _control(
            "regmean",
            "RegMean in full precision",
            (REGMEAN,),
            start="simple-average",
            reference="arXiv:2212.09849",
        ),
        _control(
            "regmean-gptq",
            "RegMean, then GPTQ",
            (REGMEAN, GPTQ),
            "gptq",
            start="simple-average",
            reference="arXiv:2212.09849",
        ),
        _control(
            "regmean++",
            "RegMean++ in full precision",
            (REGMEAN_PP,),
            start="simple-average",
            reference="arXiv:2508.03121",
        ),
        _control("merged", "the merged model in full precision", reference=""),
        _control(
            "merged-auto",
            "the merged model in full precision, its factor chosen on held-out calibration samples",
            search=AUTO_MERGE,
            reference="",
        ),
        _control(
            "merged-auto-gptq",
            "the merged model with a factor chosen on held-out calibration samples, then GPTQ",
            (GPTQ,),
            "gptq",
            search=AUTO_MERGE,
            reference="arXiv:2210.17323",
        ),
        _control(
            "expert-linears",
            "the merged model with each task's own expert's linear layers: the ceiling of layer-wise targets",
            own="linears",
            reference="",
        ),
        _control(
            "epmq-fp", "W* of reading A in full precision: the ceiling of the weights target", (READING_A,)
        ),
        _control("epmq-no-anchor-fp", "W* of reading A in full precision without the anchor", (NO_ANCHOR_A,)),
        _control(
            "epmq-features-fp",
            "W* of reading B in full precision: the ceiling of the features target",
            (READING_B,),
        ),
        _control(
            "epmq-features-no-anchor-fp",
            "W* of reading B in full precision without the anchor",
            (NO_ANCHOR_B,),
        ),
        _control(
            "two-step",
            "W* of reading B in full precision first, then GPTQ of that model",
            (READING_B, GPTQ),
            "gptq",
        ),
        _control(
            "two-step-weights",
            "W* of reading A in full precision first, then GPTQ of that model",
            (READING_A, GPTQ),
            "gptq",
        ),
        _control("featcal", "FeatCal in full precision", (FEATCAL,), reference="arXiv:2605.13030"),
        _control(
            "featcal-gptq",
            "FeatCal in full precision first, then GPTQ of that model",
            (FEATCAL, GPTQ),
            "gptq",
            reference="arXiv:2605.13030",
        ),
        _control(
            "gptq-compensated",
            "GPTQ towards the merged model's own full-precision stream; no expert",
            (COMPENSATED,),
            "gptq",
            reference="arXiv:2504.09629",
        ),
        _control(
            "qep",
            "GPTQ of weights corrected towards the merged model's own full-precision stream",
            (QEP,),
            "gptq",
            reference="arXiv:2504.09629",
        ),
        _control(
            "gptaq",
            "GPTQ with a term for the errors of the layers before, towards the merged model's own stream",
            (GPTAQ,),
            "gptq",
            reference="arXiv:2504.02692",
        ),
        _control(
            "distilled",
            "the merged model distilled from the experts end to end, in full precision",
            before=DISTILLED,
            reference="arXiv:1503.02531",
        ),
        _control(
            "distilled-gptq",
            "distilled, then GPTQ",
            (GPTQ,),
            "gptq",
            before=DISTILLED,
            reference="arXiv:1503.02531",
        ),
        _control(
            "distilled-epmq",
            "distilled, then E-PMQ, reading B",
            (READING_B,),
            "gptq",
            before=DISTILLED,
        ),
        _control(
            "distilled-qat",
            "distilled, then GPTQ, then trained through the rounding",
            (GPTQ,),
            "gptq",
            before=DISTILLED,
            after=THROUGH,
            reference="arXiv:1308.3432",
        ),
    )
}
