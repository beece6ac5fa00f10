"""Controls: rows that stand beside the methods, of the same parts as these."""

from __future__ import annotations

from baselines.recipes import READING_A, READING_B, Pass, Recipe

# RegMean (Jin et al. 2023, arXiv 2212.09849) as FusionBench runs it on CLIP: inputs from the experts' own
# streams, off-diagonal entries times 0.95, no ridge; all that is not a linear layer is the experts' mean.
REGMEAN = Pass(
    "expert",
    {
        "source": "expert",
        "mixing": 0.0,
        "anchor": 0.0,
        "anchor_scale": "relative",
        "off_diagonal": 0.95,
        "task_weight": "uniform",
        "recalibrate": "none",
    },
)
GPTQ = Pass("merged")
CONTROLS = {
    recipe.name: recipe
    for recipe in (
        Recipe("zero-shot", "the base model", start="base", kind="control"),
        Recipe("experts", "every task by its own expert", start="experts", kind="control"),
        Recipe("regmean", "RegMean in full precision", (REGMEAN,), start="simple-average", kind="control"),
        Recipe(
            "regmean-gptq",
            "RegMean, then GPTQ",
            (REGMEAN, GPTQ),
            "gptq",
            start="simple-average",
            kind="control",
        ),
        Recipe("merged", "the merged model in full precision", kind="control"),
        Recipe(
            "epmq-fp",
            "W* of reading A in full precision: the ceiling of the weights target",
            (READING_A,),
            kind="control",
        ),
        Recipe(
            "epmq-features-fp",
            "W* of reading B in full precision: the ceiling of the features target",
            (READING_B,),
            kind="control",
        ),
        Recipe(
            "featcal-gptq",
            "W* of reading B in full precision first, then GPTQ of that model (FeatCal-style)",
            (READING_B, GPTQ),
            "gptq",
            kind="control",
        ),
    )
}
